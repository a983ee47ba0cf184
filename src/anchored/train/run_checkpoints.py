"""Checkpoints of a run: finding the newest complete one, adapting it, handling failed writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, OPTIMIZER_NAME_BIN, TRAINER_STATE_NAME

from anchored.files import as_os_error, naming

SHARDED_WEIGHTS = "pytorch_model_fsdp.bin"


def newest_checkpoint(out: Path) -> str | None:
    """Return the latest complete checkpoint, or None."""
    steps = {str(folder): step_of(folder) for folder in out.glob("checkpoint-*")}
    return max(steps, key=steps.__getitem__) if any(step >= 0 for step in steps.values()) else None


def step_of(checkpoint: Path) -> int:
    """Return the step of a complete checkpoint, or -1 for an incomplete one.

    Trainer writes `trainer_state.json` last, but other processes may still be writing the state of
    their random numbers at that time.
    """
    if not all(map(is_zipfile, checkpoint.glob("rng_state*.pth"))):
        return -1
    try:
        return _trainer_state(checkpoint)["global_step"]
    except (OSError, ValueError):
        return -1


def _trainer_state(checkpoint: str | Path) -> dict[str, Any]:
    return json.loads((Path(checkpoint) / TRAINER_STATE_NAME).read_text(encoding="utf-8"))


def at_its_end(checkpoint: str) -> bool:
    """Return True if the run that wrote this checkpoint has taken all its steps."""
    state = _trainer_state(checkpoint)
    return state["global_step"] >= state["max_steps"]


def adapt_checkpoint(trainer: Trainer, checkpoint: Path) -> None:
    """Convert a checkpoint between sharded and whole weights, to match the trainer.

    If the conversion is killed, the checkpoint is still valid in one of the two forms. Every
    process must call this.
    """
    with trainer.args.main_process_first(local=False):
        if not trainer.args.process_index:
            found = (checkpoint / SHARDED_WEIGHTS).is_file()
            if found and not trainer.is_fsdp_enabled:
                _make_whole(checkpoint)
            if trainer.is_fsdp_enabled and not found:
                _make_sharded(trainer, checkpoint)


def _make_whole(checkpoint: Path) -> None:
    """Convert the optimizer's state, keyed by name; the whole weights are already there."""
    state = torch.load(checkpoint / OPTIMIZER_NAME_BIN, weights_only=True, mmap=True)
    _save(_by_position(state), checkpoint / OPTIMIZER_NAME)
    (checkpoint / SHARDED_WEIGHTS).unlink()
    (checkpoint / OPTIMIZER_NAME_BIN).unlink()


def _make_sharded(trainer: Trainer, checkpoint: Path) -> None:
    model: Any = trainer.model
    names = {id(p): name for name, p in model.named_parameters()}
    groups = trainer.create_optimizer().param_groups
    order = [names[id(p)] for group in groups for p in group["params"]]
    state = torch.load(checkpoint / OPTIMIZER_NAME, weights_only=True, mmap=True)
    _save(_by_name(state, order), checkpoint / OPTIMIZER_NAME_BIN)
    for file in checkpoint.glob("*.safetensors"):
        # Not strict: tied weights have one name only, and other files hold the other weights.
        model.load_state_dict(load_file(file), strict=False)
    _save(model.state_dict(), checkpoint / SHARDED_WEIGHTS)
    (checkpoint / OPTIMIZER_NAME).unlink()


def _by_position(state: dict[str, Any]) -> dict[str, Any]:
    """Key an optimizer's state by the position of each parameter, as `torch.optim` does."""
    order = [name for group in state["param_groups"] for name in group["params"]]
    return _renamed(state, {name: i for i, name in enumerate(order)})


def _by_name(state: dict[str, Any], order: Sequence[str]) -> dict[str, Any]:
    return _renamed(state, dict(enumerate(order)))


def _renamed(state: dict[str, Any], names: dict[Any, Any]) -> dict[str, Any]:
    groups = [{**g, "params": [names[p] for p in g["params"]]} for g in state["param_groups"]]
    return {"state": {names[p]: v for p, v in state["state"].items()}, "param_groups": groups}


def _save(data: Any, path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    torch.save(data, partial)
    partial.replace(path)


@contextmanager
def failed_writes_are_os_errors(out: Path) -> Iterator[None]:
    """Turn the errors by which safetensors and torch report a full disk into an `OSError`.

    Incomplete checkpoints are deleted: they are useless and would keep the disk full.
    """
    try:
        with naming(out):
            yield
    except (OSError, SafetensorError, RuntimeError) as error:
        failed = error if isinstance(error, OSError) else _failed_write(error, out)
        if failed is None:
            raise
        for folder in out.glob("checkpoint-*"):
            if step_of(folder) < 0:
                shutil.rmtree(folder, ignore_errors=True)
        raise failed from (None if failed is error else error)


def _failed_write(error: Exception, out: Path) -> OSError | None:
    if "PytorchStreamWriter" not in str(error) and "inline_container" not in str(error):
        return as_os_error(error, out)
    free = shutil.disk_usage(out).free / 2**20  # torch hides the system's error
    return OSError(
        f"{out}: cannot write checkpoint: {free:,.1f} MiB of the disk are free; free some space "
        "and run again to resume"
    )
