"""The configuration of `anchored pretrain` and `anchored sft`, with the trainer's arguments."""

from __future__ import annotations

import difflib
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field, model_validator
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from anchored.config import Config
from anchored.data.prepare import PrepareConfig
from anchored.data.readers import ObjectiveName
from anchored.errors import ConfigError
from anchored.models.build import ModelConfig
from anchored.segments import OBJECTIVES
from anchored.step.losses import CROSS_ENTROPY, LOSSES
from anchored.train import DATA_FOLDER
from anchored.train.replay import ReplayConfig

_OURS = ("output_dir", "remove_unused_columns", "seed", "data_seed", "label_names")
DEFAULTS = {
    "logging_steps": 10,
    "save_total_limit": 2,
    "logging_nan_inf_filter": False,
    "report_to": "none",
    "disable_tqdm": True,
    "ddp_find_unused_parameters": False,
    "use_cpu": not torch.accelerator.is_available(),  # or several processes do not communicate
    "dataloader_pin_memory": torch.cuda.is_available(),
    "accelerator_config": {"non_blocking": torch.cuda.is_available()},
}


def _known_loss(name: str) -> str:
    if name not in LOSSES:
        raise ValueError(f"use one of {', '.join(LOSSES)}")
    return name


LossName = Annotated[str, AfterValidator(_known_loss)]


class CollapseConfig(Config):
    """When the collapse monitor measures, how much it samples, and what it does on collapse.

    Attributes:
        every: least number of steps between measurements; the budget may increase it.
        samples: answers to each prompt.
        max_new_tokens: length limit of each answer.
        budget: share of the time of all training steps that the monitor may take, the baseline
            included; None for no limit.
        stop_below: stops training once less than this share of the baseline's semantic entropy is
            kept, that is, once the whole 95 % interval is below it.
        checkpoint_below: saves a checkpoint when the share kept is first below this, in the same
            sense.
        embedder: embedder of `dissimilarity`; see `models.embedders.load_embedder`.
        seed: seed of the samples.
        batch_size: largest number of answers sampled together; they do not depend on it.
    """

    every: int = Field(default=50, ge=1)
    samples: int = Field(default=16, ge=2)
    max_new_tokens: int = Field(default=64, ge=1)
    budget: float | None = Field(default=0.05, gt=0)
    stop_below: float | None = Field(default=None, gt=0)
    checkpoint_below: float | None = Field(default=None, gt=0)
    embedder: str = "static"
    seed: int = 0
    batch_size: int = Field(default=128, ge=1)


class MonitorConfig(CollapseConfig):
    """The `monitor` of a training run.

    Attributes:
        prompts: the user's prompts; an empty one samples a document.
        attributes: `module:function` that reads `{attribute: value}` from a text; without it,
            answers are compared by their words.
    """

    prompts: tuple[str, ...] = Field(min_length=1)
    attributes: str | None = None


class TrainConfig(Config):
    """One training run.

    Attributes:
        out: folder of the run: config.yaml, metrics.jsonl, checkpoint-*, model/.
        data: a folder made by `anchored prepare`, or a configuration to prepare in `out`/data.
        model: the model to start from.
        seed: seed of the weights and the data order.
        loss: name of the loss in `step.losses.LOSSES`.
        muon_learning_rate: trains the hidden matrices with Muon at this rate, the rest with AdamW
            at `trainer.learning_rate`; None leaves the optimizer to `trainer.optim`. Not for
            sharded weights.
        trainer: passed to `transformers.TrainingArguments` unchanged.
        monitor: measures the diversity of the model's answers during training; may change when a
            run is resumed.
    """

    out: Path
    data: Path | PrepareConfig
    model: ModelConfig
    seed: int = 0
    loss: LossName = CROSS_ENTROPY
    muon_learning_rate: float | None = Field(default=None, gt=0)
    trainer: dict[str, Any] = Field(default_factory=dict)
    monitor: MonitorConfig | None = None

    @model_validator(mode="after")
    def _adapter_alone(self) -> TrainConfig:
        if self.model.lora and self.muon_learning_rate:
            raise ValueError("muon_learning_rate is for whole matrices; remove it or model.lora")
        return self


class PretrainConfig(TrainConfig):
    """Pretraining from scratch, or continued from `model.init`."""


class SFTConfig(TrainConfig):
    """Supervised fine-tuning of `model.init` under one objective of `segments.OBJECTIVES`.

    Attributes:
        objective: overrides `data.objective`.
        replay: how annotations are sampled for `anchored-replay`; unused by the others.
    """

    data: PrepareConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    objective: ObjectiveName = "anchored"
    replay: ReplayConfig = ReplayConfig()


def to_prepare(config: TrainConfig) -> PrepareConfig | None:
    """Return the configuration of a run's data; None if `config.data` is a folder.

    The tokenizer is that of `model.init` unless `data` names one; the objective is that of SFT.
    """
    if isinstance(config.data, Path):
        return None
    settings = {
        "out": config.out / DATA_FOLDER,
        "tokenizer": config.data.tokenizer or config.model.init,
    }
    if isinstance(config, SFTConfig):
        settings["objective"] = config.objective
    return config.data.model_copy(update=settings)


def learns_base_distribution(config: TrainConfig) -> bool:
    """True if a frozen copy of the base model gives the targets of replayed annotations."""
    return (
        isinstance(config, SFTConfig)
        and OBJECTIVES[config.objective].replay
        and config.replay.share > 0
        and config.replay.targets == "distribution"
    )


def training_arguments(config: TrainConfig) -> TrainingArguments:
    """Build the `TrainingArguments` from `config.trainer` and our defaults.

    Raises:
        ConfigError: `TrainingArguments` does not know or refuses a field, or the run sets it.
    """
    check_trainer_fields(config)
    try:
        arguments = TrainingArguments(
            output_dir=str(config.out),
            remove_unused_columns=False,
            seed=config.seed,
            data_seed=config.seed,
            label_names=["labels"],
            **{**DEFAULTS, **config.trainer},
        )
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())[:300]}") from None
    if arguments.save_only_model and arguments.save_strategy != SaveStrategy.NO:
        raise ConfigError(
            "trainer.save_only_model: a run cannot resume from checkpoints without its optimizer; "
            "leave it out, or add trainer.save_strategy=no"
        )
    if (strategy := IntervalStrategy(arguments.eval_strategy)) != IntervalStrategy.NO:
        raise ConfigError(
            f"trainer.eval_strategy: {strategy.value!r}: a run has no data to evaluate on; "
            "leave it out (see `monitor` for measurements in a run, `anchored evaluate` after it)"
        )
    return arguments


def check_trainer_fields(config: TrainConfig) -> None:
    """Check that `config.trainer` has only fields of `TrainingArguments`, without building it.

    Raises:
        ConfigError: a field is unknown, of another type, or set by the run.
    """
    for name, value in config.trainer.items():
        _check_trainer_field(name, value)


def _check_trainer_field(name: str, value: Any) -> None:
    known = {field.name: field.type for field in fields(TrainingArguments) if field.init}
    if name in _OURS:
        raise ConfigError(f"trainer.{name}: set by the run itself (out, seed); leave it out")
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "see transformers.TrainingArguments"
        raise ConfigError(f"trainer.{name}: unknown field; {hint}")
    kind = known[name]
    if kind in (bool, int, float) and not isinstance(value, bool | int | float):
        raise ConfigError(f"trainer.{name}: {value!r} is not of type {kind.__name__}; give one")
