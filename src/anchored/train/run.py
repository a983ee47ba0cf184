"""Pretraining and SFT: a prepared dataset, a model and the stock `transformers.Trainer`, composed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from pydantic import Field
from rich.console import Console
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from anchored.config import Config, versions
from anchored.data.collate import Collator
from anchored.data.prepare import PrepareConfig, load_prepared, prepare
from anchored.errors import ConfigError, DataError
from anchored.files import building, claim, write_json
from anchored.inspect import segment_view
from anchored.segments import OBJECTIVES
from anchored.tokenizer import AnchoredTokenizer
from anchored.train.models import ModelConfig, build_model
from anchored.train.monitor import LossByKind, Monitor, measure_matmul_peak, training_flops
from anchored.train.muon import muon_for
from anchored.train.replay import ReplayConfig, write_replay

MODEL_FOLDER = "model"
RECORD = "anchored.json"
_OURS = ("output_dir", "remove_unused_columns", "seed", "data_seed", "label_names")


class TrainConfig(Config):
    """One training run.

    Args:
        out: folder of the run: config.yaml, metrics.jsonl, checkpoint-*, model/.
        data: a folder made by `anchored prepare`, or what to prepare (it goes to `out`/data).
        model: what to start from.
        seed: weights, data order and, with inline data, preparation.
        muon_learning_rate: trains the hidden matrices by Muon at this rate, the rest by AdamW at
            `trainer.learning_rate`; None leaves the optimizer to `trainer.optim`. Not for sharded weights.
        trainer: goes to `transformers.TrainingArguments` as it is.
    """

    out: Path
    data: Path | PrepareConfig
    model: ModelConfig
    seed: int = 0
    muon_learning_rate: float | None = Field(None, gt=0)
    trainer: dict[str, Any] = Field(default_factory=dict)


class PretrainConfig(TrainConfig):
    """Pretraining from scratch, or continued from `model.init`."""


class SFTConfig(TrainConfig):
    """Supervised fine-tuning of `model.init` under one objective of `segments.OBJECTIVES`.

    Args:
        objective: overrides `data.objective`.
        replay: how annotations are sampled for `anchored-replay`; unused by the others.
    """

    data: PrepareConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    objective: str = "anchored"
    replay: ReplayConfig = ReplayConfig()


def pretrain(config: PretrainConfig) -> Path:
    """Prepares the data if need be, trains, and returns the folder of the final model. Resumes where it stopped.

    Raises:
        ConfigError, DataError, TokenizerMismatch: see `train`.
    """
    arguments = training_arguments(config)
    claim(config.out, config)
    if isinstance(config.data, PrepareConfig):
        return train(config, _prepared(config, config.data), arguments)
    return train(config, config.data, arguments)


def sft(config: SFTConfig) -> Path:
    """Like `pretrain`, on conversations under `config.objective`; replay annotations are sampled from `model.init` first.

    Raises:
        ConfigError: `model.init` is missing or the objective is unknown.
    """
    if config.model.init is None:
        raise ConfigError(
            "model.init: missing; SFT starts from a pretrained model folder or hub id"
        )
    if config.objective not in OBJECTIVES:
        raise ConfigError(f"objective: {config.objective!r} is not one of {', '.join(OBJECTIVES)}")
    arguments = training_arguments(config)
    claim(config.out, config)
    data = config.data.model_copy(
        update={
            "objective": config.objective,
            "tokenizer": config.data.tokenizer or config.model.init,
        }
    )
    share = OBJECTIVES[config.objective].replay_share
    if share:
        replay = write_replay(
            config.replay, config.model.init, data, share, config.out, config.seed
        )
        data = data.model_copy(update={"sources": (*data.sources, replay)})
    return train(config, _prepared(config, data), arguments)


def _prepared(config: TrainConfig, data: PrepareConfig) -> Path:
    folder = config.out / "data"
    if not folder.exists():
        prepare(data.model_copy(update={"out": folder}))
    return folder


def training_arguments(config: TrainConfig) -> TrainingArguments:
    """`config.trainer` over our defaults.

    Raises:
        ConfigError: a field that `TrainingArguments` does not know or refuses, or one that is not the user's to set.
    """
    for field in _OURS:
        if field in config.trainer:
            raise ConfigError(f"trainer.{field}: set by the run itself (out, seed); leave it out")
    defaults = {
        "logging_steps": 10,
        "save_total_limit": 2,
        "logging_nan_inf_filter": False,
        "report_to": "none",
    }
    try:
        return TrainingArguments(
            output_dir=str(config.out),
            remove_unused_columns=False,
            seed=config.seed,
            data_seed=config.seed,
            label_names=["labels"],
            **{**defaults, **config.trainer},
        )
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())[:300]}") from None


def train(config: TrainConfig, data: Path, arguments: TrainingArguments) -> Path:
    """Trains on a prepared dataset; returns the folder of the final model, at once if it is there already.

    Raises:
        DataError: no supervised token, or the dataset is not the one its manifest describes.
        TokenizerMismatch: the model was trained with another tokenizer than the dataset was encoded with.
    """
    final = config.out / MODEL_FOLDER
    if final.exists():
        return final
    tokenizer = AnchoredTokenizer.load(data / "tokenizer")
    dataset, manifest = load_prepared(data)
    if config.model.init is not None and (Path(config.model.init) / RECORD).is_file():
        tokenizer.check(read_record(Path(config.model.init))["tokenizer"], config.model.init)
    model = build_model(config.model, tokenizer, config.seed)
    trainer = compose(model, dataset, tokenizer, arguments, config.muon_learning_rate)
    if trainer.is_world_process_zero():
        announce(trainer, dataset, tokenizer, manifest)
    trainer.train(resume_from_checkpoint=newest_checkpoint(config.out))
    if trainer.is_world_process_zero():
        _save(trainer, final, config, tokenizer, manifest)
    return final


def compose(
    model: PreTrainedModel,
    dataset: Dataset,
    tokenizer: AnchoredTokenizer,
    arguments: TrainingArguments,
    muon_lr: float | None = None,
) -> Trainer:
    """The stock Trainer with our collator, loss record and monitor."""
    losses = LossByKind()
    model.loss_function = losses
    dtype = torch.bfloat16 if arguments.bf16 else torch.float32
    peak = measure_matmul_peak(arguments.device, dtype)
    callbacks: list[TrainerCallback] = [Monitor(Path(arguments.output_dir), model, losses, peak)]
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=dataset.with_format("numpy"),  # pyright: ignore[reportArgumentType]
        data_collator=Collator(tokenizer.control.pad),  # pyright: ignore[reportArgumentType]
        callbacks=callbacks,
        optimizers=(muon_for(model, arguments, muon_lr) if muon_lr else None, None),
    )


def announce(
    trainer: Trainer, dataset: Dataset, tokenizer: AnchoredTokenizer, manifest: dict[str, Any]
) -> None:
    """Shows the first row with its mask, and what the run will cost at the least."""
    console = Console(stderr=True)
    row = dataset[0]
    console.print(
        segment_view(row["input_ids"], row["labels"], row["kinds"], row["seq_lengths"], tokenizer)
    )
    arguments, tokens, supervised = (
        trainer.args,
        manifest["tokens"]["kept"],
        manifest["tokens"]["supervised"],
    )
    batch = (
        arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    )
    epochs = (
        arguments.max_steps * batch / len(dataset)
        if arguments.max_steps > 0
        else arguments.num_train_epochs
    )
    model: Any = trainer.model
    flops = epochs * training_flops(model, tokens, supervised)
    monitor = next(c for c in trainer.callback_handler.callbacks if isinstance(c, Monitor))
    console.print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {epochs:.2f} epochs of {tokens:,} tokens "
        f"({supervised:,} with loss): {flops:.2e} FLOPs, {flops / monitor.peak / arguments.world_size:,.0f} s at this "
        "machine's matmul peak; expect two to five times that"
    )


def newest_checkpoint(out: Path) -> str | None:
    """The latest checkpoint that was written whole (`trainer_state.json` is what Trainer writes last), or None."""
    whole = []
    for folder in out.glob("checkpoint-*"):
        try:
            state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        whole.append((state["global_step"], str(folder)))
    return max(whole)[1] if whole else None


def _save(
    trainer: Trainer,
    final: Path,
    config: TrainConfig,
    tokenizer: AnchoredTokenizer,
    manifest: dict[str, Any],
) -> None:
    objective = manifest["objective"]
    record = {
        "objective": objective,
        "annotated": OBJECTIVES[objective].annotated,
        "schema": manifest["schema"],
        "tokenizer": tokenizer.fingerprint,
        "config": config.model_dump(mode="json"),
        "versions": versions(),
    }
    with building(final) as folder:
        trainer.save_model(str(folder))
        tokenizer.save(folder)
        write_json(folder / RECORD, record)


def read_record(model: Path) -> dict[str, Any]:
    """What `anchored.json` beside a model says: objective, annotated, schema, tokenizer, config, versions.

    Raises:
        DataError: the folder has no such file, because it was not trained by this package.
    """
    path = model / RECORD
    if not path.is_file():
        raise DataError(
            f"{model}: no {RECORD}; not a model trained by `anchored pretrain` or `anchored sft`"
        )
    return json.loads(path.read_text(encoding="utf-8"))
