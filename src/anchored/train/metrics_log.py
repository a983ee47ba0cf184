"""`metrics.jsonl`: loss by kind, speed and utilisation of a run, one JSON object per line."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, TrainerCallback

from anchored.errors import AnchoredError
from anchored.files import atomic_write
from anchored.step.losses import LossByKind

METRICS_NAME = "metrics.jsonl"
COLLAPSE = "collapse/"  # what `CollapseMonitor` logs


def measure_matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Measure FLOP/s of square matrix products, the best of six: the reference for utilisation.

    On an accelerator the products are large and several are timed together; otherwise the launch of
    the kernels would be timed.
    """
    size, products = {"cpu": (1024, 1), "mps": (2048, 10)}.get(device.type, (8192, 10))
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = min(_seconds(a, products) for _ in range(6))
    return 2 * size**3 * products / best


def _seconds(a: torch.Tensor, products: int) -> float:
    on_cpu = a.device.type == "cpu"
    if not on_cpu:
        torch.accelerator.synchronize(a.device)
    start = time.perf_counter()
    for _ in range(products):
        torch.mm(a, a)
    if not on_cpu:
        torch.accelerator.synchronize(a.device)
    return time.perf_counter() - start


def training_flops(model: PreTrainedModel, tokens: float, supervised: float) -> float:
    """Return 6 FLOPs per token and parameter, the projection counted at positions with loss only.

    Embeddings are not counted. It is 4 FLOPs if only an adapter is trained: the gradients of the
    weights below it are not computed. Attention scores are left out (`attention_flops`), because
    the length of the rows that they are computed over depends on the kernel.
    """
    projection: Any = model.get_output_embeddings()
    head = projection.weight.numel()
    shared = head if model.config.tie_word_embeddings else 2 * head
    body = sum(p.numel() for p in model.parameters()) - shared
    each = 6.0 if all(p.requires_grad for p in model.parameters()) else 4.0
    return each * (body * tokens + head * supervised)


def attention_flops(config: PreTrainedConfig, tokens: float, length: float) -> float:
    """Return the FLOPs of attention, forward and backward, in rows of `length` tokens.

    Per token: 12 times the layers, the width of all heads and the length (Chowdhery et al., PaLM,
    2022, appendix B). Positions hidden by causality or packing are counted, because kernels with a
    mask compute them.
    """
    width = config.num_attention_heads * head_size(config)
    return 12.0 * config.num_hidden_layers * width * length * tokens


def head_size(config: PreTrainedConfig) -> int:
    """Return the width of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


class Monitor(TrainerCallback):
    """Writes `metrics.jsonl` at every logging step of the stock Trainer.

    A line has step, epoch, loss, loss_by_kind (nats per token), supervised_share, tokens,
    tokens_per_second, supervised_tokens_per_second, mfu (`training_flops`, which leaves out
    attention and recomputation, relative to peak_tflops), peak_tflops (measured matrix products of
    one device), learning_rate, grad_norm, and the figures of the collapse monitor. A resumed run
    first cuts the lines after the checkpoint, so that no step appears twice.
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
        """Start the clock and drop lines that the resumed run will write again."""
        if not state.is_world_process_zero:
            return
        rows = read_metrics(self._path.parent)
        kept = [row for row in rows if row["step"] <= state.global_step]
        if self._path.is_file():  # even if all rows are kept: the last line may be truncated
            atomic_write(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._tokens = kept[-1]["tokens"] if kept else 0
        self._since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Log the last step too, and stop a diverged run before its weights are saved.

        Raises:
            AnchoredError: a loss since the last line is not finite.
        """
        if state.global_step >= state.max_steps:
            control.should_log = True
        if (control.should_log or control.should_save) and not self._losses.finite():
            raise _diverged("loss", state.global_step, args)

    def on_log(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any
    ) -> None:
        """Append one line; ignore the summary that Trainer logs at the end.

        Raises:
            AnchoredError: the gradient is not finite.
        """
        if "loss" not in logs:
            return
        by_kind, supervised, tokens = self._losses.take()
        if not state.is_world_process_zero:
            return
        grad_norm = float(logs["grad_norm"]) if "grad_norm" in logs else None
        if grad_norm is not None and not math.isfinite(grad_norm):
            if not args.fp16:
                raise _diverged("gradient", state.global_step, args)
            grad_norm = None  # the loss scaler skipped this step
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
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
            "peak_tflops": self.peak / args.world_size / 1e12,
            "learning_rate": logs["learning_rate"],
            "grad_norm": grad_norm,
            **{name: value for name, value in logs.items() if name.startswith(COLLAPSE)},
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _diverged(what: str, step: int, args: Any) -> AnchoredError:
    return AnchoredError(
        f"{args.output_dir}: step {step}: the {what} is not finite; lower trainer.learning_rate "
        f"(now {args.learning_rate}) or muon_learning_rate, or warm up longer, in another folder"
    )


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of `folder/metrics.jsonl`; a last line truncated by a kill is left out."""
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
