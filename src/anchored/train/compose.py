"""The stock `transformers.Trainer`, set up for a model and prepared data."""

from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc
import torch
from datasets import Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from anchored.errors import ConfigError
from anchored.models.lora import without_adapter
from anchored.step.allocator import keep_freed_memory
from anchored.step.attention import attend_within_documents, keeps_documents_apart, takes_flat_rows
from anchored.step.collate import DataCollator
from anchored.step.losses import CROSS_ENTROPY, LossByKind, divide_by_weights
from anchored.step.muon import muon_for
from anchored.step.projection import defer_projection
from anchored.tokenizer import AnchoredTokenizer
from anchored.train.layout import (
    WorkersSeededApart,
    is_sharded,
    reduce_in_float32,
    shard_on_cpu,
)
from anchored.train.metrics_log import Monitor, measure_matmul_peak


def compose(
    model: PreTrainedModel,
    dataset: Dataset,
    tokenizer: AnchoredTokenizer,
    arguments: TrainingArguments,
    muon_lr: float | None = None,
    loss: str = CROSS_ENTROPY,
) -> Trainer:
    """Build the stock Trainer with our collator, loss record and metrics log.

    Args:
        model: the model to train; its loss function is replaced.
        dataset: prepared rows.
        tokenizer: the tokenizer of the model.
        arguments: the arguments of the Trainer.
        muon_lr: the learning rate of Muon; None for the optimizer of `arguments`.
        loss: name of the loss in `step.losses.LOSSES`.

    Raises:
        ConfigError: a row holds several documents, and the model would read them as one.
    """
    shard_on_cpu(arguments)
    inner = without_adapter(model)
    if arguments.device.type == "cpu":
        keep_freed_memory()
        attend_within_documents(inner)
    losses = LossByKind(defer_projection(inner) if _plain(arguments) else None, loss)
    inner.loss_function = torch.compiler.disable(losses)  # it counts, and projects in chunks
    dtype = torch.bfloat16 if arguments.bf16 else torch.float32
    peak = measure_matmul_peak(arguments.device, dtype) * arguments.world_size
    callbacks: list[TrainerCallback] = [
        Monitor(Path(str(arguments.output_dir)), model, losses, peak),
        WorkersSeededApart(),
    ]
    collate = DataCollator(tokenizer.control.pad, takes_flat_rows(inner))
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=dataset.with_format("numpy"),  # pyright: ignore[reportArgumentType]
        data_collator=collate,  # pyright: ignore[reportArgumentType]
        callbacks=callbacks,
        optimizers=(muon_for(model, arguments, muon_lr) if muon_lr else None, None),
    )
    trainer.remove_callback(PrinterCallback)
    divide_by_weights(trainer)
    reduce_in_float32(trainer.accelerator)
    if not _by_deepspeed(arguments) and (collate.flat or _is_packed(dataset)):
        _check_apart(inner, collate.flat)  # on its device, with that device's kernels
    return trainer


def _is_packed(dataset: Dataset) -> bool:
    """True if any row holds more than one document."""
    most = pc.max(pc.list_value_length(dataset.data.column("seq_lengths"))).as_py()  # pyright: ignore
    return (most or 0) > 1


def _check_apart(model: PreTrainedModel, flat: bool) -> None:
    if not keeps_documents_apart(model):
        raise ConfigError(
            f"model: {model.config.model_type} does not keep the documents of a row apart: each "
            "would be learned as a continuation of the one before it; set data.packing to false"
            + (" and leave model.attention out" if flat else "")
        )


def _plain(arguments: TrainingArguments) -> bool:
    """True if each device holds all weights, and fp16 cannot lose gradients."""
    return not (is_sharded(arguments) or _by_deepspeed(arguments) or arguments.fp16)


def _by_deepspeed(arguments: TrainingArguments) -> bool:
    """True if `trainer.deepspeed` or `accelerate launch` turns DeepSpeed on."""
    return getattr(arguments, "deepspeed_plugin", None) is not None
