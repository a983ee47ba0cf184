"""Output before and during training: the cost, the first batch and a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import Trainer, TrainerCallback

from anchored.token_view import segment_view
from anchored.tokenizer import AnchoredTokenizer
from anchored.train.metrics_log import Monitor, training_flops


class FirstBatchShown:
    """A collator that prints its first batch as text with the loss mask.

    With `dataloader_num_workers`, each worker has a copy, which prints its own first batch.
    """

    def __init__(
        self,
        collate: Callable[[Sequence[Mapping[str, Any]]], dict[str, torch.Tensor]],
        tokenizer: AnchoredTokenizer,
        console: Console,
        rows: int = 2,
    ) -> None:
        # Not named `tokenizer`: Trainer would save such an attribute with its checkpoints.
        self._collate, self._decoder, self._console, self._rows = collate, tokenizer, console, rows
        self._shown = False

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch of `collate`."""
        if not self._shown:
            self._shown = True
            for row in rows[: self._rows]:
                ids, labels, kinds = row["input_ids"], row["labels"], row["kinds"]
                view = segment_view(ids, labels, kinds, row["seq_lengths"], self._decoder)
                self._console.print(view)
            self._console.print(f"first batch: {min(self._rows, len(rows))} of {len(rows)} rows")
        return self._collate(rows)


def announce_cost(trainer: Trainer, rows: int, manifest: dict[str, Any]) -> None:
    """Print a lower bound of the cost of the run; the dataset has `rows` rows."""
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


def progress(hidden: bool) -> Progress:
    """Return a progress bar for the steps of a run, silent if `hidden` or without a terminal."""
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


class ProgressBar(TrainerCallback):
    """A callback that shows finished steps and the latest loss on the caller's progress bar."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("training", total=None)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Set the length of the bar."""
        self._progress.update(self._task, total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Advance the bar by one step."""
        self._progress.update(self._task, completed=state.global_step)

    def on_log(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any
    ) -> None:
        """Show the loss."""
        if "loss" in logs:
            self._progress.update(self._task, description=f"training, loss {logs['loss']:.3f}")
