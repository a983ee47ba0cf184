"""How a training run lies on its processes, and what may change about it between two starts.

What a step learns is settled by the rows of all processes together. So a run goes on exactly with
another number of processes, another split of the same rows into batches, or with weights sharded
where they were whole; it does not with other rows a step, and that is refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from accelerate.utils import DistributedType
from transformers import TrainingArguments

from anchored.errors import ConfigError

# What a run may be started again with: it says where rows and weights lie, not what is learnt.
MAY_CHANGE = (
    "trainer.per_device_train_batch_size",
    "trainer.gradient_accumulation_steps",
    "trainer.activation_checkpointing",
    "trainer.fsdp",
    "trainer.fsdp_config",
)
_WHOLE = "FULL_STATE_DICT"


def rows_a_step(arguments: TrainingArguments) -> int:
    """Rows of all processes that one optimizer step learns from."""
    each = arguments.train_batch_size * arguments.gradient_accumulation_steps
    return each * arguments.world_size


def is_sharded(arguments: TrainingArguments) -> bool:
    """Are weights sharded, by `trainer.fsdp` or by `accelerate launch`."""
    launched = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    return bool(arguments.fsdp) or launched


def check_layout(arguments: TrainingArguments, muon_learning_rate: float | None) -> None:
    """Sees, before any data work, that sharded weights can be trained as asked.

    Raises:
        ConfigError: there is one process, Muon is asked for, or checkpoints would be in shards.
    """
    if not is_sharded(arguments):
        return
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
    settings: Any = arguments.fsdp_config or {}
    kind = settings.get("state_dict_type") or os.environ.get("FSDP_STATE_DICT_TYPE", _WHOLE)
    if kind != _WHOLE:
        raise ConfigError(
            f"trainer.fsdp_config.state_dict_type: {kind}: use {_WHOLE}, so that checkpoints can "
            "be read by any number of processes"
        )


def shard_on_cpu(arguments: TrainingArguments) -> None:
    """Lets `accelerate` shard weights between processes without an accelerator too.

    It has FSDP for a list of devices that lacks the CPU, and on a CPU falls back to whole weights
    without a word. The backend (gloo) is settled by now.
    """
    state: Any = arguments.distributed_state
    if is_sharded(arguments) and state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU


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
