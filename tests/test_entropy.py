from __future__ import annotations

import math
import random

import numpy as np
import pytest
import scipy.stats

from anchored.annotation import Annotation
from anchored.errors import DataError
from anchored.metrics.entropy import (
    NONE,
    adherence,
    annotation_drift,
    annotation_entropy,
    drift_floor,
    entropy,
    miller_madow,
    semantic_entropy,
)


def test_entropy_equals_scipy_on_random_counts() -> None:
    rng = random.Random(0)
    for _ in range(50):
        values = [rng.randint(0, rng.randint(1, 40)) for _ in range(rng.randint(1, 300))]
        counts = np.unique(values, return_counts=True)[1]
        assert entropy(values) == pytest.approx(scipy.stats.entropy(counts), abs=1e-12)
        bias = (len(counts) - 1) / (2 * len(values))
        assert miller_madow(values) - entropy(values) == pytest.approx(bias, abs=1e-12)


def test_entropy_of_equal_values_is_exactly_zero_and_of_k_values_log_k() -> None:
    assert entropy(["a"] * 7) == 0.0
    assert entropy(range(64)) == pytest.approx(math.log(64), abs=1e-12)


def test_miller_madow_removes_most_of_the_bias() -> None:
    rng = np.random.default_rng(0)
    samples = rng.integers(0, 32, (400, 128)).tolist()
    plain = np.mean([entropy(s) for s in samples]) - math.log(32)
    corrected = np.mean([miller_madow(s) for s in samples]) - math.log(32)
    assert -0.14 < plain < -0.10
    assert abs(corrected) < 0.02


def test_empty_samples_are_refused() -> None:
    with pytest.raises(DataError, match="empty"):
        entropy([])
    with pytest.raises(DataError, match="empty"):
        semantic_entropy([], ["hero"])
    with pytest.raises(DataError, match="no keys"):
        semantic_entropy([{"hero": "Mara"}], [])


def test_semantic_entropy_is_the_mean_over_keys_and_a_missing_key_is_a_value() -> None:
    readings = [{"hero": "Mara", "place": "sea"}, {"hero": "Ivo"}, {"hero": "Mara"}, {}]
    found = semantic_entropy(readings, ["hero", "place"])
    hero = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    place = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert found.n == 4
    assert found.mean == pytest.approx((hero + place) / 2, abs=1e-12)
    assert found.mean_miller_madow == pytest.approx((hero + 2 / 8 + place + 1 / 8) / 2, abs=1e-12)
    assert found.by_key["hero"].top == (("Mara", 2), (NONE, 1), ("Ivo", 1))
    assert found.by_key["place"].top == ((NONE, 3), ("sea", 1))
    assert found.by_key["place"].distinct == 2


def test_annotations_count_by_the_first_value_of_a_key() -> None:
    annotations = [Annotation.of({"entity": ["A", "B"]}), Annotation.of({"entity": ["A", "C"]})]
    assert annotation_entropy(annotations, ["entity"]).mean == 0.0
    assert annotation_entropy([*annotations, Annotation()], ["entity"]).by_key["entity"].top == (
        ("A", 2),
        (NONE, 1),
    )


def test_drift_equals_scipy_on_smoothed_counts() -> None:
    rng = random.Random(1)
    before = [{"k": str(rng.randint(0, 9))} for _ in range(80)]
    after = [{"k": str(rng.randint(4, 14))} for _ in range(60)]
    values = sorted({r["k"] for r in before + after})
    p = np.array([sum(r["k"] == v for r in before) + 0.5 for v in values])
    q = np.array([sum(r["k"] == v for r in after) + 0.5 for v in values])
    expected = scipy.stats.entropy(p, q)
    assert annotation_drift(before, after, ["k"])["k"] == pytest.approx(expected, abs=1e-12)
    assert annotation_drift(after, before, ["k"])["k"] == pytest.approx(
        scipy.stats.entropy(q, p), abs=1e-12
    )


def test_drift_of_a_sample_against_itself_is_zero() -> None:
    sample = [{"k": v} for v in "aabbbc"]
    assert annotation_drift(sample, sample, ["k"])["k"] == pytest.approx(0.0, abs=1e-15)


def test_drift_floor_is_what_two_samples_of_one_distribution_show() -> None:
    rng = random.Random(2)
    draw = lambda: [{"k": str(rng.randint(0, 31))} for _ in range(256)]  # noqa: E731
    drifts = [annotation_drift(draw(), draw(), ["k"])["k"] for _ in range(60)]
    floor = drift_floor(draw(), draw(), ["k"])["k"]
    assert floor == pytest.approx(31 * (2 / 256) / 2, rel=0.2)
    assert floor == pytest.approx(sum(drifts) / 60, rel=0.15)


def test_adherence_pools_tags_and_reports_each_key() -> None:
    annotations = [
        Annotation.of({"hero": "Mara", "place": "sea"}),
        Annotation.of({"hero": "Ivo"}),
        Annotation(),
    ]
    readings = [{"hero": "Mara", "place": "wood"}, {"hero": "Ivo"}, {"hero": "Ada"}]
    found = adherence(annotations, readings)
    assert found.mean == pytest.approx(2 / 3)
    assert found.by_key == {"hero": 1.0, "place": 0.0}
    assert found.tags == 3
    assert adherence(annotations, readings, ["hero"]).mean == 1.0


def test_adherence_looks_among_all_values_of_a_reading() -> None:
    annotation = Annotation.of({"entity": ["A", "B", "C"]})
    reading = Annotation.of({"entity": ["B", "A", "D"]})
    assert adherence([annotation], [reading]).mean == pytest.approx(2 / 3)


def test_adherence_without_tags_is_none_and_unequal_lengths_are_refused() -> None:
    assert adherence([Annotation()], [{}]).mean is None
    with pytest.raises(DataError, match="1 annotations but 0 readings"):
        adherence([Annotation()], [])
