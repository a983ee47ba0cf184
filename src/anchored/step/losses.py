"""Losses by name, and the record of a run's loss by kind.

A loss is one function from the logits at the supervised positions and their labels to one loss for
each position. Each loss is an entry of `LOSSES`: a configuration names it, and everything else
(weights, accumulation, replay, the record by kind) is the same for all.

Shapes: N positions with loss, M of them in annotations, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import distributed
from torch.nn import functional

from anchored.segments import NO_LOSS, Kind
from anchored.step.projection import DeferredProjection, projected_loss

CROSS_ENTROPY = "cross_entropy"


class Loss(NamedTuple):
    """One entry of `LOSSES`.

    Attributes:
        says: what it does and where it comes from, in one line.
        function: maps logits (N, V) in float32 and labels (N,) to losses (N,).
    """

    says: str
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the next-token cross-entropy (N,) in nats."""
    return functional.cross_entropy(logits, labels, ignore_index=NO_LOSS, reduction="none")


def gem(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return GEM's loss (N,), which fits the label and keeps entropy elsewhere (arXiv 2408.16673).

    -sum_v q_v w_v (log p_y - log p_v) with q = softmax(z / 0.7), w_v = sigmoid(0.01 (z_v - z_y)),
    neither of which is differentiated.
    """
    at = labels.unsqueeze(1)
    with torch.no_grad():
        gap = torch.sigmoid(0.01 * (logits - logits.gather(1, at)))
        weights = (logits / 0.7).softmax(dim=-1) * gap
    log_p = logits.log_softmax(dim=-1)
    return -(weights * (log_p.gather(1, at) - log_p)).sum(dim=-1)


LOSSES = {
    CROSS_ENTROPY: Loss(
        "next-token cross-entropy, projected and summed a few rows at a time", cross_entropy
    ),
    "gem": Loss("fits the label and keeps entropy elsewhere; GEM, arXiv 2408.16673, beta 0.7", gem),
}


class LossByKind:
    """The weighted mean of a loss over the kept positions, recorded by kind.

    Set as `model.loss_function`; `transformers` calls it with the output of `DataCollator`. Its
    value is sum_i w_i l_i divided by `num_items_in_batch` or, without one, by sum_i w_i. With
    weights of 1 it is the value of the stock loss.

    Args:
        projection: the model's projection, if it is left to the loss: the loss then receives hidden
            states in place of logits.
        name: name of the loss in `LOSSES`. Cross-entropy through a projection is fused; any other
            loss holds all logits of a batch.
    """

    def __init__(
        self, projection: DeferredProjection | None = None, name: str = CROSS_ENTROPY
    ) -> None:
        self._projection = projection
        self._fused = name == CROSS_ENTROPY
        self._function = LOSSES[name].function
        # Sums and weights by kind, supervised tokens, all tokens: one tensor, so one wait for the
        # device.
        self._totals = torch.zeros(2 * len(Kind) + 2)

    def __call__(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        vocab_size: int,
        shift_labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
        target_kinds: torch.Tensor | None = None,
        token_count: torch.Tensor | int = 0,
        loss_weights: torch.Tensor | None = None,
        in_annotation: torch.Tensor | None = None,
        base_logits: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Return the loss () from `logits` (N, V) and `shift_labels`, `target_kinds` (N,).

        `loss_weights` (N,) are 1 by default. Where `in_annotation` (N,), the target is
        the distribution of `base_logits` (M, V), by cross-entropy.
        """
        targets = shift_labels.view(-1)
        defers = self._projection is not None and self._projection.defers
        if self._projection is not None and defers and self._fused and base_logits is None:
            hidden = logits.view(-1, logits.shape[-1])
            total, losses = projected_loss(hidden, self._projection.weight, targets, loss_weights)
        else:
            scores = self._scores(logits, vocab_size)
            losses = self._function(scores, targets)
            if in_annotation is not None and base_logits is not None:
                losses = _with_base_targets(losses, scores, in_annotation, base_logits)
            total = (losses if loss_weights is None else losses * loss_weights).sum()
        weights = torch.ones_like(losses) if loss_weights is None else loss_weights
        if target_kinds is not None and torch.is_grad_enabled():
            self._add(losses.detach(), weights, target_kinds, token_count)
        return total / (weights.sum() if num_items_in_batch is None else num_items_in_batch)

    def _scores(self, logits: torch.Tensor, vocab_size: int) -> torch.Tensor:
        """Return logits (N, V) in float32."""
        if self._projection is not None and self._projection.defers:
            logits = functional.linear(logits, self._projection.weight)
        return logits.float().view(-1, vocab_size)

    def _add(
        self,
        losses: torch.Tensor,
        weights: torch.Tensor,
        kinds: torch.Tensor,
        tokens: torch.Tensor | int,
    ) -> None:
        exact = torch.float32 if losses.device.type == "mps" else torch.float64
        totals, weights = self._totals.to(losses.device, exact), weights.to(exact)
        totals.index_add_(0, kinds, losses.to(exact) * weights)
        totals.index_add_(0, kinds + len(Kind), weights)
        totals[-2] += losses.numel()
        totals[-1] += tokens
        self._totals = totals

    def finite(self) -> bool:
        """True if every loss since the last `take` is a number."""
        return bool(self._totals.isfinite().all())

    def take(self) -> tuple[dict[str, float], int, int]:
        """Return the record since the last call, over all processes; each process must call this.

        Returns:
            Weighted mean loss by kind name, supervised tokens, and all tokens.
        """
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(self._totals)
        *by_kind, supervised, tokens = self._totals.tolist()
        self._totals = torch.zeros_like(self._totals)
        sums, weights = by_kind[: len(Kind)], by_kind[len(Kind) :]
        means = {kind.name.lower(): sums[kind] / weights[kind] for kind in Kind if weights[kind]}
        return means, int(supervised), int(tokens)


def _with_base_targets(
    losses: torch.Tensor,
    scores: torch.Tensor,
    in_annotation: torch.Tensor,
    base_logits: torch.Tensor,
) -> torch.Tensor:
    """Use the cross-entropy to the base model's distribution where `in_annotation` is True."""
    base = base_logits.float().softmax(dim=-1)
    soft = functional.cross_entropy(scores[in_annotation], base, reduction="none")
    return losses.masked_scatter(in_annotation, soft)


def divide_by_weights(trainer: Any) -> None:
    """Divide a step's loss by the sum of the token weights instead of the number of tokens.

    `Trainer` counts the labels of all micro-batches and processes of a step, and passes the count
    to the loss as `num_items_in_batch`. Here the count is multiplied by the mean weight over the
    same micro-batches and processes. This is exact under accumulation and data parallelism, and
    keeps any other divisor of `Trainer` (tensor parallelism). `get_batch_samples` is wrapped on the
    instance, so that gradient clipping and the logged loss see unscaled gradients. Batches without
    weights are not changed.

    Args:
        trainer: a `transformers.Trainer`.
    """
    stock = trainer.get_batch_samples

    def get_batch_samples(*arguments: Any) -> tuple[list[Any], Any]:
        batches, count = stock(*arguments)
        if count is None or not batches or "loss_weights" not in batches[0]:
            return batches, count
        weights = torch.cat([batch["loss_weights"] for batch in batches])
        weights = weights.to(torch.float32 if weights.device.type == "mps" else torch.float64)
        sums = torch.stack([weights.sum(), torch.ones_like(weights).sum()])
        if trainer.args.average_tokens_across_devices and trainer.args.world_size > 1:
            sums = trainer.accelerator.gather(sums.to(trainer.args.device)[None]).sum(dim=0)
        mean = float(sums[0] / sums[1]) if sums[1] else 1.0
        return batches, count * mean

    trainer.get_batch_samples = get_batch_samples
