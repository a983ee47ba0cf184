"""What a run says about itself, one JSON object a line in `metrics.jsonl`.

Loss by kind, speed and utilisation.
"""

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
    """FLOP/s of square matrix products, the best of six times: what utilisation is stated against.

    On an accelerator the products are large and many are timed at once, or it is their start that
    is timed.
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
    """6 FLOPs a token and parameter outside the embedding; the projection's at positions with loss.

    4 where only an adapter is trained: the gradients of the weights below it are not computed.
    Attention scores are left out (`attention_flops`): how long the rows are that they are taken
    over depends on the kernel.
    """
    projection: Any = model.get_output_embeddings()
    head = projection.weight.numel()
    shared = head if model.config.tie_word_embeddings else 2 * head
    body = sum(p.numel() for p in model.parameters()) - shared
    each = 6.0 if all(p.requires_grad for p in model.parameters()) else 4.0
    return each * (body * tokens + head * supervised)


def attention_flops(config: PreTrainedConfig, tokens: float, length: float) -> float:
    """FLOPs of attention scores and their use, forward and backward, in rows of `length` tokens.

    12 times layers, width of all heads and length, a token (Chowdhery et al., PaLM, 2022, appendix
    B). Places that causality or packing hide are counted: kernels with a mask compute them.
    """
    width = config.num_attention_heads * head_size(config)
    return 12.0 * config.num_hidden_layers * width * length * tokens


def head_size(config: PreTrainedConfig) -> int:
    """Width of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


class Monitor(TrainerCallback):
    """Writes `metrics.jsonl` at every logging step of the stock Trainer.

    A line: step, epoch, loss, loss_by_kind (nats a token), supervised_share, tokens,
    tokens_per_second, supervised_tokens_per_second, mfu (`training_flops`, so without attention
    and what is computed twice, against peak_tflops), peak_tflops (measured matrix products of one
    device), learning_rate, grad_norm, and what the collapse monitor logs with it. On a resumed run
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
        if not state.is_world_process_zero:
            return
        rows = read_metrics(self._path.parent)
        kept = [row for row in rows if row["step"] <= state.global_step]
        if self._path.is_file():  # rewritten even if no row goes: the last may be cut short
            atomic_write(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._tokens = kept[-1]["tokens"] if kept else 0
        self._since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Logs the last step too, and ends a run that diverged before its weights are saved.

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
        """Appends one line; ignores the summary that Trainer logs at the end.

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
            grad_norm = None  # a step that the loss scaler left out
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
        f"(now {args.learning_rate}) or muon_learning_rate, or warm up longer, in another output"
    )


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
