from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from anchored.errors import DataError
from anchored.metrics.statistics import (
    detectable,
    exchange_p,
    holm,
    mean_interval,
    paired_difference,
)


@pytest.mark.parametrize("p", [10, 30, 100])
def test_interval_of_a_mean_has_students_width(p: int) -> None:
    x = np.random.default_rng(p).normal(size=p)
    half = stats.t.ppf(0.975, p - 1) * x.std(ddof=1) / math.sqrt(p)
    found = mean_interval(x, resamples=40_000)
    assert found.mean == pytest.approx(x.mean(), abs=1e-12)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.05)


def test_interval_leans_as_the_values_do() -> None:
    x = np.array([0.0] * 15 + [10.0])
    found = mean_interval(x, resamples=20_000)
    assert found.high - found.mean > 1.3 * (found.mean - found.low)


@pytest.mark.parametrize("p", [16, 60])
def test_intervals_hold_the_known_entropy_at_k_95_percent_of_the_time(p: int) -> None:
    """+- 3 %, on prompts that differ in their distributions; 600 trials have an error of 0.9 %."""
    k, rng = 10, np.random.default_rng(p)
    exponents = rng.uniform(0.5, 2.5, size=200)  # the prompts that there are
    weights = np.arange(1, 21) ** -exponents[:, None]
    distributions = weights / weights.sum(axis=1, keepdims=True)
    c = np.arange(1, k + 1)
    terms = -c / k * np.log(c / k)
    truth = float((stats.binom.pmf(c, k, distributions[..., None]) @ terms).sum(axis=1).mean())
    hits = 0
    for trial in range(600):
        drawn = rng.multinomial(k, distributions[rng.integers(200, size=p)]) / k
        logs = np.log(drawn, out=np.zeros_like(drawn), where=drawn > 0)
        found = mean_interval(-(drawn * logs).sum(axis=1), 300, seed=trial)
        hits += found.low <= truth <= found.high
    assert abs(hits / 600 - 0.95) <= 0.03, hits / 600


def test_exchange_p_equals_the_count_of_all_sign_patterns() -> None:
    d = np.random.default_rng(0).normal(0.4, 1, size=10)
    signs = np.array(list(itertools.product((-1, 1), repeat=10)))
    exact = (np.abs(signs @ d) >= abs(d.sum()) - 1e-12).mean()
    assert exchange_p(d, exchanges=200_000) == pytest.approx(exact, abs=0.004)


def test_ties_count_as_extreme_whatever_rounding_makes_of_them() -> None:
    tenths = np.array([-1, 6, 1, -5, 4, 13, 9, -7])
    signs = np.array(list(itertools.product((-1, 1), repeat=8)))
    exact = (np.abs(signs @ tenths) >= abs(tenths.sum())).mean()  # in whole numbers
    assert exchange_p(tenths / 10, exchanges=50_000) == pytest.approx(exact, abs=0.01)


def test_exchange_p_of_no_difference_is_one_and_has_a_floor() -> None:
    assert exchange_p(np.zeros(20)) == 1.0
    assert exchange_p(np.full(100, 0.3), exchanges=999) == 1 / 1000
    assert exchange_p([0.1, 0.1, 0.1, 0.1], exchanges=9999) == pytest.approx(2 / 16, abs=0.01)


def test_p_is_below_five_percent_five_percent_of_the_time_without_a_difference() -> None:
    rng = np.random.default_rng(1)
    found = [exchange_p(rng.exponential(size=25) - rng.exponential(size=25), 399, seed=i)
             for i in range(600)]  # fmt: skip
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.027)  # 3 standard errors


def test_the_detectable_difference_is_detected_four_times_in_five() -> None:
    rng = np.random.default_rng(2)
    p, s = 16, 1.0
    quantiles = stats.t.ppf([0.975, 0.8], p - 1)
    difference = float(quantiles.sum() * s / math.sqrt(p))
    noise = rng.normal(size=p)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    assert detectable(noise) == pytest.approx(difference, abs=1e-12)
    seen = [exchange_p(rng.normal(difference, s, size=p), 399, seed=i) <= 0.05
            for i in range(600)]  # fmt: skip
    assert np.mean(seen) == pytest.approx(0.8, abs=0.05)


def test_paired_differences_see_what_prompts_hide() -> None:
    rng = np.random.default_rng(3)
    prompts = rng.normal(0, 5, size=40)
    first = prompts + 0.5 + 0.1 * rng.normal(size=40)
    found = paired_difference(first, prompts)
    assert found.estimate.mean == pytest.approx((first - prompts).mean(), abs=1e-12)
    assert 0.4 < found.estimate.low < found.estimate.high < 0.6
    assert found.p == 1 / 10_000
    assert mean_interval(first).low < mean_interval(prompts).high  # unpaired nothing shows
    assert found.as_json().keys() == {"mean", "low", "high", "p", "detectable"}


def test_holm_steps_down_and_stays_ordered() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_chance_of_any_false_finding_at_its_level() -> None:
    p = np.random.default_rng(4).random((4000, 10))
    assert np.mean([min(holm(row.tolist())) <= 0.05 for row in p]) == pytest.approx(0.05, abs=0.012)
    assert np.mean(p.min(axis=1) <= 0.05) > 0.35


def test_one_prompt_and_unequal_numbers_are_refused() -> None:
    with pytest.raises(DataError, match=r"found shape \(1,\); give one value per prompt"):
        mean_interval([1.0])
    with pytest.raises(DataError, match="3 prompts and 2 prompts"):
        paired_difference([1, 2, 3], [1, 2])


def test_same_seed_same_figures_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    from anchored.metrics import statistics

    x = np.random.default_rng(5).normal(size=50)
    whole = paired_difference(x, np.zeros(50), 300, 500, seed=1)
    assert whole == paired_difference(x, np.zeros(50), 300, 500, seed=1)
    monkeypatch.setattr(statistics, "BLOCK", 1000)
    assert paired_difference(x, np.zeros(50), 300, 500, seed=1) == whole
