"""Statistics over prompts: intervals, paired differences, and detectable differences.

A metric gives each prompt one value, and prompts are what is resampled: an interval covers the
metric's value on other prompts of the same kind, and with it the sampling noise behind each value.
Resampling P - 1 of the P values (Rao and Wu 1988) gives the mean its unbiased variance. Deviations
are widened by the ratio of the Student's t and normal quantiles, or a few prompts would give too
narrow an interval. One prompt cannot be resampled here: `collapse` resamples its texts.
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
    """The first model minus the second, on the same prompts.

    `p` is two-sided, from random exchanges of the two models' values prompt by prompt.
    `detectable` is the smallest true difference that these prompts would have shown 80 % of the
    time; a lack of significance says nothing about smaller ones. It is not corrected for testing
    several metrics.
    """

    estimate: Estimate
    p: float
    detectable: float

    def as_json(self) -> dict[str, float]:
        """Return the form in `results.json`."""
        return {**self.estimate.as_json(), "p": self.p, "detectable": self.detectable}


def mean_interval(values: ArrayLike, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Return the mean of one value per prompt [P], with its 95 % interval.

    Raises:
        DataError: there are fewer than two prompts.
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
    """Compare two models' values on the same prompts [P], in the same order.

    Raises:
        DataError: there are fewer than two prompts, or their numbers differ.
    """
    a, b = _vector(first), _vector(second)
    if len(a) != len(b):
        raise DataError(
            f"paired difference: {len(a)} prompts and {len(b)} prompts; give both models the same"
        )
    return Difference(
        estimate=mean_interval(a - b, resamples, seed),
        p=exchange_p(a - b, exchanges, seed),
        detectable=detectable(a - b),
    )


def exchange_p(differences: ArrayLike, exchanges: int = 9999, seed: int = 0) -> float:
    """Return the two-sided p of a zero mean difference, if each prompt's sign is a coin toss.

    (1 + exchanges at least as extreme) / (1 + exchanges) (Fisher 1935; Phipson and Smyth 2010). It
    is never below 1 / (1 + exchanges) nor, with P prompts, much below 2^(1-P).

    Raises:
        DataError: there are fewer than two prompts.
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
    """Return the true mean difference that a two-sided test on P prompts detects with this power.

    (t_{1 - alpha/2} + t_{power}) s / sqrt(P), with Student's t at P - 1 degrees of freedom.

    Raises:
        DataError: there are fewer than two prompts.
    """
    d = _vector(differences)
    quantiles = stats.t.ppf([1 - alpha / 2, power], len(d) - 1)
    return float(quantiles.sum() * d.std(ddof=1) / math.sqrt(len(d)))


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p-values so that the chance of any false positive among them stays at its level.

    Holm (1979): the i-th smallest of m is multiplied by m - i + 1, kept monotone, and capped at 1.
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
            f"statistics over prompts: found shape {x.shape}; give one value per prompt, for at "
            "least two prompts"
        )
    return x
