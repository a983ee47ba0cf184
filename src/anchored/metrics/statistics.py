"""Figures over prompts: intervals, paired differences between two models, and what N could show.

A metric gives each prompt one value, and prompts are what is resampled: an interval covers what
the metric would be on prompts of the same kind, and so also the chance in the samples behind each
value. P values, resampled P - 1 of P (Rao and Wu 1988), give the mean its unbiased variance;
deviations are widened by Student's t over the normal quantile, or few prompts would give intervals
too narrow. With one prompt there is nothing to resample here: `collapse` resamples samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from anchored.errors import DataError
from anchored.metrics.collapse import Estimate

ALPHA = 0.05
POWER = 0.8
BLOCK = 4_000_000  # random numbers held at once

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Difference:
    """First model minus second on the same prompts.

    `p` is two-sided, from random exchanges of the two models' values prompt by prompt.
    `detectable` is the smallest true difference that these prompts would have shown 80 % of the
    time: about smaller ones an absence of significance says nothing. It is not corrected for
    several metrics.
    """

    estimate: Estimate
    p: float
    detectable: float

    def as_json(self) -> dict[str, float]:
        """The form in `results.json`."""
        return {**self.estimate.as_json(), "p": self.p, "detectable": self.detectable}


def mean_interval(values: ArrayLike, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Mean over prompts of a value each [P], with its 95 % interval.

    Raises:
        DataError: fewer than two prompts.
    """
    x = _vector(values)
    rng = np.random.default_rng(seed)
    p = len(x)
    rows = max(1, BLOCK // p)
    deviations = np.concatenate(
        [
            rng.multinomial(p - 1, np.full(p, 1 / p), size=min(rows, resamples - start)) @ x
            for start in range(0, resamples, rows)
        ]
    ) / (p - 1) - float(x.mean())
    deviations *= stats.t.ppf(1 - ALPHA / 2, p - 1) / stats.norm.ppf(1 - ALPHA / 2)
    low, high = x.mean() + np.quantile(deviations, [ALPHA / 2, 1 - ALPHA / 2])
    return Estimate(float(x.mean()), float(low), float(high))


def paired_difference(
    first: ArrayLike, second: ArrayLike, resamples: int = 2000, exchanges: int = 9999, seed: int = 0
) -> Difference:
    """Two models' values on the same prompts [P], in the same order.

    Raises:
        DataError: fewer than two prompts, or not the same number.
    """
    a, b = _vector(first), _vector(second)
    if len(a) != len(b):
        raise DataError(f"paired difference: {len(a)} prompts against {len(b)}; pair the same ones")
    return Difference(
        estimate=mean_interval(a - b, resamples, seed),
        p=exchange_p(a - b, exchanges, seed),
        detectable=detectable(a - b),
    )


def exchange_p(differences: ArrayLike, exchanges: int = 9999, seed: int = 0) -> float:
    """Two-sided p of a mean difference of zero, each prompt's sign being as likely either way.

    (1 + as extreme exchanges) / (1 + exchanges) (Fisher 1935; Phipson and Smyth 2010): it is never
    below 1 / (1 + exchanges), nor, with P prompts, much below 2^(1-P).

    Raises:
        DataError: fewer than two prompts.
    """
    d = _vector(differences)
    rng = np.random.default_rng(seed)
    rows = max(1, BLOCK // len(d))
    least = abs(d.sum()) - 1e-12 * np.abs(d).sum()  # ties are as extreme, whatever rounding says
    extreme = sum(
        int((np.abs(rng.choice((-1.0, 1.0), size=(count, len(d))) @ d) >= least).sum())
        for count in (min(rows, exchanges - start) for start in range(0, exchanges, rows))
    )
    return (1 + extreme) / (1 + exchanges)


def detectable(differences: ArrayLike, power: float = POWER, alpha: float = ALPHA) -> float:
    """The true mean difference that a two-sided test on P such prompts sees with this power.

    (t_{1 - alpha/2} + t_{power}) s / sqrt(P), Student's t with P - 1 degrees of freedom.

    Raises:
        DataError: fewer than two prompts.
    """
    d = _vector(differences)
    quantiles = stats.t.ppf([1 - alpha / 2, power], len(d) - 1)
    return float(quantiles.sum() * d.std(ddof=1) / math.sqrt(len(d)))


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted so that the chance of any false one among them stays at its level.

    Holm (1979): the i-th smallest of m times m - i + 1, none below a smaller one's, at most 1.
    """
    adjusted = [0.0] * len(p)
    highest = 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted


def _vector(values: ArrayLike) -> FloatArray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) < 2:
        raise DataError(
            f"statistics over prompts: found shape {x.shape}; give one value each of two or more"
        )
    return x
