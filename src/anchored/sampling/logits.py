"""From logits to a token: temperature, min-p, top-p, and one uniform number a token.

Shapes: B sequences, V vocabulary.
"""

from __future__ import annotations

import torch
from pydantic import Field

from anchored.config import Config


class Sampling(Config):
    """How one part is sampled.

    Args:
        temperature: divides the logits; 0 takes the most likely token (the first of equals).
        top_p: the fewest tokens that hold this much probability are kept.
        min_p: tokens less likely than this share of the most likely one's probability are cut.
    """

    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    min_p: float = Field(default=0.0, ge=0, lt=1)


def truncate(scores: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Temperature, then min-p, then top-p, on logits (B, V); what is cut off becomes -inf."""
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
    """The precision to draw in: double, or single where the device has no other (Apple's)."""
    return torch.float32 if device.type == "mps" else torch.float64


def draw(scores: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """One token a row by inversion: logits (B, V), numbers in [0, 1) (B,) -> ids (B,).

    Unlike `torch.multinomial` it takes one random number a row and not V, and a row's token does
    not depend on the rows beside it. A token of probability 0 is never drawn. A row that holds NaN
    yields -1.
    """
    probabilities = scores.softmax(-1, dtype=exact_dtype(scores.device))
    cumulated = probabilities.cumsum(-1)
    above = (cumulated > uniforms[:, None] * cumulated[:, -1:]) & (probabilities > 0)
    return torch.where(above.any(-1), above.to(torch.int8).argmax(-1), -1)
