"""The area under a model's diversity-quality frontier over a temperature sweep.

A model sampled at temperature t has quality q_t and diversity d_t, each a mean over prompts. Its
frontier is the upper right envelope of these points, a staircase: f(q) = max {d_t : q_t >= q}, the
greatest diversity available at quality q or better. Nothing is interpolated: only sampled points
count. With a box [q0, q1] x [d0, d1] that all models of a comparison share,

    frontier_area = integral from q0 to q1 of max(f(q) - d0, 0) dq / ((q1 - q0) (d1 - d0)),

where f is d0 beyond the best quality. This is the hypervolume of Zitzler and Thiele (1999) in two
dimensions over the box's area: 0 if every point is the worst of all in quality or diversity, 1 if
one point is the best of all in both. The box spans the points of all models, so areas are
comparable only within one comparison, and only at equal sample counts.

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
    """One model's values by temperature and prompt [T, P]; higher is better in both."""

    quality: FloatArray
    diversity: FloatArray


@dataclass(frozen=True, slots=True)
class Box:
    """The ranges of quality and diversity that areas are computed over."""

    quality: tuple[float, float]
    diversity: tuple[float, float]

    @property
    def area(self) -> float:
        """The box's area."""
        return (self.quality[1] - self.quality[0]) * (self.diversity[1] - self.diversity[0])


def common_box(sweeps: Sequence[Sweep]) -> Box | None:
    """Return the ranges of all models' points, or None if either range is empty."""
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
    """Return the `frontier_area` of points in [..., T] arrays, as [...].

    Area beyond the box's upper ends counts too; a point below a lower end counts as zero.
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
    """Return the area and, with at least two prompts, its 95 % interval.

    Prompts are resampled, P - 1 of P (Rao and Wu 1988), the same ones at all temperatures; the box
    is kept. The interval is the quantiles of the replicates.

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
