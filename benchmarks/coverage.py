"""Measure how often 95 % intervals contain the truth, on simulated models with known figures.

    python benchmarks/coverage.py [--trials 1000]

Over prompts (`anchored score`): each prompt of each trial has its own Zipf distribution over 20
values, and k = 10 draws from it. The truth is the expected figure at k, from the binomial
distribution, averaged over such prompts. The second model has steeper distributions.
From samples (the collapse table): N = 256 samples of Zipf attributes with 8 to 64 values; the truth
is their entropy. `thin tail` is one attribute with three frequent values and 64 that share 15 %.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import numpy as np
from scipy import stats

from anchored.metrics.collapse import compare, entropy_of, interval
from anchored.metrics.entropy import entropy
from anchored.metrics.statistics import mean_interval, paired_difference

K, VALUES = 10, 20
EXPONENTS = (0.5, 2.5)
STEEPER = 0.4
N = 256
SIZES = (8, 16, 32, 64)
RESAMPLES = 500

Figure = Callable[[np.ndarray], float]


def zipf(values: int, exponent: float = 1.0) -> np.ndarray:
    """Return the probabilities of the values."""
    weights = np.arange(1, values + 1) ** -exponent
    return weights / weights.sum()


def at_k(p: np.ndarray) -> tuple[float, float]:
    """Return the expected plug-in entropy and number of distinct values of K draws from `p`."""
    c = np.arange(K + 1)
    terms = -np.where(c > 0, c / K * np.log(np.maximum(c, 1) / K), 0.0)
    return float((stats.binom.pmf(c, K, p[:, None]) @ terms).sum()), float((1 - (1 - p) ** K).sum())


def truths(steeper: float) -> np.ndarray:
    """Return both figures, averaged over the prompts' exponents."""
    grid = np.linspace(*EXPONENTS, 2001)
    return np.mean([at_k(zipf(VALUES, exponent + steeper)) for exponent in grid], axis=0)


def model(rng: np.random.Generator, exponents: np.ndarray) -> np.ndarray:
    """Return both figures of each prompt [P, 2], measured on K draws."""
    rows = []
    for exponent in exponents:
        draws = rng.choice(VALUES, p=zipf(VALUES, exponent), size=K).tolist()
        rows.append((entropy(draws), float(len(set(draws)))))
    return np.array(rows)


def over_prompts(prompts: int, trials: int) -> Iterator[tuple[str, float]]:
    """Return the coverage of means and paired differences, and the rate of false positives."""
    truth, other = truths(0.0), truths(STEEPER)
    rng = np.random.default_rng(prompts)
    hits = np.zeros((2, 2))  # mean, difference; entropy, distinct
    false = 0
    for trial in range(trials):
        exponents = rng.uniform(*EXPONENTS, size=prompts)
        first, second = model(rng, exponents), model(rng, exponents + STEEPER)
        for f in range(2):
            own = mean_interval(first[:, f], RESAMPLES, seed=trial)
            found = paired_difference(first[:, f], second[:, f], RESAMPLES, 1, seed=trial).estimate
            hits[0, f] += own.low <= truth[f] <= own.high
            hits[1, f] += found.low <= truth[f] - other[f] <= found.high
        same = model(rng, exponents)
        false += paired_difference(first[:, 0], same[:, 0], 100, 999, seed=trial).p <= 0.05
    for i, what in enumerate(("mean", "difference")):
        for f, figure in enumerate(("plug-in entropy at k", "distinct values at k")):
            yield f"P = {prompts}: {what} of {figure}", hits[i, f] / trials
    yield f"P = {prompts}: p > 0.05 where there is no difference", 1 - false / trials


def readings(rng: np.random.Generator, attributes: list[np.ndarray]) -> list:
    """Draw N samples with these attributes for one seed and prompt."""
    columns = [rng.choice(len(p), p=p, size=N).astype(str).tolist() for p in attributes]
    keys = [str(i) for i in range(len(attributes))]
    return [[[dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]]]


def from_samples(trials: int) -> Iterator[tuple[str, float]]:
    """Return the coverage of one model's Miller-Madow entropy and of `gap_closed`."""
    base = [zipf(size) for size in SIZES]
    sft = [zipf(size, 3.0) for size in SIZES]
    treated = [0.9 * b + 0.1 * s for b, s in zip(base, sft, strict=True)]
    tail = [np.concatenate([[0.5, 0.25, 0.1], np.full(64, 0.15 / 64)])]
    h = [float(np.mean([stats.entropy(p) for p in one])) for one in (base, sft, treated, tail)]
    gap = (h[2] - h[1]) / (h[0] - h[1])
    statistic, of_tail = entropy_of([str(i) for i in range(len(SIZES))]), entropy_of(["0"])
    rng = np.random.default_rng(0)
    hits = np.zeros(3)
    for trial in range(trials):
        runs = [readings(rng, one) for one in (base, sft, treated, tail)]
        single = interval(runs[0], statistic, RESAMPLES, seed=trial)
        thin = interval(runs[3], of_tail, RESAMPLES, seed=trial)
        closed = compare(runs[0], runs[1], runs[2], statistic, RESAMPLES, seed=trial).gap_closed
        assert closed is not None
        hits += [
            single.low <= h[0] <= single.high,
            thin.low <= h[3] <= thin.high,
            closed.low <= gap <= closed.high,
        ]
    names = ("Miller-Madow entropy", "the same, thin tail", "gap_closed")
    for name, hit in zip(names, hits, strict=True):
        yield f"N = {N}: {name}", hit / trials


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    trials = parser.parse_args().trials
    error = 100 * (0.95 * 0.05 / trials) ** 0.5
    print(f"{trials} trials; standard error {error:.1f} points.\n\n| interval | held |\n|---|---:|")
    for rows in (over_prompts(16, trials), over_prompts(100, trials), from_samples(trials)):
        for name, share in rows:
            print(f"| {name} | {100 * share:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
