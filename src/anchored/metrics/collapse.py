"""Measure how much of a collapse a treatment undoes, with bootstrap intervals.

A model's *runs* are its samples as seeds x prompts x samples. A *statistic* D is computed for each
seed and averaged over seeds. With D of the base model, of standard SFT and of a treatment x:

    gap_closed = (D_x - D_sft) / (D_base - D_sft)
    collapse_reduction = (D_base - D_sft) / (D_base - D_x) = 1 / (1 - gap_closed)

The intervals cover seeds, prompts and samples, and replicates are made level by level:

- Samples are resampled within each seed and prompt.
- Prompts are resampled whole (P - 1 of P, Rao and Wu 1988), the same ones for every model and seed.
- Seeds are few, and D is linear in them, so they get Student noise scaled to their own spread, the
  same for every model. With one seed there is no such noise: the interval is for that run alone.

Prompts and seeds contribute only the part of their spread that sampling does not explain, or it
would count twice: lambda = max(0, 1 - sampling variance / jackknife variance). Entropies of a
resample are biased low (rare values vanish), so replicates are shifted to the estimate.

Simulated coverage of the 95 % intervals (benchmarks/coverage.py; N = 256, Zipf attributes of 8 to
64 values): gap_closed 94 %; a single model's Miller-Madow entropy 92 %, but 82 % where the tail is
long and thin, since Miller-Madow itself is low there (by 0.06 nats with 15 % of the mass on 64
values). Simulated outside that script: three seeds that differ much more than sampling explains,
90 to 91 %, or 88 % if the collapse is small too; one seed and a collapse of 2 standard errors
(which is reported half of the time), 92 %; a collapse of 2.5 to 4 standard errors, 94 to 95 %.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anchored.errors import DataError
from anchored.metrics.embedding import unit
from anchored.metrics.entropy import Reading, first_value

# Shapes: R replicates, N samples of one seed in the order of its prompts, P prompts, S seeds,
# M models, V values (of all prompts), D dimensions.
FloatArray = NDArray[np.float64]
T = TypeVar("T")
Runs = Sequence[Sequence[Sequence[T]]]
Weighted = Callable[[FloatArray], FloatArray]
Statistic = Callable[[Sequence[Sequence[T]]], Weighted]

BLOCK = 4_000_000  # weights held at once: 32 MB
LEVELS = (0.025, 0.975)  # the ends of a 95 % interval
FARTHEST = 1e6  # an interval end of `gap_closed` beyond this counts as unbounded
PILOT = 400  # replicates that the sampling variance is estimated from


def entropy_of(keys: Collection[str], corrected: bool = True) -> Statistic[Reading]:
    """Return the statistic: mean entropy (nats) of `keys` over all samples of a seed.

    Miller-Madow unless `corrected` is False; then plug-in.
    """

    def prepare(prompts: Sequence[Sequence[Reading]]) -> Weighted:
        pooled = [[reading for prompt in prompts for reading in prompt]]
        parts = [_entropies(pooled, key, corrected) for key in keys]
        return lambda weights: np.mean([part(weights)[:, 0] for part in parts], axis=0)

    return prepare


def entropy_within(keys: Collection[str], corrected: bool = True) -> Statistic[Reading]:
    """Return the statistic: mean entropy (nats) of `keys` within each prompt, mean over prompts.

    Differences between prompts do not count as diversity. Miller-Madow unless `corrected` is False;
    then plug-in.
    """

    def prepare(prompts: Sequence[Sequence[Reading]]) -> Weighted:
        parts = [_entropies(prompts, key, corrected) for key in keys]
        sizes = [len(prompt) for prompt in prompts]

        def weighted(weights: FloatArray) -> FloatArray:
            ends = np.cumsum(sizes)[:-1]
            shares = np.stack([part.mean(axis=1) for part in np.split(weights, ends, axis=1)], 1)
            # A prompt drawn twice does not have more samples to estimate its entropy from.
            own = weights / np.repeat(np.where(shares > 0, shares, 1.0), sizes, axis=1)
            values = np.mean([part(own) for part in parts], axis=0)
            return (shares * values).sum(axis=1) / shares.sum(axis=1)

        return weighted

    return prepare


def mean_of(prompts: Sequence[Sequence[float]]) -> Weighted:
    """Return the statistic: mean of numbers or flags over all samples of a seed."""
    values = np.array([value for prompt in prompts for value in prompt], dtype=np.float64)
    return lambda weights: weights @ values / weights.sum(axis=1)


def dissimilarity_of(prompts: Sequence[Sequence[ArrayLike]]) -> Weighted:
    """Return the statistic: mean of 1 - cos over each prompt's pairs, mean over prompts."""
    groups = [unit(np.asarray(prompt)) for prompt in prompts]
    if min(map(len, groups)) < 2:
        raise DataError("dissimilarity: a prompt has fewer than two samples")
    ends = np.cumsum([len(group) for group in groups])[:-1]

    def weighted(weights: FloatArray) -> FloatArray:
        parts = np.split(weights, ends, axis=1)
        shares = np.stack([part.mean(axis=1) for part in parts])
        values = np.stack([_dissimilarity(*pair) for pair in zip(groups, parts, strict=True)])
        return (shares * values).sum(axis=0) / shares.sum(axis=0)

    return weighted


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % interval."""

    mean: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        """Return the form in `results.json`."""
        return {"mean": self.mean, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class Comparison:
    """A treatment compared with standard SFT and the base model.

    `gap_closed` is None, with a `reason`, if SFT shows no collapse that could be closed.
    """

    gap_closed: Estimate | None
    reason: str | None = None

    def as_json(self) -> dict[str, dict[str, Any]]:
        """Return the form in `results.json`: finite numbers and nulls only.

        If the interval includes D_x >= D_base, `collapse_reduction` has only a low end and is
        marked as a lower bound.
        """
        if self.gap_closed is None:
            nothing = {"mean": None, "low": None, "high": None, "reason": self.reason}
            return {"gap_closed": nothing, "collapse_reduction": {**nothing, "lower_bound": False}}
        return {"gap_closed": self.gap_closed.as_json(), "collapse_reduction": self._reduction()}

    def _reduction(self) -> dict[str, Any]:
        gap = self.gap_closed
        assert gap is not None
        bound = gap.high >= 1
        return {
            "mean": None if bound else 1 / (1 - gap.mean),
            "low": 1 / (1 - gap.low) if gap.low < 1 else None,
            "high": None if bound else 1 / (1 - gap.high),
            "lower_bound": bound,
        }


def interval(
    runs: Runs[T], statistic: Statistic[T], resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Return one model's statistic, averaged over seeds, with its 95 % interval.

    Raises:
        DataError: a seed or a prompt has no samples, or prompts differ between seeds.
    """
    return _estimate([runs], statistic, np.array([1.0]), resamples, seed)


def difference(
    first: Runs[T],
    second: Runs[T],
    statistic: Statistic[T],
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Return D_first - D_second on the same seeds and prompts, with its 95 % interval.

    Raises:
        DataError: a seed or a prompt has no samples, or sample counts differ anywhere.
    """
    return _estimate([first, second], statistic, np.array([1.0, -1.0]), resamples, seed)


def share_kept(
    before: Runs[T],
    after: Runs[T],
    statistic: Statistic[T],
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate | None:
    """Return D_after / D_before of one model at two times, with its 95 % interval.

    The interval holds the ratios g for which D_after - g D_before may be zero. The result is None
    if D_before itself may be zero.

    Raises:
        DataError: a seed or a prompt has no samples, or sample counts differ anywhere.
    """

    def ratio(centre: FloatArray) -> FloatArray:
        return np.array([-centre[1] / centre[0], 1.0]) if centre[0] else np.array([0.0, 1.0])

    centre, replicates = _replicates([before, after], statistic, ratio, resamples, seed)
    if np.quantile(replicates[:, 0], LEVELS[0]) <= 0:
        return None
    positive = replicates[replicates[:, 0] > 0]
    low, high = np.quantile(positive[:, 1] / positive[:, 0], LEVELS)
    return Estimate(float(centre[1] / centre[0]), float(low), float(high))


def compare(
    base: Runs[T],
    sft: Runs[T],
    treatment: Runs[T],
    statistic: Statistic[T],
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Return `gap_closed` and `collapse_reduction` of `treatment`, with 95 % intervals.

    Seeds are paired (the same base run), and so are prompts. A ratio to a gap that may be zero is
    meaningless, so if the interval of D_base - D_sft reaches zero, the result is only a reason.
    Otherwise the interval is Fieller's (1954), which is then bounded: the gaps g for which
    D_x - D_sft - g (D_base - D_sft) may be zero. Quantiles of the ratios themselves would not do:
    the ratio of a replicate without a collapse changes its sign, and would count as evidence
    against a closed gap.

    Raises:
        DataError: a seed or a prompt has no samples, or sample counts differ anywhere
            (diversity at different N is not comparable).
    """
    _common_sizes([base, sft, treatment])
    collapse = difference(base, sft, statistic, resamples, seed)
    found = f"D_base - D_sft is {collapse.mean:.3g} [{collapse.low:.3g}, {collapse.high:.3g}]"
    if collapse.low <= 0:
        return Comparison(None, f"no collapse to close: {found}")
    models = [base, sft, treatment]
    centre, replicates = _replicates(models, statistic, _linear_gap, resamples, seed)
    gap = _gap(centre)
    low, high = (_fieller(replicates, gap, level) for level in LEVELS)
    if not np.isfinite([low, high]).all():
        return Comparison(
            None, f"gap_closed, about {gap:.2g}, has no bounded interval: {found} is too uncertain"
        )
    return Comparison(Estimate(gap, low, high))


def _gap(centre: FloatArray) -> float:
    base, sft, treatment = centre.tolist()
    return (treatment - sft) / (base - sft)


def _linear_gap(centre: FloatArray) -> FloatArray:
    """Return the weights [M] of D_x - D_sft - g (D_base - D_sft), with g taken from `centre`."""
    gap = _gap(centre)
    return np.array([-gap, gap - 1, 1.0])


def _fieller(replicates: FloatArray, gap: float, level: float) -> float:
    """Return one end of the interval of g, or infinity if that side of `gap` is unbounded.

    At the end, the quantile of the replicates' D_x - D_sft - g (D_base - D_sft) is zero.
    """
    closed, collapse = (replicates[:, model] - replicates[:, 1] for model in (2, 0))
    side = 1.0 if level > 0.5 else -1.0

    def beyond(distance: float) -> bool:
        left = closed - (gap + side * distance) * collapse
        return side * float(np.quantile(left, level)) <= 0

    near, far = 0.0, 1e-3
    while not beyond(far):
        near, far = far, 2 * far
        if far > FARTHEST:
            return side * np.inf
    for _ in range(40):
        middle = (near + far) / 2
        near, far = (near, middle) if beyond(middle) else (middle, far)
    return gap + side * far


def _entropies(prompts: Sequence[Sequence[Reading]], key: str, corrected: bool) -> Weighted:
    """Return the entropy of a key's values for each prompt, from weights [R, N] to [R, P]."""
    values = [first_value(reading, key) for prompt in prompts for reading in prompt]
    codes = np.unique(np.array(values, dtype=object).astype(str), return_inverse=True)[1]
    owners = np.repeat(np.arange(len(prompts)), [len(prompt) for prompt in prompts])
    order = np.lexsort((codes, owners))
    changes = (np.diff(codes[order], prepend=-1) != 0) | (np.diff(owners[order], prepend=-1) != 0)
    starts = np.flatnonzero(changes)
    firsts = np.searchsorted(owners[order][starts], np.arange(len(prompts)))

    def weighted(weights: FloatArray) -> FloatArray:
        counts = np.add.reduceat(weights[:, order], starts, axis=1)  # [R, V]
        n = np.add.reduceat(counts, firsts, axis=1)
        n = np.where(n > 0, n, 1.0)  # a prompt without weight has entropy 0
        logs = np.log(counts, out=np.zeros_like(counts), where=counts > 0)
        plug_in = np.log(n) - np.add.reduceat(counts * logs, firsts, axis=1) / n
        distinct = np.add.reduceat((counts > 0).astype(np.float64), firsts, axis=1)
        bias = np.maximum(distinct - 1, 0) / (2 * n)
        return plug_in + bias if corrected else plug_in

    return weighted


def _dissimilarity(rows: FloatArray, weights: FloatArray) -> FloatArray:
    # Dividing by the number of pairs in the sample, not in the resample, keeps the value defined
    # where all the weight falls on one row. Shifting the replicates undoes the factor this costs.
    n = len(rows)
    total = np.maximum(weights.sum(axis=1), np.finfo(np.float64).tiny)
    direction = weights / total[:, None] @ rows
    return (1 - (direction**2).sum(axis=1)) * n / (n - 1)


def _estimate(
    models: Sequence[Runs[T]],
    statistic: Statistic[T],
    weights: FloatArray,
    resamples: int,
    seed: int,
) -> Estimate:
    """Return the sum of the models' D, weighted by `weights` [M], with its interval."""
    centre, replicates = _replicates(models, statistic, lambda _: weights, resamples, seed)
    low, high = np.quantile(replicates @ weights, LEVELS)
    return Estimate(float(centre @ weights), float(low), float(high))


def _replicates(
    models: Sequence[Runs[T]],
    statistic: Statistic[T],
    weigh: Callable[[FloatArray], FloatArray],
    resamples: int,
    seed: int,
) -> tuple[FloatArray, FloatArray]:
    """Return the models' D [M] and its replicates [R, M], for the figure weighted by `weigh`.

    What prompts and seeds add to the sampling variance depends on the figure.
    """
    # Var(replicates) = V of sampling + lambda_p * J over prompts + lambda_s * J over seeds. Each
    # lambda keeps only the part of a jackknife's variance J that sampling does not explain, so that
    # nothing counts twice. `_resample` is centred on zero, which removes the bias of resampled
    # entropies: at N = 256 and 64 values of Zipf frequencies, -0.13 nats (Miller-Madow) or 1.4
    # standard errors.
    sizes = _common_sizes(models)
    prepared = [[statistic(prompts) for prompts in runs] for runs in models]
    rng = np.random.default_rng(seed)
    by_seed = _evaluate(prepared, [np.ones((1, sum(row))) for row in sizes])[0]  # [M, S]
    centre = by_seed.mean(axis=1)
    weights = weigh(centre)
    ones = np.ones((PILOT, len(sizes[0])))
    sampling = float(np.var(_resample(prepared, sizes, ones, rng) @ weights, ddof=1))
    prompts = _prompt_weights(prepared, sizes, weights, sampling, resamples, rng)
    replicates = _resample(prepared, sizes, prompts, rng) + centre
    replicates += _seed_noise(by_seed, weights, sampling, resamples, rng)
    return centre, replicates


def _common_sizes(models: Sequence[Runs[T]]) -> list[list[int]]:
    """Return the sample counts by seed and prompt [S][P], which all models must share."""
    sizes = [[[len(samples) for samples in prompts] for prompts in runs] for runs in models]
    if any(other != sizes[0] for other in sizes[1:]):
        raise DataError(
            f"collapse: the models' sample counts by seed and prompt differ: {sizes}; diversity is "
            "comparable only at equal counts, so sample the same prompts equally often"
        )
    rows = sizes[0]
    if not rows or not rows[0] or any(0 in row or len(row) != len(rows[0]) for row in rows):
        raise DataError(
            f"collapse: sample counts by seed and prompt are {rows}; "
            "give every seed the same prompts, and every prompt at least one sample"
        )
    return rows


def _evaluate(prepared: list[list[Weighted]], weights: Sequence[FloatArray]) -> FloatArray:
    """Return D [R, M, S] under the seeds' weights [R, N]."""
    return np.stack(
        [np.stack([d(w) for d, w in zip(row, weights, strict=True)], -1) for row in prepared], 1
    )


def _resample(
    prepared: list[list[Weighted]],
    sizes: list[list[int]],
    prompt_weights: FloatArray,
    rng: np.random.Generator,
) -> FloatArray:
    """Return deviations [R, M] of D under resampled samples and these prompt weights [R, P]."""
    block = max(1, BLOCK // max(sum(row) for row in sizes))
    parts = []
    for start in range(0, len(prompt_weights), block):
        shared = prompt_weights[start : start + block]
        parts.append(
            np.stack(
                [
                    np.mean(
                        [
                            d(_sample_weights(row, len(shared), rng) * np.repeat(shared, row, 1))
                            for d, row in zip(by_seed, sizes, strict=True)
                        ],
                        axis=0,
                    )
                    for by_seed in prepared
                ],
                axis=1,
            )
        )
    replicates = np.concatenate(parts)
    return replicates - replicates.mean(axis=0)


def _sample_weights(row: Sequence[int], resamples: int, rng: np.random.Generator) -> FloatArray:
    """Return how often each sample is drawn [R, N]; draws are made within each prompt."""
    ends: NDArray[np.int64] = np.cumsum(np.array(row, dtype=np.int64))
    n = int(ends[-1])
    drawn = rng.integers(np.repeat(ends - row, row), np.repeat(ends, row), size=(resamples, n))
    drawn += n * np.arange(resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=resamples * n)
    return counts.reshape(resamples, n).astype(np.float64)


def _prompt_weights(
    prepared: list[list[Weighted]],
    sizes: list[list[int]],
    weights: FloatArray,
    sampling: float,
    resamples: int,
    rng: np.random.Generator,
) -> FloatArray:
    """Return prompt weights [R, P] around 1."""
    p = len(sizes[0])
    if p < 2:
        return np.ones((resamples, p))
    deleted = 1 - np.eye(p)
    without = _evaluate(prepared, [np.repeat(deleted, row, axis=1) for row in sizes])
    share = _excess(without.mean(axis=2) @ weights, sampling)
    # Let J be the jackknife's variance over prompts and V the sampling variance. J = V + what the
    # prompts themselves add, so lambda = 1 - V / J is the prompts' share of J. The weights below
    # apply to samples that are already resampled: scaled by `a` they add a * (J + V) to the
    # replicates' variance, not a * J. It has to be lambda * J, and V = (1 - lambda) * J, so
    # a * (J + (1 - lambda) * J) = lambda * J, which gives a = lambda / (2 - lambda).
    share /= 2 - share
    draws = rng.multinomial(p - 1, np.full(p, 1 / p), size=resamples) * (p / (p - 1))
    return 1 + np.sqrt(share) * (draws - 1)


def _seed_noise(
    by_seed: FloatArray,
    weights: FloatArray,
    sampling: float,
    resamples: int,
    rng: np.random.Generator,
) -> FloatArray:
    """Return Student noise [R, M] with the spread of the models' D [M, S]; models share draws."""
    s = by_seed.shape[1]
    if s < 2:
        return np.zeros((resamples, 1))
    deviations = by_seed - by_seed.mean(axis=1, keepdims=True)
    without = (by_seed.sum(axis=1, keepdims=True) - by_seed) / (s - 1)
    share = _excess(without.T @ weights, sampling)
    # Normal over chi: Student's t with s - 1 degrees of freedom. Three seeds estimate their own
    # spread so poorly that normal noise would make the interval less than half as wide as it has
    # to be (quantiles 1.96 and 4.30).
    student = rng.normal(size=(resamples, s))
    student *= np.sqrt((s - 1) / rng.chisquare(s - 1, size=(resamples, 1)))
    return np.sqrt(share / (s * (s - 1))) * student @ deviations.T


def _excess(jackknife: FloatArray, sampling: float) -> float:
    """Return lambda: the share of the jackknife's variance that sampling does not explain."""
    n = len(jackknife)
    variance = (n - 1) / n * float(((jackknife - jackknife.mean()) ** 2).sum())
    return max(0.0, 1 - sampling / variance) if variance > 0 else 0.0
