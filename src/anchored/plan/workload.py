"""What a configuration asks for: its data, prepared or only described, and how steps are made."""

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
    """`sft` where a configuration names what SFT alone has, else `pretrain`."""
    data = read_yaml(path)
    return "sft" if isinstance(data, dict) and {"objective", "replay"} & set(data) else "pretrain"


@dataclass(frozen=True)
class Data:
    """What is trained on.

    Args:
        objective: says whether annotations stand before the text.
        tokens: of an epoch.
        rows: that they lie in; of data not yet prepared, as if all were full.
        longest: tokens of the longest row.
        supervised: share of the tokens that carry loss.
        vocab_size: of the tokenizer.
        bytes: on disk.
        prepared: does it lie there already.
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
        """Do annotations stand in it."""
        return OBJECTIVES[self.objective].annotated


def data_of(config: TrainConfig, supervised: float | None = None) -> Data:
    """The data of a run.

    Args:
        config: the run.
        supervised: share of the tokens with loss where nothing is prepared; all by default.

    Raises:
        ConfigError: nothing is prepared, and the configuration says neither how many tokens there
            will be nor which tokenizer.
        DataError: the folder of the data is no prepared dataset.
    """
    described = to_prepare(config)
    folder = config.data if isinstance(config.data, Path) else config.out / DATA_FOLDER
    if (folder / MANIFEST).is_file():
        return _prepared(folder)
    if described is None:
        raise DataError(
            f"{folder}: no {MANIFEST}; run `anchored prepare` first, or describe under `data` what "
            "is to be prepared"
        )
    return _described(config, described, 1.0 if supervised is None else supervised)


def _prepared(folder: Path) -> Data:
    manifest = read_manifest(folder)
    split, tokens = manifest["splits"]["train"], manifest["splits"]["train"]["tokens"]
    if not tokens:
        raise DataError(f"{folder}: no token to train on")
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
            f"data.token_budget: missing, and nothing is prepared in {config.out}; say how many "
            "tokens there will be, or prepare the data first"
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
    """What `trainer.fsdp_config` says as text or in the file that it names."""
    try:
        return json.loads(given if given.startswith("{") else Path(given).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"trainer.fsdp_config: {given}: {error}; give a JSON file") from None


@dataclass(frozen=True)
class Layout:
    """How `config` makes steps on so many devices."""

    config: TrainConfig
    devices: int

    def setting(self, name: str) -> Any:
        """A field of `config.trainer`, or what it is by default."""
        return self.config.trainer.get(name, _TRAINER[name])

    @cached_property
    def rows(self) -> int:
        """Rows of one forward pass on one device."""
        return int(self.setting("per_device_train_batch_size"))

    @cached_property
    def accumulation(self) -> int:
        """Forward passes a step."""
        return int(self.setting("gradient_accumulation_steps"))

    @property
    def rows_a_step(self) -> int:
        """Rows of all devices that one step learns from."""
        return self.rows * self.accumulation * self.devices

    @property
    def sharded(self) -> bool:
        """Does each device hold a share of the weights."""
        return bool(self.setting("fsdp")) and self.devices > 1

    @property
    def autocast(self) -> bool:
        """Are products taken in half precision."""
        return bool(self.setting("bf16") or self.setting("fp16"))

    @property
    def checkpointing(self) -> bool:
        """Are activations computed again in the backward pass."""
        asked = self.setting("activation_checkpointing")
        if asked is None:
            asked = self.setting("gradient_checkpointing")  # its alias
        return bool(asked) or self._checkpointing_inside_fsdp

    @property
    def _checkpointing_inside_fsdp(self) -> bool:
        settings = self.setting("fsdp_config") or {}
        if isinstance(settings, str):  # as `TrainingArguments` reads it
            settings = _json(settings)
        return self.sharded and bool(settings.get("activation_checkpointing"))

    @property
    def deferred(self) -> bool:
        """Does the loss project, a few rows at a time."""
        return not (self.sharded or self.setting("deepspeed") or self.setting("fp16"))

    @property
    def attention(self) -> str:
        """How it is computed, by `transformers`' name."""
        return self.config.model.attention or "sdpa"

    @property
    def optimizer(self) -> Optimizer:
        """Whose states are held; what is not known is taken for AdamW, see `notes`."""
        if self.config.muon_learning_rate is not None:
            return "muon"
        return "sgd" if self.setting("optim") == "sgd" else "adamw"

    def steps(self, data: Data) -> int:
        """Optimizer steps of the run."""
        if self.setting("max_steps") > 0:
            return int(self.setting("max_steps"))
        return ceil(ceil(data.rows / self.rows_a_step) * float(self.setting("num_train_epochs")))

    def trained_tokens(self, data: Data) -> float:
        """Tokens that the run sees, those of later epochs again."""
        if self.setting("max_steps") > 0:
            return self.setting("max_steps") * self.rows_a_step * data.tokens / data.rows
        return data.tokens * float(self.setting("num_train_epochs"))

    def checkpoints(self, steps: int) -> int:
        """Checkpoints that lie there at most at once, the one being written among them."""
        if self.setting("save_strategy") == "no":
            return 0
        every = self.setting("save_steps")
        saved = ceil(steps / every) if every >= 1 else ceil(1 / every)
        if self.setting("save_strategy") == "epoch":
            saved = ceil(float(self.setting("num_train_epochs")))
        return min(saved, (self.setting("save_total_limit") or saved) + 1)
