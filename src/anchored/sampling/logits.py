"""From logits to a token: temperature, min-p, top-p, and one uniform number per token.

Shapes: B sequences, V vocabulary.
"""

from __future__ import annotations

import torch
from pydantic import Field

from anchored.config import Config


class Sampling(Config):
    """Sampling settings of one part.

    Args:
        temperature: divisor of the logits; 0 takes the most likely token (the first on a tie).
        top_p: keep the fewest tokens whose probabilities sum to at least this.
        min_p: drop tokens less likely than this share of the most likely token's probability.
    """

    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    min_p: float = Field(default=0.0, ge=0, lt=1)


def truncate(scores: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Apply temperature, then min-p, then top-p to logits (B, V); dropped tokens get -inf."""
    if sampling.temperature == 0:
        best = scores.argmax(-1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter_(-1, best, 0.0)
    if sampling.temperature != 1:
        scores = scores / sampling.temperature
    if sampling.min_p > 0:
        probabilities = scores.softmax(-1)
        floor = sampling.min_p * probabilities.amax(-1, keepdim=True)
        scores = scores.masked_fill(probabilities < floor, -torch.inf)
    if sampling.top_p < 1:
        ordered, indices = scores.softmax(-1).sort(-1, descending=True)
        cut = ordered.cumsum(-1) - ordered >= sampling.top_p
        scores = scores.masked_fill(cut.scatter(-1, indices, cut), -torch.inf)
    return scores


def exact_dtype(device: torch.device) -> torch.dtype:
    """Return the precision for drawing: double, or single on Apple's devices, which lack double."""
    return torch.float32 if device.type == "mps" else torch.float64


def draw(scores: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Draw one id per row (B,) by inversion, from logits (B, V) and numbers in [0, 1) (B,).

    Unlike `torch.multinomial`, this uses one random number per row instead of V, and the token of a
    row does not depend on other rows. A token of probability 0 is never drawn. A row with NaN
    yields -1.
    """
    probabilities = scores.softmax(-1, dtype=exact_dtype(scores.device))
    cumulated = probabilities.cumsum(-1)
    above = (cumulated > uniforms[:, None] * cumulated[:, -1:]) & (probabilities > 0)
    return torch.where(above.any(-1), above.to(torch.int8).argmax(-1), -1)
