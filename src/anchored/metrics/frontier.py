"""The area under a model's diversity-quality frontier over a temperature sweep.

A model sampled at temperature t has quality q_t and diversity d_t, the means of a value a prompt.
Its frontier is the upper right envelope of these points, a staircase: f(q) = max {d_t : q_t >= q},
the most diversity that is to be had at quality q or better. Nothing is interpolated: only what was
sampled counts. With a box [q0, q1] x [d0, d1] that every model of a comparison shares,

    frontier_area = integral from q0 to q1 of max(f(q) - d0, 0) dq / ((q1 - q0) (d1 - d0)),

f being d0 beyond the best quality. It is the hypervolume of Zitzler and Thiele (1999) in two
dimensions over the box's area: 0 where every point is the worst of all in quality or diversity, 1
for one that has the best of both. The box spans the points of all models, so areas compare within
one comparison only, and at equal numbers of samples only.

Shapes: P prompts, T temperatures, R replicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anchored.errors import DataError
from anchored.metrics.collapse import LEVELS, Estimate

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sweep:
    """One model's values by temperature and prompt [T, P]; more is better in both."""

    quality: FloatArray
    diversity: FloatArray


@dataclass(frozen=True, slots=True)
class Box:
    """The ranges that areas are taken over."""

    quality: tuple[float, float]
    diversity: tuple[float, float]

    @property
    def area(self) -> float:
        """The product of the two lengths."""
        return (self.quality[1] - self.quality[0]) * (self.diversity[1] - self.diversity[0])


def common_box(sweeps: Sequence[Sweep]) -> Box | None:
    """The ranges of all models' points; None where they do not differ in both."""
    quality, diversity = (
        [values.mean(axis=1) for values in side]
        for side in zip(*((sweep.quality, sweep.diversity) for sweep in sweeps), strict=True)
    )
    box = Box(_range(quality), _range(diversity))
    return box if box.area > 0 else None


def _range(values: Sequence[FloatArray]) -> tuple[float, float]:
    pooled = np.concatenate(values)
    return float(pooled.min()), float(pooled.max())


def dominated(quality: ArrayLike, diversity: ArrayLike, box: Box) -> FloatArray:
    """`frontier_area` of points given as [..., T] arrays -> [...].

    A point beyond the box's upper ends counts for more than the box holds; one below its lower
    ends counts for nothing.
    """
    q = np.asarray(quality, dtype=np.float64)
    order = np.argsort(-q, axis=-1)
    widths = np.maximum(np.take_along_axis(q, order, -1) - box.quality[0], 0.0)
    heights = np.take_along_axis(np.asarray(diversity, dtype=np.float64), order, -1)
    heights = np.maximum(np.maximum.accumulate(heights, axis=-1) - box.diversity[0], 0.0)
    steps = widths - np.concatenate([widths[..., 1:], np.zeros_like(widths[..., :1])], axis=-1)
    return (steps * heights).sum(axis=-1) / box.area


def frontier_area(
    sweep: Sweep, box: Box, resamples: int = 2000, seed: int = 0
) -> tuple[float, Estimate | None]:
    """The area and, with two prompts or more, its 95 % interval.

    Prompts are resampled, P - 1 of P (Rao and Wu 1988), the same at all temperatures; the box
    stays. Quantiles of the replicates are the interval.

    Raises:
        DataError: the two arrays differ in shape.
    """
    q, d = sweep.quality, sweep.diversity
    if q.shape != d.shape or q.ndim != 2:
        raise DataError(f"frontier_area: quality is {q.shape}, diversity {d.shape}; pair them")
    area = float(dominated(q.mean(axis=1), d.mean(axis=1), box))
    p = q.shape[1]
    if p < 2:
        return area, None
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(p - 1, np.full(p, 1 / p), size=resamples) / (p - 1)  # [R, P]
    low, high = np.quantile(dominated(weights @ q.T, weights @ d.T, box), LEVELS)
    return area, Estimate(area, float(low), float(high))
