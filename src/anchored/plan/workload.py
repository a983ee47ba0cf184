"""The workload of a configuration: its data, prepared or only described, and its steps."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from anchored.config import read_yaml
from anchored.data.prepare import NewTokenizer, PrepareConfig, read_manifest
from anchored.data.store import MANIFEST
from anchored.errors import ConfigError, DataError
from anchored.plan.footprint import Optimizer
from anchored.segments import OBJECTIVES
from anchored.tokenizer import AnchoredTokenizer
from anchored.train import DATA_FOLDER
from anchored.train.config import DEFAULTS, TrainConfig, to_prepare

_PREPARED_BYTES_A_TOKEN = 4 + 4 + 1  # input_ids, labels, kinds
_TRAINER = {f.name: f.default for f in fields(TrainingArguments)} | DEFAULTS


def stage_of(path: Path) -> str:
    """Return `sft` if a configuration has a field that only SFT has, else `pretrain`."""
    data = read_yaml(path)
    return "sft" if isinstance(data, dict) and {"objective", "replay"} & set(data) else "pretrain"


@dataclass(frozen=True)
class Data:
    """The data of a run.

    Args:
        objective: the objective, which determines whether annotations precede the text.
        tokens: tokens per epoch.
        rows: number of rows; if not yet prepared, as if all rows were full.
        longest: tokens in the longest row.
        supervised: share of the tokens with loss.
        vocab_size: vocabulary size of the tokenizer.
        bytes: size on disk.
        prepared: True if the data is already prepared.
    """

    objective: str
    tokens: int
    rows: float
    longest: int
    supervised: float
    vocab_size: int
    bytes: int
    prepared: bool

    @property
    def annotated(self) -> bool:
        """True if the data contains annotations."""
        return OBJECTIVES[self.objective].annotated


def data_of(config: TrainConfig, supervised: float | None = None) -> Data:
    """Read or estimate the data of a run.

    Args:
        config: the configuration of the run.
        supervised: share of the tokens with loss, if the data is not prepared; 1 by default.

    Raises:
        ConfigError: the data is not prepared, and the configuration lacks the number of tokens or
            the tokenizer.
        DataError: the folder of the data is not a prepared dataset.
    """
    described = to_prepare(config)
    folder = config.data if isinstance(config.data, Path) else config.out / DATA_FOLDER
    if (folder / MANIFEST).is_file():
        return _prepared(folder)
    if described is None:
        raise DataError(
            f"{folder}: not a prepared dataset ({MANIFEST} is missing); run `anchored prepare` "
            "first, or describe the data to prepare under `data`"
        )
    return _described(config, described, 1.0 if supervised is None else supervised)


def _prepared(folder: Path) -> Data:
    manifest = read_manifest(folder)
    split, tokens = manifest["splits"]["train"], manifest["splits"]["train"]["tokens"]
    if not tokens:
        raise DataError(f"{folder}: has no tokens to train on; prepare it again")
    return Data(
        objective=manifest["objective"],
        tokens=tokens,
        rows=split["rows"],
        longest=split["longest_row"],
        supervised=split["supervised"] / tokens,
        vocab_size=manifest["tokenizer"]["vocab_size"],
        bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        prepared=True,
    )


def _described(config: TrainConfig, data: PrepareConfig, supervised: float) -> Data:
    if data.token_budget is None:
        raise ConfigError(
            f"data.token_budget: missing, and no data is prepared in {config.out}; give the number "
            "of tokens, or prepare the data first"
        )
    return Data(
        objective=data.objective,
        tokens=data.token_budget,
        rows=data.token_budget / data.max_length,
        longest=data.max_length,
        supervised=supervised,
        vocab_size=_vocab_size(data),
        bytes=data.token_budget * _PREPARED_BYTES_A_TOKEN,
        prepared=False,
    )


def _vocab_size(data: PrepareConfig) -> int:
    if isinstance(data.tokenizer, NewTokenizer):
        return data.tokenizer.vocab_size
    if data.tokenizer is None:
        raise ConfigError("data.tokenizer: missing; give a folder, a hub id or {vocab_size: ...}")
    return len(AnchoredTokenizer.load(data.tokenizer))


def _json(given: str) -> dict[str, Any]:
    """Read `trainer.fsdp_config`, given as JSON text or as the path of a file."""
    try:
        return json.loads(given if given.startswith("{") else Path(given).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"trainer.fsdp_config: {given}: {error}; give a JSON file") from None


@dataclass(frozen=True)
class Layout:
    """The layout of the steps of `config` on a number of devices."""

    config: TrainConfig
    devices: int

    def setting(self, name: str) -> Any:
        """Return a field of `config.trainer`, or its default."""
        return self.config.trainer.get(name, _TRAINER[name])

    @cached_property
    def rows(self) -> int:
        """Rows of one forward pass on one device."""
        return int(self.setting("per_device_train_batch_size"))

    @cached_property
    def accumulation(self) -> int:
        """Forward passes per step."""
        return int(self.setting("gradient_accumulation_steps"))

    @property
    def rows_a_step(self) -> int:
        """Rows per step, over all devices."""
        return self.rows * self.accumulation * self.devices

    @property
    def sharded(self) -> bool:
        """True if each device holds only a share of the weights."""
        return bool(self.setting("fsdp")) and self.devices > 1

    @property
    def autocast(self) -> bool:
        """True if products are computed in half precision."""
        return bool(self.setting("bf16") or self.setting("fp16"))

    @property
    def checkpointing(self) -> bool:
        """True if activations are recomputed in the backward pass."""
        asked = self.setting("activation_checkpointing")
        if asked is None:
            asked = self.setting("gradient_checkpointing")  # its alias
        return bool(asked) or self._checkpointing_inside_fsdp

    @property
    def _checkpointing_inside_fsdp(self) -> bool:
        settings = self.setting("fsdp_config") or {}
        if isinstance(settings, str):  # `TrainingArguments` accepts text or a path
            settings = _json(settings)
        return self.sharded and bool(settings.get("activation_checkpointing"))

    @property
    def deferred(self) -> bool:
        """True if the loss projects a few rows at a time."""
        return not (self.sharded or self.setting("deepspeed") or self.setting("fp16"))

    @property
    def attention(self) -> str:
        """Name of the attention implementation in `transformers`."""
        return self.config.model.attention or "sdpa"

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer whose states are counted; an unknown one counts as AdamW, see `notes`."""
        if self.config.muon_learning_rate is not None:
            return "muon"
        return "sgd" if self.setting("optim") == "sgd" else "adamw"

    def steps(self, data: Data) -> int:
        """Return the number of optimizer steps of the run."""
        if self.setting("max_steps") > 0:
            return int(self.setting("max_steps"))
        return ceil(ceil(data.rows / self.rows_a_step) * float(self.setting("num_train_epochs")))

    def trained_tokens(self, data: Data) -> float:
        """Return the number of tokens that the run processes, over all epochs."""
        if self.setting("max_steps") > 0:
            return self.setting("max_steps") * self.rows_a_step * data.tokens / data.rows
        return data.tokens * float(self.setting("num_train_epochs"))

    def checkpoints(self, steps: int) -> int:
        """Return the maximum number of checkpoints on disk, including the one being written."""
        if self.setting("save_strategy") == "no":
            return 0
        every = self.setting("save_steps")
        saved = ceil(steps / every) if every >= 1 else ceil(1 / every)
        if self.setting("save_strategy") == "epoch":
            saved = ceil(float(self.setting("num_train_epochs")))
        return min(saved, (self.setting("save_total_limit") or saved) + 1)
