"""What a run says about itself: loss by kind, speed and utilisation, one JSON object a line in `metrics.jsonl`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel, TrainerCallback

from anchored.segments import NO_LOSS, Kind

METRICS_NAME = "metrics.jsonl"


class LossByKind:
    """Next-token cross-entropy over the kept positions, summed by kind on the way.

    Set as `model.loss_function`; `transformers` calls it with what `Collator` emitted. The value is the one that the
    stock loss has: the sum over tokens divided by `num_items_in_batch`, or their mean.
    """

    def __init__(self) -> None:
        self._sums = torch.zeros(len(Kind), dtype=torch.float64)
        self._counts = torch.zeros(len(Kind), dtype=torch.float64)
        self._tokens = 0

    def __call__(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        vocab_size: int,
        shift_labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
        target_kinds: torch.Tensor | None = None,
        token_count: torch.Tensor | int = 0,
        **_: Any,
    ) -> torch.Tensor:
        """Loss () from `logits` (N, V) and `shift_labels`, `target_kinds` (N,)."""
        losses = functional.cross_entropy(
            logits.float().view(-1, vocab_size),
            shift_labels.view(-1),
            ignore_index=NO_LOSS,
            reduction="none",
        )
        if target_kinds is not None and torch.is_grad_enabled():
            self._add(losses.detach(), target_kinds, int(token_count))
        return losses.sum() / (losses.numel() if num_items_in_batch is None else num_items_in_batch)

    def _add(self, losses: torch.Tensor, kinds: torch.Tensor, tokens: int) -> None:
        if self._sums.device != losses.device:
            self._sums, self._counts = self._sums.to(losses.device), self._counts.to(losses.device)
        self._sums.index_add_(0, kinds, losses.double())
        self._counts.index_add_(0, kinds, torch.ones_like(losses, dtype=torch.float64))
        self._tokens += tokens

    def take(self) -> tuple[dict[str, float], int, int]:
        """Mean loss by kind name, supervised tokens and all tokens since the last call."""
        sums, counts, tokens = self._sums.tolist(), self._counts.tolist(), self._tokens
        self._sums.zero_()
        self._counts.zero_()
        self._tokens = 0
        means = {kind.name.lower(): sums[kind] / counts[kind] for kind in Kind if counts[kind]}
        return means, int(sum(counts)), tokens


def measure_matmul_peak(device: torch.device, dtype: torch.dtype, size: int = 1024) -> float:
    """FLOP/s of the best of five square matrix products: the peak that utilisation is stated against."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def training_flops(model: PreTrainedModel, tokens: int, supervised: int) -> float:
    """6 FLOPs a parameter and token outside the embedding, and 6 for each projection weight at supervised positions.

    Attention scores are left out, so utilisation is stated a little low.
    """
    head = model.get_output_embeddings().weight.numel()
    shared = head if model.config.tie_word_embeddings else 2 * head
    body = sum(p.numel() for p in model.parameters()) - shared
    return 6.0 * (body * tokens + head * supervised)


class Monitor(TrainerCallback):
    """Writes `metrics.jsonl` at every logging step of the stock Trainer.

    A line: step, epoch, loss, loss_by_kind (nats a token), supervised_share, tokens, tokens_per_second,
    supervised_tokens_per_second, mfu (against the measured matmul peak), learning_rate, grad_norm. On a resumed run
    the lines after the checkpoint are cut first, so a step is never there twice.
    """

    def __init__(
        self, folder: Path, model: PreTrainedModel, losses: LossByKind, peak: float
    ) -> None:
        self._path = folder / METRICS_NAME
        self._model = model
        self._losses = losses
        self.peak = peak
        self._since = time.perf_counter()
        self._tokens = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts the clock and drops lines that the resumed run will write again."""
        rows = read_metrics(self._path.parent)
        kept = [row for row in rows if row["step"] <= state.global_step]
        if len(kept) < len(rows):
            self._path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self._tokens = kept[-1]["tokens"] if kept else 0
        self._since = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        """Appends one line; ignores the summary that Trainer logs at the end."""
        if "loss" not in logs or not state.is_world_process_zero:
            return
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        by_kind, supervised, tokens = self._losses.take()
        self._tokens += tokens
        flops = training_flops(self._model, tokens, supervised)
        row = {
            "step": state.global_step,
            "epoch": logs["epoch"],
            "loss": float(logs["loss"]),
            "loss_by_kind": by_kind,
            "supervised_share": supervised / max(tokens, 1),
            "tokens": self._tokens,
            "tokens_per_second": tokens / seconds,
            "supervised_tokens_per_second": supervised / seconds,
            "mfu": flops / seconds / self.peak,
            "learning_rate": logs["learning_rate"],
            "grad_norm": float(logs["grad_norm"]) if "grad_norm" in logs else None,
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of `folder/metrics.jsonl`; a last line cut short by a kill is left out."""
    path = folder / METRICS_NAME
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
