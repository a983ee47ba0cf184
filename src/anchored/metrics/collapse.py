"""How much of a collapse a treatment undoes, with bootstrap intervals over seeds, prompts, samples.

A model's *runs* are its samples as seeds x prompts x samples. A *statistic* D is computed for each
seed and averaged over seeds. With D of the base model, of standard SFT and of a treatment x:

    gap_closed = (D_x - D_sft) / (D_base - D_sft)
    collapse_reduction = (D_base - D_sft) / (D_base - D_x) = 1 / (1 - gap_closed)

Replicates are made level by level. Samples are resampled within each seed and prompt. Prompts are
resampled as wholes (P - 1 of P, Rao and Wu 1988), the same ones for every model and seed. Seeds,
of which there are few and on which D depends linearly, get Student noise of their own spread, the
same for every model: with one seed there is none, and the interval speaks of that run alone.
What prompts and seeds add is only the part of their spread that sampling does not explain already,
or it would count twice: lambda = max(0, 1 - sampling variance / jackknife variance).
Entropies of a resample are biased low (rare values vanish): replicates are shifted to the estimate.

Simulated coverage of the 95 % intervals (benchmarks/coverage.py; N = 256, Zipf attributes of 8 to
64 values): gap_closed 94 %; a single model's Miller-Madow entropy 92 %, but 82 % where the tail is
long and thin, since Miller-Madow itself is low there (by 0.06 nats with 15 % of the mass on 64
values). Not in the script: three seeds that differ much more than sampling explains, 90 to 91 %, or
88 % if the collapse is small too; one seed and a collapse of 2 standard errors, which is reported
half of the time, 92 %; of 2.5 to 4, 94 to 95 %.
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
FARTHEST = 1e6  # an end of `gap_closed` beyond this is no end
PILOT = 400  # replicates from which the sampling variance is taken


def entropy_of(keys: Collection[str], corrected: bool = True) -> Statistic[Reading]:
    """Mean entropy (nats) of the attributes `keys` over all samples of a seed.

    Miller-Madow unless `corrected` is False; then plug-in.
    """

    def prepare(prompts: Sequence[Sequence[Reading]]) -> Weighted:
        pooled = [[reading for prompt in prompts for reading in prompt]]
        parts = [_entropies(pooled, key, corrected) for key in keys]
        return lambda weights: np.mean([part(weights)[:, 0] for part in parts], axis=0)

    return prepare


def entropy_within(keys: Collection[str], corrected: bool = True) -> Statistic[Reading]:
    """Mean entropy (nats) of the attributes `keys` over each prompt's samples, mean over prompts.

    What the prompts themselves differ by is no diversity. Miller-Madow unless `corrected` is False;
    then plug-in.
    """

    def prepare(prompts: Sequence[Sequence[Reading]]) -> Weighted:
        parts = [_entropies(prompts, key, corrected) for key in keys]
        sizes = [len(prompt) for prompt in prompts]

        def weighted(weights: FloatArray) -> FloatArray:
            ends = np.cumsum(sizes)[:-1]
            shares = np.stack([part.mean(axis=1) for part in np.split(weights, ends, axis=1)], 1)
            # A prompt that is drawn twice has no more samples to estimate its entropy from.
            own = weights / np.repeat(np.where(shares > 0, shares, 1.0), sizes, axis=1)
            values = np.mean([part(own) for part in parts], axis=0)
            return (shares * values).sum(axis=1) / shares.sum(axis=1)

        return weighted

    return prepare


def mean_of(prompts: Sequence[Sequence[float]]) -> Weighted:
    """The mean of numbers or flags over all samples of a seed."""
    values = np.array([value for prompt in prompts for value in prompt], dtype=np.float64)
    return lambda weights: weights @ values / weights.sum(axis=1)


def dissimilarity_of(prompts: Sequence[Sequence[ArrayLike]]) -> Weighted:
    """Mean of 1 - cos over the pairs of each prompt's vectors, averaged over prompts."""
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
        """The form in `results.json`."""
        return {"mean": self.mean, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class Comparison:
    """A treatment against standard SFT and the base model.

    Both are None, with the `reason`, where SFT shows no collapse that could be closed.
    """

    gap_closed: Estimate | None
    reason: str | None = None

    def as_json(self) -> dict[str, dict[str, Any]]:
        """The form in `results.json`: finite numbers and nulls only.

        Where the interval holds D_x >= D_base, `collapse_reduction` has a low end alone and is
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
    """The statistic of one model, averaged over seeds, with its 95 % interval.

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
    """D_first - D_second of two models on the same seeds and prompts, with its 95 % interval.

    Raises:
        DataError: a seed or a prompt has no samples, or numbers of samples differ anywhere.
    """
    return _estimate([first, second], statistic, np.array([1.0, -1.0]), resamples, seed)


def share_kept(
    before: Runs[T],
    after: Runs[T],
    statistic: Statistic[T],
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate | None:
    """D_after / D_before of one model at two times, with its 95 % interval.

    The ends are where D_after - g D_before may be zero. None where D_before may be zero itself.

    Raises:
        DataError: a seed or a prompt has no samples, or numbers of samples differ anywhere.
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
    """`gap_closed` and `collapse_reduction` of `treatment`, with 95 % intervals.

    Seeds are paired (the same base run), prompts too. A ratio to a gap that may be zero means
    nothing: if the interval of D_base - D_sft reaches zero, there is only a reason. The interval is
    Fieller's (1954), which then is bounded: the gaps g for which D_x - D_sft - g (D_base - D_sft)
    may be zero. Quantiles of the ratios themselves would take a replicate without a collapse, whose
    ratio changes its sign, for evidence against a closed gap.

    Raises:
        DataError: a seed or a prompt has no samples, or numbers of samples differ anywhere
            (diversity at different N does not compare).
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
    """Weights [M] of D_x - D_sft - g (D_base - D_sft), with the g of `centre`."""
    gap = _gap(centre)
    return np.array([-gap, gap - 1, 1.0])


def _fieller(replicates: FloatArray, gap: float, level: float) -> float:
    """An end of the interval of g; infinite if it has none on the level's side of `gap`.

    There the quantile of the replicates' D_x - D_sft - g (D_base - D_sft) is zero.
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
    """Entropy of a key's values for each prompt: weights [R, N] to [R, P]."""
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
    # Dividing by the pairs of the sample, not of the resample, keeps it defined where all the
    # weight falls on one row; the factor this costs is taken back with the replicates' shift.
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
    """The models' D weighted by `weights` [M] and added up."""
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
    """The models' D [M] and replicates of it [R, M], for a figure whose weights `weigh` gives.

    What prompts and seeds add to sampling depends on the figure.
    """
    # Var(replicates) = V of sampling + lambda_p * J over prompts + lambda_s * J over seeds. Each
    # lambda keeps of a jackknife's variance J only what sampling does not explain, so that nothing
    # counts twice. `_resample` is centred on zero, which takes away the bias of resampled
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
    """Samples by seed and prompt [S][P], the same for every model."""
    sizes = [[[len(samples) for samples in prompts] for prompts in runs] for runs in models]
    if any(other != sizes[0] for other in sizes[1:]):
        raise DataError(
            f"collapse: the models' samples by seed and prompt differ: {sizes}; "
            "diversity compares only at equal numbers, so sample the same prompts equally often"
        )
    rows = sizes[0]
    if not rows or not rows[0] or any(0 in row or len(row) != len(rows[0]) for row in rows):
        raise DataError(
            f"collapse: samples by seed and prompt are {rows}; "
            "every seed needs the same prompts, and every prompt at least one sample"
        )
    return rows


def _evaluate(prepared: list[list[Weighted]], weights: Sequence[FloatArray]) -> FloatArray:
    """D [R, M, S] under the seeds' weights [R, N]."""
    return np.stack(
        [np.stack([d(w) for d, w in zip(row, weights, strict=True)], -1) for row in prepared], 1
    )


def _resample(
    prepared: list[list[Weighted]],
    sizes: list[list[int]],
    prompt_weights: FloatArray,
    rng: np.random.Generator,
) -> FloatArray:
    """Deviations [R, M] of D under resampled samples and the given prompt weights [R, P]."""
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
    """How often each sample is drawn [R, N], the draws within each prompt."""
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
    """Weights [R, P] around 1."""
    p = len(sizes[0])
    if p < 2:
        return np.ones((resamples, p))
    deleted = 1 - np.eye(p)
    without = _evaluate(prepared, [np.repeat(deleted, row, axis=1) for row in sizes])
    share = _excess(without.mean(axis=2) @ weights, sampling)
    # With J the jackknife's variance over prompts and V that of sampling, J = V + what the prompts
    # themselves add, so lambda = 1 - V / J is the prompts' share of J. The weights below are drawn
    # on samples that are resampled already: scaled by `a` they add a * (J + V) to the replicates'
    # variance, not a * J. It has to be lambda * J, and V = (1 - lambda) * J, so
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
    """Student noise [R, M] with the spread of the models' D [M, S], the same draws for all."""
    s = by_seed.shape[1]
    if s < 2:
        return np.zeros((resamples, 1))
    deviations = by_seed - by_seed.mean(axis=1, keepdims=True)
    without = (by_seed.sum(axis=1, keepdims=True) - by_seed) / (s - 1)
    share = _excess(without.T @ weights, sampling)
    # Normal over chi: Student's t with s - 1 degrees of freedom. Three seeds tell their own spread
    # so badly that normal noise of it would make the interval less than half as wide as it has to
    # be (quantiles 1.96 against 4.30).
    student = rng.normal(size=(resamples, s))
    student *= np.sqrt((s - 1) / rng.chisquare(s - 1, size=(resamples, 1)))
    return np.sqrt(share / (s * (s - 1))) * student @ deviations.T


def _excess(jackknife: FloatArray, sampling: float) -> float:
    """Lambda: the share of the delete-one jackknife's variance that sampling does not explain."""
    n = len(jackknife)
    variance = (n - 1) / n * float(((jackknife - jackknife.mean()) ** 2).sum())
    return max(0.0, 1 - sampling / variance) if variance > 0 else 0.0
