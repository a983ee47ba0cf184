"""The layout of a training run on processes, and what may change when a run resumes.

The rows of all processes together determine what a step learns. So a run resumes exactly with
another number of processes, another split of the same rows into batches, or sharded instead of
whole weights. With another number of rows per step it does not, and this is refused.
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

# Fields that may change when a run resumes: the placement of rows and weights, saving and reading,
# but nothing that affects what is learnt.
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
    """Return the number of rows, over all processes, in one optimizer step."""
    each = arguments.train_batch_size * arguments.gradient_accumulation_steps
    return each * arguments.world_size


def is_sharded(arguments: TrainingArguments) -> bool:
    """Return True if weights are sharded, by `trainer.fsdp` or by `accelerate launch`."""
    launched = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    return bool(arguments.fsdp) or launched


def check_layout(
    arguments: TrainingArguments, adapter: bool, muon_learning_rate: float | None
) -> None:
    """Check, before any data work, that the processes and devices support the configuration.

    Raises:
        ConfigError: one process has several devices; several processes are not connected; DeepSpeed
            shards weights; or FSDP is set for one process, an adapter or Muon, or would write
            sharded checkpoints.
    """
    started = int(os.environ.get("WORLD_SIZE") or 1)
    if started > arguments.world_size:
        raise ConfigError(
            f"{started} processes were started (WORLD_SIZE), but each would train alone and write "
            "to the same folder; start them with torchrun or accelerate launch, and on CPUs leave "
            "trainer.use_cpu=false out"
        )
    if arguments.n_gpu > 1:
        raise ConfigError(
            f"{arguments.n_gpu} devices but one process; start one process per device (torchrun "
            f"--nproc-per-node {arguments.n_gpu} -m anchored ...), or choose a device with "
            "CUDA_VISIBLE_DEVICES=0"
        )
    deepspeed: Any = getattr(arguments, "deepspeed_plugin", None)
    if deepspeed is not None and deepspeed.zero_stage == 3:
        raise ConfigError(
            "trainer.deepspeed: ZeRO-3 shards weights, which is supported only with trainer.fsdp; "
            "use that or a lower stage"
        )
    if is_sharded(arguments):
        _check_sharded(arguments, adapter, muon_learning_rate)


def _check_sharded(
    arguments: TrainingArguments, adapter: bool, muon_learning_rate: float | None
) -> None:
    if arguments.world_size == 1:
        raise ConfigError(
            "trainer.fsdp: sharding needs several processes, but this is the only one; start them "
            "with torchrun or accelerate launch, or add trainer.fsdp=null"
        )
    if muon_learning_rate is not None:
        raise ConfigError(
            f"muon_learning_rate: {muon_learning_rate}: Muon needs whole matrices, but "
            "trainer.fsdp shards them; leave one of the two out"
        )
    if adapter:
        raise ConfigError("model.lora: not supported with trainer.fsdp; train the adapter with DDP")
    where, kind = _state_dict_type(arguments)
    if kind != _WHOLE:
        raise ConfigError(
            f"{where}: {kind}: use {_WHOLE}, so that any number of processes can read the "
            "checkpoints"
        )


def _state_dict_type(arguments: TrainingArguments) -> tuple[str, str]:
    """Return the setting that determines how sharded weights are saved, and its value.

    The setting of `accelerate launch` applies if `trainer.fsdp` is empty; its default depends on
    the FSDP version.
    """
    if arguments.fsdp:
        settings: Any = arguments.fsdp_config
        return "trainer.fsdp_config.state_dict_type", settings.get("state_dict_type", _WHOLE)
    default = _SHARDED if os.environ.get("FSDP_VERSION") == "2" else _WHOLE
    name = "FSDP_STATE_DICT_TYPE"
    return f"{name} (accelerate's fsdp_state_dict_type)", os.environ.get(name, default)


def reduce_in_float32(accelerator: Accelerator) -> None:
    """Make FSDP2 sum gradients and count tokens in float32, whatever the model computes in.

    `accelerate` uses bfloat16 for the sums over batches and processes, for the loss, and for the
    number of tokens that the loss is divided by, which it rounds by up to 0.2 %. Inputs need no
    cast, because the model runs under autocast too.
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
    """Make `accelerate` shard weights between processes on CPUs as well.

    It supports FSDP for a list of device types without the CPU, and silently falls back to whole
    weights there. The backend (gloo) is already chosen at this point.
    """
    state: Any = arguments.distributed_state
    if is_sharded(arguments) and state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU


class WorkersSeededApart(TrainerCallback):
    """A callback that seeds data workers from a separate generator.

    Workers are seeded once per epoch, or only once if they persist. With the global generator,
    their lifetime would therefore change the random numbers of dropout.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: Any, control: Any, **given: Any
    ) -> None:
        """Give the data loader its own generator before the first row is read."""
        loader = given["train_dataloader"]
        getattr(loader, "base_dataloader", loader).generator = torch.Generator()


def check_same_rows(before: dict[str, Any], out: Path, arguments: TrainingArguments) -> None:
    """Check that steps have as many rows as in `before`, the record of an earlier start.

    Raises:
        ConfigError: they have more or fewer rows.
    """
    then, now = before.get("rows_a_step", rows_a_step(arguments)), rows_a_step(arguments)
    if then == now:
        return
    each, rest = divmod(then, arguments.world_size)
    way_out = (
        f"start a number of processes that is a divisor of {then}"
        if rest
        else "set trainer.per_device_train_batch_size times trainer.gradient_accumulation_steps "
        f"to {each}"
    )
    raise ConfigError(
        f"{out}: trained with {then} rows per step on {_processes(before['processes'])}, now "
        f"{now} on {_processes(arguments.world_size)}; {way_out}, or choose another output folder"
    )


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def record(arguments: TrainingArguments) -> dict[str, Any]:
    """Return the record that `check_same_rows` compares."""
    return {"rows_a_step": rows_a_step(arguments), "processes": arguments.world_size}
