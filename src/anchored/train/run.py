"""Pretraining and SFT: prepare the data, then train a model with the stock `Trainer`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME

from anchored.config import versions
from anchored.data.prepare import (
    PrepareConfig,
    SourceConfig,
    load_prepared,
    prepare,
    read_manifest,
)
from anchored.errors import DataError
from anchored.files import building, claim, released_if_unused, write_json
from anchored.models import MODEL_FOLDER
from anchored.models.build import build_model, quiet_transformers, save_adapted
from anchored.models.lora import has_adapter
from anchored.models.record import origins, save_beside
from anchored.segments import OBJECTIVES
from anchored.tokenizer import AnchoredTokenizer
from anchored.train import DATA_FOLDER
from anchored.train.base_targets import BaseTargets
from anchored.train.compose import compose
from anchored.train.config import (
    MonitorConfig,
    SFTConfig,
    TrainConfig,
    learns_base_distribution,
    to_prepare,
    training_arguments,
)
from anchored.train.counterfactual import write_counterfactuals
from anchored.train.layout import MAY_CHANGE, check_layout, check_same_rows, record
from anchored.train.prepare_ahead import check_encoding, check_init, check_tokenizer
from anchored.train.replay import write_replay
from anchored.train.run_checkpoints import (
    adapt_checkpoint,
    at_its_end,
    failed_writes_are_os_errors,
    newest_checkpoint,
)
from anchored.train.shown import FirstBatchShown, ProgressBar, announce_cost, progress

DATASET = "dataset.json"


@dataclass(frozen=True, slots=True)
class Hooks:
    """Functions of higher layers that a run calls; see `anchored.workflow`.

    Attributes:
        watch: attaches the configured monitor to the trainer.
        describe: writes the model card into the model's folder before the folder gets its name.
    """

    watch: Callable[[MonitorConfig, AnchoredTokenizer, dict[str, Any], Trainer], None]
    describe: Callable[[Path, str, dict[str, Any], AnchoredTokenizer], object]


def run(config: TrainConfig, hooks: Hooks, quiet: bool = False) -> Path:
    """Prepare the data if needed, train or resume, and return the folder of the final model.

    Raises:
        ConfigError: `config.trainer` is refused, `config.out` holds another run, or an SFT run has
            no `model.init`.
        AnchoredError: see `train`.
    """
    arguments = training_arguments(config)
    check_layout(arguments, config.model.lora is not None, config.muon_learning_rate)
    data = config.data if isinstance(config.data, Path) else config.out / DATA_FOLDER
    with released_if_unused(config.out):
        if arguments.process_index == 0:
            claim(config.out, config, free=(*MAY_CHANGE, "monitor"))
            if not (config.out / DATASET).exists():
                check_init(config, quiet)
            _prepare(config, quiet)
        elif data is not config.data:
            wait_for(data)
        return train(config, data, arguments, hooks, quiet)


def wait_for(folder: Path) -> None:
    """Wait until another process, perhaps on another machine, has made `folder`.

    Not a barrier, which would end after `trainer.ddp_timeout`: preparation may take hours.
    """
    while not folder.exists():
        time.sleep(1)


def _prepare(config: TrainConfig, quiet: bool) -> None:
    data = to_prepare(config)
    if data is None:
        return
    check_encoding(config, data)
    if isinstance(config, SFTConfig) and OBJECTIVES[config.objective].replay:
        data = data.model_copy(update={"sources": _with_replay(config, data, quiet)})
    if not (config.out / DATA_FOLDER).exists():
        prepare(data, Console(stderr=True, quiet=quiet))


def _with_replay(config: SFTConfig, data: PrepareConfig, quiet: bool) -> tuple[SourceConfig, ...]:
    assert config.model.init is not None  # checked by `check_init`
    settings = config.replay
    arguments = (config.model.init, data, config.out, config.seed, quiet)
    sources = data.sources
    if settings.counterfactual:
        sources = write_counterfactuals(settings, *arguments)
    if settings.share:
        sources = (*sources, write_replay(settings, *arguments))
    return sources


def train(
    config: TrainConfig,
    data: Path,
    arguments: TrainingArguments,
    hooks: Hooks,
    quiet: bool = False,
) -> Path:
    """Train on a prepared dataset and return the final model's folder, at once if it exists.

    A run resumes from the newest complete checkpoint in `config.out`.

    Raises:
        DataError: no token carries loss, or the dataset is not the one its manifest describes.
        TokenizerMismatch: the dataset was encoded with a tokenizer other than the model's.
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
    check_tokenizer(config.model.init, tokenizer)
    checkpoint = newest_checkpoint(config.out)
    done = checkpoint is not None and at_its_end(checkpoint)
    start = checkpoint if done else None
    model = build_model(config.model, tokenizer, config.seed, start)
    now = {"splits": manifest["splits"], **record(arguments)}
    if arguments.process_index == 0:
        write_json(config.out / DATASET, now)  # from now on `out` is in use
    quiet = quiet or arguments.process_index > 0
    with quiet_transformers(), failed_writes_are_os_errors(config.out):
        trainer = compose(
            model, dataset, tokenizer, arguments, config.muon_learning_rate, config.loss
        )
        if learns_base_distribution(config):
            BaseTargets(model, tokenizer.control, trainer.accelerator.autocast)
        if config.monitor:
            hooks.watch(config.monitor, tokenizer, manifest, trainer)
        if not quiet:
            announce_cost(trainer, len(dataset), manifest)
        if not done:  # Trainer would take one more step
            with progress(quiet or not arguments.disable_tqdm) as bar:
                if not quiet:
                    collate: Any = trainer.data_collator
                    trainer.data_collator = FirstBatchShown(collate, tokenizer, bar.console)
                trainer.add_callback(ProgressBar(bar))
                if checkpoint is not None:
                    adapt_checkpoint(trainer, Path(checkpoint))
                trainer.train(resume_from_checkpoint=checkpoint)
        _save(trainer, final, config, tokenizer, manifest, hooks)
    return final


def _check_goes_on(
    file: Path, data: Path, manifest: dict[str, Any], arguments: TrainingArguments
) -> None:
    if not file.is_file():
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    if before["splits"] != manifest["splits"]:
        raise DataError(
            f"{data}: prepared again since {file.parent} was trained on it; choose another "
            "output folder, or restore the old data"
        )
    check_same_rows(before, file.parent, arguments)


def _save(
    trainer: Trainer,
    final: Path,
    config: TrainConfig,
    tokenizer: AnchoredTokenizer,
    manifest: dict[str, Any],
    hooks: Hooks,
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
                (folder / TRAINING_ARGS_NAME).unlink()  # a pickle; our record has the same content
            record = _record(config, manifest)
            save_beside(folder, tokenizer, record)
            hooks.describe(folder, config.out.name, record, tokenizer)


def _record(config: TrainConfig, manifest: dict[str, Any]) -> dict[str, Any]:
    return {
        **origins(manifest, config.model.init),
        "config": config.model_dump(mode="json"),
        "versions": versions(),
    }
