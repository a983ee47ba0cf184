"""Vocabulary projection and cross-entropy in one operation, a few rows at a time.

The logits of a batch are by far its largest tensor, and exist three times: as logits, as
log-probabilities and as their gradient. Here a chunk of logits is computed, turned into its loss
and gradient, and dropped; nothing is computed twice (the forward pass of Liger's fused linear
cross-entropy, Hsu et al. 2024, in plain PyTorch).

Shapes: N positions with loss, H hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel

# Logits held at once: on a CPU 32 MiB, which may fit into its last-level cache. An accelerator
# needs a few thousand rows to be busy.
_CHUNK = {"cpu": 1 << 23}
_CHUNK_ELSEWHERE = 1 << 27


class DeferredProjection(torch.nn.Linear):
    """An output projection that leaves its work to the loss while the model learns.

    Meanwhile, it returns its input, the hidden states, and `defers` is True.
    """

    @classmethod
    def of(cls, projection: torch.nn.Linear) -> DeferredProjection:
        """Return a deferred projection that shares the weight of `projection`."""
        outputs, inputs = projection.weight.shape
        deferred = cls(inputs, outputs, bias=False, device="meta")
        deferred.weight = projection.weight
        return deferred.train(projection.training)

    @property
    def defers(self) -> bool:
        """True if the loss has to project."""
        return self.training and torch.is_grad_enabled()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return hidden states while learning, logits otherwise."""
        return input if self.defers else super().forward(input)


def defer_projection(model: PreTrainedModel) -> DeferredProjection | None:
    """Give `model` a deferred projection, or return None if its logits are not a plain product.

    There may be a bias, a cap or a scale, for which configurations have no common name; so the
    model is run on a few tokens.
    """
    projection = model.get_output_embeddings()
    if type(projection) is not torch.nn.Linear or projection.bias is not None:
        return None
    if not _projects_last(model, projection):
        return None
    deferred = DeferredProjection.of(projection)
    model.set_output_embeddings(deferred)
    return deferred


@torch.no_grad()
def _projects_last(model: Any, projection: torch.nn.Linear) -> bool:
    products: list[torch.Tensor] = []
    hook = projection.register_forward_hook(lambda *seen: products.append(seen[-1].clone()))
    training = model.training
    attention = model.config._attn_implementation
    # The model is still on the CPU, in float32; flash attention supports neither.
    model.config._attn_implementation = "eager"
    try:
        # Several tokens: the embedding of the pad token is zero, and so would be its logits.
        tokens = torch.arange(min(8, len(projection.weight)), device=model.device)[None]
        logits = model.eval()(input_ids=tokens, use_cache=False).logits
    finally:
        hook.remove()
        model.train(training)
        model.config._attn_implementation = attention
    return len(products) == 1 and torch.equal(products[0], logits)


def projected_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    loss_weights: torch.Tensor | None = None,
    device: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the cross-entropy of `hidden` (N, H) through `weight` (V, H) against `targets` (N,).

    Args:
        hidden: hidden states at the positions with loss.
        weight: weight of the projection.
        targets: token ids.
        loss_weights: weights (N,) of the losses in their sum; None for 1.
        device: type of a simulated device; by default the device of `hidden`.

    Returns:
        The weighted sum () of the losses, which can be differentiated once, and the losses (N,) in
        float32, unweighted and without gradient.
    """
    logits = _CHUNK.get(device or hidden.device.type, _CHUNK_ELSEWHERE)
    rows = max(1, logits // len(weight))
    return _ProjectedLoss.apply(  # pyright: ignore[reportReturnType]
        hidden, weight, targets, loss_weights, rows
    )


class _ProjectedLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        loss_weights: torch.Tensor | None,
        rows: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        losses = torch.empty(len(targets), device=hidden.device)
        hidden_gradient = torch.empty_like(hidden)
        learnt = ctx.needs_input_grad[1]  # False with adapters
        # In float32, because it is a sum over chunks.
        weight_gradient = torch.zeros(weight.shape if learnt else (0,), device=weight.device)
        for start in range(0, len(targets), rows):
            chunk = slice(start, start + rows)
            scores = functional.linear(hidden[chunk], weight)
            losses[chunk], gradient = _loss_and_gradient(scores, targets[chunk])
            if loss_weights is not None:
                gradient *= loss_weights[chunk].to(gradient.dtype).unsqueeze(1)
            hidden_gradient[chunk] = gradient @ weight.to(gradient.dtype)
            if learnt:
                _add_product(weight_gradient, gradient.T, hidden[chunk])
        ctx.gradients, ctx.weight_dtype = (hidden_gradient, weight_gradient), weight.dtype
        ctx.mark_non_differentiable(losses)
        return (losses if loss_weights is None else losses * loss_weights).sum(), losses

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, scale: torch.Tensor, _: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None, None, None, None]:
        hidden_gradient, weight_gradient = ctx.gradients
        del ctx.gradients  # scaled in place, so they serve only one backward pass
        hidden_gradient.mul_(scale)
        if not ctx.needs_input_grad[1]:
            return hidden_gradient, None, None, None, None
        weight_gradient.mul_(scale)
        return hidden_gradient, weight_gradient.to(ctx.weight_dtype), None, None, None


def _loss_and_gradient(
    scores: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return losses (N,) and their gradient (N, V): probabilities minus the one-hot targets."""
    log_probabilities = scores.float().log_softmax(dim=-1)
    at = targets.unsqueeze(1)
    losses = -log_probabilities.gather(1, at).squeeze(1)
    gradient = log_probabilities.exp_()
    gradient.scatter_add_(1, at, gradient.new_full(at.shape, -1.0))
    return losses, gradient.to(scores.dtype)


def _add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    if total.dtype == a.dtype == b.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b.to(a.dtype)
