from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from anchored.data.generations import read_generations
from anchored.errors import DataError
from anchored.metrics.noveltybench import (
    Stamp,
    distinct_k,
    effective_diversity,
    firsts,
    good_answers,
    mean_quality,
    reward_to_score,
    same_stamp,
    utility_k,
)

RUNS = (
    "Llama-3.2-1B-Instruct",
    "Llama-3.3-70B-Instruct",
    "gemma-2-27b-it",
    "gemma-2-2b-it",
    "gpt-4o-2024-11-20",
)


def means(path: Path) -> tuple[float, float]:
    found = read_generations(path)
    rows = list(zip(found.partitions, found.scores, strict=True))
    assert len(rows) == 100
    distinct = [distinct_k(partition or ()) for partition, _ in rows]
    utility = [utility_k(partition or (), scores or ()) for partition, scores in rows]
    return sum(distinct) / 100, sum(utility) / 100


@pytest.mark.parametrize("run", RUNS)
def test_published_means_follow_from_partition_and_scores(shared_data: Path, run: str) -> None:
    folder = shared_data / "noveltybench" / "runs" / run
    summary = json.loads((folder / "summary.json").read_text())
    distinct, utility = means(folder / "scores.jsonl.gz")
    assert distinct == pytest.approx(summary["mean_distinct"], abs=1e-9)
    assert utility == pytest.approx(summary["mean_utility"], abs=1e-9)


def test_humans_published_means_follow_from_partition_and_scores(shared_data: Path) -> None:
    distinct, utility = means(shared_data / "noveltybench" / "humans.jsonl")
    assert distinct == pytest.approx(6.58, abs=1e-9)
    assert round(utility, 2) == 4.73


def test_the_distinct_that_the_files_store_is_one_too_low(shared_data: Path) -> None:
    path = shared_data / "noveltybench" / "humans.jsonl"
    stored = [json.loads(line)["distinct"] for line in path.read_text().splitlines()]
    partitions = read_generations(path).partitions
    assert [distinct_k(partition or ()) for partition in partitions] == [d + 1 for d in stored]


def brute_force_utility(partition: list[int], scores: list[int], p: float) -> float:
    """Word for word from the formula."""
    k, total = len(partition), 0.0
    for i in range(1, k + 1):
        first = partition[i - 1] not in partition[: i - 1]
        total += p ** (i - 1) * first * scores[i - 1]
    return (1 - p) / (1 - p**k) * total


def brute_force_good(partition: list[int], scores: list[int | None]) -> list[int]:
    """Return the texts that score 7 or more; unscored ones (0, None) score as their class does."""
    found = []
    for i, score in enumerate(scores):
        if (score or scores[partition.index(partition[i])] or 0) >= 7:
            found.append(i)
    return found


def test_effective_diversity_is_the_number_of_classes_among_good_answers() -> None:
    rng = random.Random(1)
    for _ in range(300):
        partition = [rng.randrange(5) for _ in range(rng.randint(1, 12))]
        scores: list[int | None] = [rng.choice([None, *range(11)]) for _ in partition]
        for i in firsts(partition):
            scores[i] = rng.randint(1, 10)
        good = brute_force_good(partition, scores)
        assert good_answers(partition, scores) == good
        assert effective_diversity(partition, scores) == len({partition[i] for i in good})


def test_a_class_counts_as_good_by_any_of_its_members() -> None:
    assert effective_diversity([0, 0, 1], [3, 9, 6]) == 1
    assert effective_diversity([0, 0, 1], [6, None, 0.5 + 6]) == 0
    assert good_answers([0, 0, 1], [7, None, 10]) == [0, 1, 2]
    with pytest.raises(DataError, match="first of a class"):
        effective_diversity([0, 1], [9, None])


def test_distinct_and_utility_equal_brute_force() -> None:
    rng = random.Random(0)
    for _ in range(200):
        k = rng.randint(1, 12)
        partition = [rng.randrange(rng.randint(1, k)) for _ in range(k)]
        scores = [rng.randint(1, 10) for _ in range(k)]
        p = rng.choice([0.1, 0.5, 0.8, 0.99])
        expected = brute_force_utility(partition, scores, p)
        assert utility_k(partition, scores, p) == pytest.approx(expected, abs=1e-9)
        heads = [i for i in range(k) if partition[i] not in partition[:i]]
        assert firsts(partition) == heads
        assert distinct_k(partition) == len(heads)
        quality = sum(scores[i] for i in heads) / len(heads)
        assert mean_quality(partition, scores) == pytest.approx(quality, abs=1e-12)


def test_ten_different_best_answers_are_worth_ten_and_ten_equal_ones_their_first() -> None:
    assert utility_k(range(10), [10] * 10) == pytest.approx(10.0)
    assert utility_k([0] * 10, [10] + [0] * 9) == pytest.approx(10 * 0.2 / (1 - 0.8**10))


@pytest.mark.parametrize("score", [0, None, 11])
def test_a_first_text_that_was_never_scored_is_refused(score: int | None) -> None:
    with pytest.raises(DataError, match=r"generation_scores\[1\].*--equivalence given"):
        utility_k([0, 1, 1], [5, score, 5])
    assert utility_k([0, 0, 1], [5, score, 5]) > 0  # a repeat's score is not read


def test_rewards_map_to_one_to_ten_with_the_threshold_itself_below() -> None:
    assert [reward_to_score(r) for r in (-20, -7.71875, -7.7, -5.5, -2.046875, -2.04, 9)] == [
        1, 1, 2, 5, 9, 10, 10,
    ]  # fmt: skip


def test_figures_of_different_versions_or_backends_are_refused_and_both_named() -> None:
    old, new = Stamp("1.0", "given"), Stamp("1.1", "given llm some-judge")
    assert same_stamp({"a": old, "b": old}, "distinct_k") == old
    with pytest.raises(DataError) as caught:
        same_stamp({"a": old, "b": new}, "distinct_k")
    assert str(caught.value) == (
        "distinct_k: a has version 1.0 by given, b has version 1.1 by given llm some-judge, and "
        "these scales are not comparable; score all sets with one --equivalence, or each set by "
        "itself"
    )
