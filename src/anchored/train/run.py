"""Pretraining and SFT: prepared data, a model and the stock `transformers.Trainer`, composed."""

from __future__ import annotations

import difflib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from pydantic import Field, model_validator
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from safetensors import SafetensorError
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.distributed.fsdp import is_fsdp_enabled
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_callback import PrinterCallback

from anchored.config import Config, versions
from anchored.data.collate import Collator
from anchored.data.prepare import (
    NewTokenizer,
    PrepareConfig,
    SourceConfig,
    load_prepared,
    prepare,
    read_manifest,
)
from anchored.errors import ConfigError, DataError
from anchored.files import (
    as_os_error,
    building,
    claim,
    naming,
    released_if_unused,
    write_json,
)
from anchored.inspect import segment_view
from anchored.publish.card import write_card
from anchored.segments import OBJECTIVES
from anchored.tokenizer import AnchoredTokenizer
from anchored.train import RECORD
from anchored.train.allocator import keep_freed_memory
from anchored.train.attention import attend_within_documents, takes_flat_rows
from anchored.train.base_targets import BaseTargets
from anchored.train.checkpoints import check_checkpoint
from anchored.train.collapse_config import MonitorConfig
from anchored.train.counterfactual import write_counterfactuals
from anchored.train.layout import MAY_CHANGE, check_layout, check_same_rows, record, shard_on_cpu
from anchored.train.lora import check_lora, has_adapter, without_adapter
from anchored.train.models import ModelConfig, build_model, quiet_transformers, save_adapted
from anchored.train.monitor import (
    LossByKind,
    Monitor,
    ProgressBar,
    measure_matmul_peak,
    training_flops,
)
from anchored.train.muon import muon_for
from anchored.train.origins import origins
from anchored.train.projection import defer_projection
from anchored.train.replay import ReplayConfig, write_replay
from anchored.train.run_checkpoints import (
    adapt_checkpoint,
    at_its_end,
    newest_checkpoint,
    step_of,
)

MODEL_FOLDER = "model"
DATASET = "dataset.json"
_OURS = ("output_dir", "remove_unused_columns", "seed", "data_seed", "label_names")
DEFAULTS = {
    "logging_steps": 10,
    "save_total_limit": 2,
    "logging_nan_inf_filter": False,
    "report_to": "none",
    "disable_tqdm": True,
    "ddp_find_unused_parameters": False,
    "dataloader_pin_memory": torch.cuda.is_available(),
}


class TrainConfig(Config):
    """One training run.

    Args:
        out: folder of the run: config.yaml, metrics.jsonl, checkpoint-*, model/.
        data: a folder made by `anchored prepare`, or what to prepare (it goes to `out`/data).
        model: what to start from.
        seed: weights and data order.
        muon_learning_rate: trains the hidden matrices by Muon at this rate, the rest by AdamW at
            `trainer.learning_rate`; None leaves the optimizer to `trainer.optim`. Not for sharded
            weights.
        trainer: goes to `transformers.TrainingArguments` as it is.
        monitor: watches the model's answers for collapse while it trains; may change between runs.
    """

    out: Path
    data: Path | PrepareConfig
    model: ModelConfig
    seed: int = 0
    muon_learning_rate: float | None = Field(default=None, gt=0)
    trainer: dict[str, Any] = Field(default_factory=dict)
    monitor: MonitorConfig | None = None

    @model_validator(mode="after")
    def _adapter_alone(self) -> TrainConfig:
        if self.model.lora and self.muon_learning_rate:
            raise ValueError("muon_learning_rate is for whole matrices; leave it or lora out")
        if self.model.lora and self.trainer.get("fsdp"):
            raise ValueError("trainer.fsdp shards whole models; leave it or lora out")
        return self


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


def pretrain(config: PretrainConfig, quiet: bool = False) -> Path:
    """Prepares the data if need be, trains or resumes, and returns the folder of the final model.

    Raises:
        ConfigError: `config.trainer` is refused, or `config.out` holds another run.
        AnchoredError: see `train`.
    """
    arguments = training_arguments(config)
    check_layout(arguments, config.muon_learning_rate)
    with released_if_unused(config.out):
        with arguments.main_process_first(local=False):
            claim(config.out, config, free=(*MAY_CHANGE, "monitor"))
            _check_init(config, quiet)
            data = config.data
            if isinstance(data, PrepareConfig):
                if data.tokenizer is None:
                    data = data.model_copy(update={"tokenizer": config.model.init})
                _check_before_preparing(config, data)
                data = _prepared(config, data, quiet)
        return train(config, data, arguments, quiet)


def sft(config: SFTConfig, quiet: bool = False) -> Path:
    """Like `pretrain`, on conversations under `config.objective`.

    For `anchored-replay`, annotations are sampled from `model.init` first.

    Raises:
        ConfigError: `model.init` is missing or the objective is unknown; see `pretrain` too.
        AnchoredError: see `train`.
    """
    init = config.model.init
    if init is None:
        raise ConfigError(
            "model.init: missing; SFT starts from a pretrained model folder or hub id"
        )
    if config.objective not in OBJECTIVES:
        raise ConfigError(f"objective: {config.objective!r} is not one of {', '.join(OBJECTIVES)}")
    arguments = training_arguments(config)
    check_layout(arguments, config.muon_learning_rate)
    tokenizer = config.data.tokenizer or init
    data = config.data.model_copy(update={"objective": config.objective, "tokenizer": tokenizer})
    with released_if_unused(config.out):
        with arguments.main_process_first(local=False):
            claim(config.out, config, free=(*MAY_CHANGE, "monitor"))
            _check_init(config, quiet)
            _check_before_preparing(config, data)
            if OBJECTIVES[config.objective].replay:
                data = data.model_copy(update={"sources": _with_replay(config, init, data, quiet)})
            folder = _prepared(config, data, quiet)
        return train(config, folder, arguments, quiet)


def _with_replay(
    config: SFTConfig, init: str, data: PrepareConfig, quiet: bool
) -> tuple[SourceConfig, ...]:
    settings, arguments = config.replay, (init, data, config.out, config.seed, quiet)
    sources = data.sources
    if settings.counterfactual:
        sources = write_counterfactuals(settings, *arguments)
    if settings.share:
        sources = (*sources, write_replay(settings, *arguments))
    return sources


def _check_init(config: TrainConfig, quiet: bool) -> None:
    """Sees, before the first work of a run, that what it starts from can be trained."""
    begun = (config.out / "data").exists() or (config.out / DATASET).exists()
    if config.model.init is None or begun:
        return
    if config.model.lora:
        check_lora(config.model.quantize is not None)
    check_checkpoint(config.model.init, quiet)


def _check_before_preparing(config: TrainConfig, data: PrepareConfig) -> None:
    """Sees that `model.init` is there and has the tokenizer that the data is to be encoded with."""
    if config.model.init is None or (config.out / "data").exists():
        return
    if isinstance(data.tokenizer, NewTokenizer):
        raise ConfigError(
            f"data.tokenizer: a new one cannot be that of {config.model.init}; leave it out"
        )
    if data.tokenizer is not None:
        _check_tokenizer(config.model.init, AnchoredTokenizer.load(data.tokenizer))


def _prepared(config: TrainConfig, data: PrepareConfig, quiet: bool) -> Path:
    folder = config.out / "data"
    if not folder.exists():
        prepare(data.model_copy(update={"out": folder}), Console(stderr=True, quiet=quiet))
    return folder


def training_arguments(config: TrainConfig) -> TrainingArguments:
    """`config.trainer` over our defaults.

    Raises:
        ConfigError: a field that `TrainingArguments` does not know or refuses, or one that is not
            the user's to set.
    """
    check_trainer_fields(config)
    try:
        return TrainingArguments(
            output_dir=str(config.out),
            remove_unused_columns=False,
            seed=config.seed,
            data_seed=config.seed,
            label_names=["labels"],
            **{**DEFAULTS, **config.trainer},
        )
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())[:300]}") from None


def check_trainer_fields(config: TrainConfig) -> None:
    """Sees that `config.trainer` has fields of `TrainingArguments` alone, without building them.

    Raises:
        ConfigError: a field is unknown, of another type, or not the user's to set.
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
        raise ConfigError(f"trainer.{name}: {value!r} is not of type {kind.__name__}")


def train(
    config: TrainConfig, data: Path, arguments: TrainingArguments, quiet: bool = False
) -> Path:
    """Trains on a prepared dataset; returns the folder of the final model, at once if it is there.

    Goes on from the newest whole checkpoint in `config.out`.

    Raises:
        DataError: no supervised token, or the dataset is not the one its manifest describes.
        TokenizerMismatch: the model has another tokenizer than the dataset was encoded with.
        AnchoredError: the loss or the gradient is no longer finite.
        OSError: the disk is full.
    """
    manifest = read_manifest(data)
    _check_goes_on(config.out / DATASET, data, manifest, arguments)
    final = config.out / MODEL_FOLDER
    if final.exists():
        return final
    tokenizer = AnchoredTokenizer.load(data / "tokenizer")
    dataset, manifest = load_prepared(data, tokenizer)
    _check_tokenizer(config.model.init, tokenizer)
    checkpoint = newest_checkpoint(config.out)
    done = checkpoint is not None and at_its_end(checkpoint)
    start = checkpoint if done else None
    model = build_model(config.model, tokenizer, config.seed, start)
    now = {"splits": manifest["splits"], **record(arguments)}
    write_json(config.out / DATASET, now)  # from here on `out` is in use
    quiet = quiet or arguments.process_index > 0
    with quiet_transformers(), _failed_writes_are_os_errors(config.out):
        trainer = compose(model, dataset, tokenizer, arguments, config.muon_learning_rate)
        if learns_base_distribution(config):
            BaseTargets(model, tokenizer.control)
        if config.monitor:
            from anchored.train.collapse_monitor import monitor_of  # of the extra `evaluate`

            monitor_of(config.monitor, tokenizer, manifest).attach(trainer)
        if not quiet:
            announce_cost(trainer, len(dataset), manifest)
        if not done:  # Trainer would take one more step
            with _progress(quiet or not arguments.disable_tqdm) as progress:
                if not quiet:
                    collate: Any = trainer.data_collator
                    trainer.data_collator = FirstBatchShown(collate, tokenizer, progress.console)
                trainer.add_callback(ProgressBar(progress))
                if checkpoint is not None:
                    adapt_checkpoint(trainer, Path(checkpoint))
                trainer.train(resume_from_checkpoint=checkpoint)
        _save(trainer, final, config, tokenizer, manifest)
    return final


def learns_base_distribution(config: TrainConfig) -> bool:
    """Is a frozen copy of the base model asked for the targets of replayed annotations."""
    return (
        isinstance(config, SFTConfig)
        and OBJECTIVES[config.objective].replay
        and config.replay.share > 0
        and config.replay.targets == "distribution"
    )


def _check_tokenizer(init: str | None, tokenizer: AnchoredTokenizer) -> None:
    if init is not None:
        tokenizer.check(AnchoredTokenizer.load(init).fingerprint, init)


def _check_goes_on(
    file: Path, data: Path, manifest: dict[str, Any], arguments: TrainingArguments
) -> None:
    if not file.is_file():
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    if before["splits"] != manifest["splits"]:
        raise DataError(
            f"{data}: prepared anew since {file.parent} was trained on it; choose another output "
            "folder, or bring the old data back"
        )
    check_same_rows(before, file.parent, arguments)


def compose(
    model: PreTrainedModel,
    dataset: Dataset,
    tokenizer: AnchoredTokenizer,
    arguments: TrainingArguments,
    muon_lr: float | None = None,
) -> Trainer:
    """The stock Trainer with our collator, loss record and monitor."""
    shard_on_cpu(arguments)
    inner = without_adapter(model)
    if arguments.device.type == "cpu":
        keep_freed_memory()
        attend_within_documents(inner)
    losses = LossByKind(defer_projection(inner) if _plain(arguments) else None)
    inner.loss_function = losses
    dtype = torch.bfloat16 if arguments.bf16 else torch.float32
    peak = measure_matmul_peak(arguments.device, dtype) * arguments.world_size
    callbacks: list[TrainerCallback] = [
        Monitor(Path(str(arguments.output_dir)), model, losses, peak)
    ]
    collate = Collator(tokenizer.control.pad, takes_flat_rows(inner))
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=dataset.with_format("numpy"),  # pyright: ignore[reportArgumentType]
        data_collator=collate,  # pyright: ignore[reportArgumentType]
        callbacks=callbacks,
        optimizers=(muon_for(model, arguments, muon_lr) if muon_lr else None, None),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _plain(arguments: TrainingArguments) -> bool:
    """Weights whole on each device, the model run as written, no gradients that fp16 would lose."""
    sharded = arguments.fsdp or is_fsdp_enabled() or arguments.deepspeed
    return not (sharded or arguments.torch_compile or arguments.fp16)


class FirstBatchShown:
    """A collator that prints the first batch it is given, as text with its mask.

    With `dataloader_num_workers` each worker has a copy, and shows the first batch of its own.
    """

    def __init__(
        self,
        collate: Callable[[Sequence[Mapping[str, Any]]], dict[str, torch.Tensor]],
        tokenizer: AnchoredTokenizer,
        console: Console,
        rows: int = 2,
    ) -> None:
        # Not named `tokenizer`: Trainer would save that one beside its checkpoints.
        self._collate, self._decoder, self._console, self._rows = collate, tokenizer, console, rows
        self._shown = False

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """The batch of `collate`."""
        if not self._shown:
            self._shown = True
            for row in rows[: self._rows]:
                ids, labels, kinds = row["input_ids"], row["labels"], row["kinds"]
                view = segment_view(ids, labels, kinds, row["seq_lengths"], self._decoder)
                self._console.print(view)
            self._console.print(f"first batch: {min(self._rows, len(rows))} of {len(rows)} rows")
        return self._collate(rows)


def announce_cost(trainer: Trainer, rows: int, manifest: dict[str, Any]) -> None:
    """Says what the run will cost at the least; the dataset has `rows` rows."""
    arguments, epochs = trainer.args, trainer.args.num_train_epochs
    tokens, supervised = manifest["tokens"]["kept"], manifest["tokens"]["supervised"]
    batch = (
        arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    )
    if arguments.max_steps > 0:
        epochs = arguments.max_steps * batch / rows
    model: Any = trainer.model
    flops = epochs * training_flops(model, tokens, supervised)
    monitor = next(c for c in trainer.callback_handler.callbacks if isinstance(c, Monitor))
    Console(stderr=True).print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {epochs:.2f} epochs of "
        f"{tokens:,} tokens ({supervised:,} with loss): {flops:.2e} FLOPs, "
        f"{flops / monitor.peak:,.0f} s at this machine's matmul peak; expect two to five times "
        "that"
    )


def _progress(hidden: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    hidden = hidden or not console.is_interactive
    return Progress(*columns, console=console, transient=True, disable=hidden)


@contextmanager
def _failed_writes_are_os_errors(out: Path) -> Iterator[None]:
    """A full disk reaches us as an error of safetensors or of torch's zip writer.

    Half a checkpoint is of no use, and would keep the disk full.
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
    free = shutil.disk_usage(out).free / 2**20  # torch does not say what the system said
    return OSError(
        f"{out}: cannot write checkpoint: {free:,.1f} MiB of the disk are free; make room and run "
        "again to go on"
    )


def _save(
    trainer: Trainer,
    final: Path,
    config: TrainConfig,
    tokenizer: AnchoredTokenizer,
    manifest: dict[str, Any],
) -> None:
    main = trainer.is_world_process_zero()
    with building(final) if main else nullcontext(final) as folder:
        adapted = has_adapter(trainer.model)
        if not adapted:
            trainer.save_model(str(folder))  # sharded weights are gathered from all processes
        if main:
            if adapted:
                save_adapted(trainer.model, folder, config.model, tokenizer, config.seed)
            else:
                (folder / TRAINING_ARGS_NAME).unlink()  # a pickle; our record says the same
            record = _record(config, manifest)
            tokenizer.save(folder, annotated=record["annotated"])
            write_json(folder / RECORD, record)
            write_card(folder, config.out.name, record, tokenizer)


def _record(config: TrainConfig, manifest: dict[str, Any]) -> dict[str, Any]:
    return {
        **origins(manifest, config.model.init),
        "config": config.model_dump(mode="json"),
        "versions": versions(),
    }


def read_record(model: Path) -> dict[str, Any]:
    """What `anchored.json` beside a model says.

    Objective, annotated, schema, tokenizer, base_model, datasets, tokens, config and versions.

    Raises:
        DataError: the folder has no such file, because it was not trained by this package.
    """
    path = model / RECORD
    if not path.is_file():
        raise DataError(
            f"{model}: no {RECORD}; not a model trained by `anchored pretrain` or `anchored sft`"
        )
    return json.loads(path.read_text(encoding="utf-8"))
