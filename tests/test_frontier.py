"""The area under the diversity-quality frontier, by hand and by brute force."""

from __future__ import annotations

import numpy as np
import pytest

from anchored.errors import DataError
from anchored.metrics.frontier import Box, Sweep, common_box, dominated, frontier_area

UNIT = Box((0.0, 1.0), (0.0, 1.0))


def one_prompt(quality: list[float], diversity: list[float]) -> Sweep:
    return Sweep(np.array(quality)[:, None], np.array(diversity)[:, None])


@pytest.mark.parametrize(
    ("quality", "diversity", "area"),
    [
        ([1.0], [1.0], 1.0),
        ([0.5], [0.5], 0.25),
        ([0.25, 0.75], [0.75, 0.25], 0.25 * 0.75 + 0.5 * 0.25),
        ([0.25, 0.75, 0.2], [0.75, 0.25, 0.1], 0.25 * 0.75 + 0.5 * 0.25),  # a dominated point
        ([0.5, 0.5], [0.2, 0.6], 0.3),  # equal quality: the more diverse one counts
        ([-1.0], [1.0], 0.0),
        ([1.0], [-1.0], 0.0),
        ([2.0], [1.0], 2.0),  # a replicate beyond the box
    ],
)
def test_areas_by_hand(quality: list[float], diversity: list[float], area: float) -> None:
    assert float(dominated(quality, diversity, UNIT)) == pytest.approx(area, abs=1e-12)


def test_area_is_the_integral_of_the_most_diversity_at_each_quality() -> None:
    rng = np.random.default_rng(0)
    box = Box((-2.0, 3.0), (1.0, 5.0))
    grid = np.linspace(-2, 3, 200_001)[:-1] + 5 / 400_000
    for _ in range(5):
        q, d = rng.uniform(-2, 3, 6), rng.uniform(1, 5, 6)
        reached = np.where(q[None] >= grid[:, None], d[None], box.diversity[0]).max(axis=1)
        integral = (reached - box.diversity[0]).mean() * 5 / box.area
        assert float(dominated(q, d, box)) == pytest.approx(integral, abs=1e-4)


def test_the_order_of_temperatures_is_nothing_to_the_area() -> None:
    rng = np.random.default_rng(1)
    q, d = rng.random(7), rng.random(7)
    order = rng.permutation(7)
    assert dominated(q, d, UNIT) == pytest.approx(dominated(q[order], d[order], UNIT), abs=1e-12)


def test_the_box_spans_the_points_of_all_models() -> None:
    box = common_box([one_prompt([1, 2], [5, 4]), one_prompt([3], [7])])
    assert box == Box((1.0, 3.0), (4.0, 7.0))
    assert common_box([one_prompt([1, 1], [5, 4])]) is None


def test_a_model_that_is_better_at_every_temperature_has_the_larger_area() -> None:
    rng = np.random.default_rng(2)
    q, d = rng.random((4, 30)), rng.random((4, 30))
    worse, better = Sweep(q, d), Sweep(q + 0.5, d + 0.5)
    box = common_box([worse, better])
    assert box is not None
    areas = [frontier_area(sweep, box) for sweep in (worse, better)]
    assert areas[0][0] < areas[1][0]
    assert areas[0][1] and areas[1][1] and areas[0][1].high < areas[1][1].low


def test_the_interval_is_that_of_the_mean_where_one_point_sweeps_a_rectangle() -> None:
    """With diversity the same for all prompts the area is linear in the mean quality."""
    rng = np.random.default_rng(3)
    quality = rng.normal(0.5, 0.1, (1, 50))
    area, found = frontier_area(Sweep(quality, np.full((1, 50), 0.5)), UNIT, 20_000)
    assert area == pytest.approx(0.5 * quality.mean(), abs=1e-12)
    assert found is not None
    half = 1.96 * 0.5 * quality.std(ddof=1) / np.sqrt(50)
    assert (found.low, found.high) == pytest.approx((area - half, area + half), abs=0.1 * half)


def test_one_prompt_has_an_area_without_an_interval() -> None:
    assert frontier_area(one_prompt([0.5], [0.5]), UNIT) == (0.25, None)


def test_quality_and_diversity_must_pair() -> None:
    with pytest.raises(DataError, match="pair them"):
        frontier_area(Sweep(np.ones((2, 3)), np.ones((2, 4))), UNIT)
