"""How a training run lies on its processes, and what may change about it between two starts.

What a step learns is settled by the rows of all processes together. So a run goes on exactly with
another number of processes, another split of the same rows into batches, or with weights sharded
where they were whole; it does not with other rows a step, and that is refused.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers import TrainerCallback, TrainingArguments

from anchored.errors import ConfigError

# What a run may be started again with: where rows and weights lie, when it saves, how it reads; not
# what is learnt.
MAY_CHANGE = (
    "trainer.per_device_train_batch_size",
    "trainer.gradient_accumulation_steps",
    "trainer.activation_checkpointing",
    "trainer.gradient_checkpointing",
    "trainer.fsdp",
    "trainer.fsdp_config",
    "trainer.ddp_timeout",
    "trainer.dataloader_num_workers",
    "trainer.dataloader_persistent_workers",
    "trainer.dataloader_pin_memory",
    "trainer.dataloader_prefetch_factor",
    "trainer.save_steps",
    "trainer.save_total_limit",
)
_WHOLE, _SHARDED = "FULL_STATE_DICT", "SHARDED_STATE_DICT"


def rows_a_step(arguments: TrainingArguments) -> int:
    """Rows of all processes that one optimizer step learns from."""
    each = arguments.train_batch_size * arguments.gradient_accumulation_steps
    return each * arguments.world_size


def is_sharded(arguments: TrainingArguments) -> bool:
    """Are weights sharded, by `trainer.fsdp` or by `accelerate launch`."""
    launched = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    return bool(arguments.fsdp) or launched


def check_layout(
    arguments: TrainingArguments, adapter: bool, muon_learning_rate: float | None
) -> None:
    """Sees, before any data work, that processes and devices can train as asked.

    Raises:
        ConfigError: one process has several devices, several do not know of each other, DeepSpeed
            shards weights, or FSDP does for one process, an adapter or Muon, or would write
            checkpoints in shards.
    """
    started = int(os.environ.get("WORLD_SIZE") or 1)
    if started > arguments.world_size:
        raise ConfigError(
            f"{started} processes were started (WORLD_SIZE), but each would train alone, into one "
            "folder; start them by torchrun or accelerate launch, and on CPUs leave "
            "trainer.use_cpu=false out"
        )
    if arguments.n_gpu > 1:
        raise ConfigError(
            f"{arguments.n_gpu} devices and one process; start one for each, torchrun "
            f"--nproc-per-node {arguments.n_gpu} -m anchored ..., or choose a device with "
            "CUDA_VISIBLE_DEVICES=0"
        )
    deepspeed: Any = getattr(arguments, "deepspeed_plugin", None)
    if deepspeed is not None and deepspeed.zero_stage == 3:
        raise ConfigError(
            "trainer.deepspeed: ZeRO-3 shards weights in a way of its own; use trainer.fsdp, or a "
            "lower stage"
        )
    if is_sharded(arguments):
        _check_sharded(arguments, adapter, muon_learning_rate)


def _check_sharded(
    arguments: TrainingArguments, adapter: bool, muon_learning_rate: float | None
) -> None:
    if arguments.world_size == 1:
        raise ConfigError(
            "trainer.fsdp: this is one process, and sharding takes several; start it by torchrun "
            "or accelerate launch, or add trainer.fsdp=null"
        )
    if muon_learning_rate is not None:
        raise ConfigError(
            f"muon_learning_rate: {muon_learning_rate}: Muon needs whole matrices, trainer.fsdp "
            "shards them; leave one of the two out"
        )
    if adapter:
        raise ConfigError("model.lora: FSDP shards whole models; train the adapter by DDP instead")
    where, kind = _state_dict_type(arguments)
    if kind != _WHOLE:
        raise ConfigError(
            f"{where}: {kind}: use {_WHOLE}, so that checkpoints can be read by any number of "
            "processes"
        )


def _state_dict_type(arguments: TrainingArguments) -> tuple[str, str]:
    """How sharded weights are saved, and where that is set.

    `accelerate launch` counts where `trainer.fsdp` says nothing; its default goes by version.
    """
    if arguments.fsdp:
        settings: Any = arguments.fsdp_config
        return "trainer.fsdp_config.state_dict_type", settings.get("state_dict_type", _WHOLE)
    default = _SHARDED if os.environ.get("FSDP_VERSION") == "2" else _WHOLE
    name = "FSDP_STATE_DICT_TYPE"
    return f"{name} (accelerate's fsdp_state_dict_type)", os.environ.get(name, default)


def reduce_in_float32(accelerator: Accelerator) -> None:
    """Lets FSDP2 sum gradients and count tokens in float32, whatever the model computes in.

    `accelerate` has bfloat16 for the sums over batches and processes, for the loss, and for the
    number of tokens that the loss is divided by, which it rounds by up to 0.2 %. Inputs need no
    cast: the model runs under autocast too.
    """
    plugin: Any = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.fsdp_version == 2 and plugin.mixed_precision_policy:
        plugin.mixed_precision_policy = replace(
            plugin.mixed_precision_policy,
            reduce_dtype=torch.float32,
            output_dtype=None,
            cast_forward_inputs=False,
        )


def shard_on_cpu(arguments: TrainingArguments) -> None:
    """Lets `accelerate` shard weights between processes without an accelerator too.

    It has FSDP for a list of devices that lacks the CPU, and on a CPU falls back to whole weights
    without a word. The backend (gloo) is settled by now.
    """
    state: Any = arguments.distributed_state
    if is_sharded(arguments) and state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU


class WorkersSeededApart(TrainerCallback):
    """Seeds the workers that read data from a generator of their own.

    They are seeded once each epoch, or once in all if they persist: by the common generator, how
    they live would settle what dropout draws after it.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: Any, control: Any, **given: Any
    ) -> None:
        """Before the first row is read."""
        loader = given["train_dataloader"]
        getattr(loader, "base_dataloader", loader).generator = torch.Generator()


def check_same_rows(before: dict[str, Any], out: Path, arguments: TrainingArguments) -> None:
    """Sees that steps have as many rows as `before`, the record of an earlier start, says.

    Raises:
        ConfigError: they have more or fewer.
    """
    then, now = before.get("rows_a_step", rows_a_step(arguments)), rows_a_step(arguments)
    if then == now:
        return
    each, rest = divmod(then, arguments.world_size)
    way_out = (
        f"start a number of processes that divides {then}"
        if rest
        else "set trainer.per_device_train_batch_size times trainer.gradient_accumulation_steps "
        f"to {each}"
    )
    raise ConfigError(
        f"{out}: trained with {then} rows a step on {_processes(before['processes'])}, now {now} "
        f"on {_processes(arguments.world_size)}; {way_out}, or choose another output folder"
    )


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def record(arguments: TrainingArguments) -> dict[str, Any]:
    """What `check_same_rows` compares."""
    return {"rows_a_step": rows_a_step(arguments), "processes": arguments.world_size}
