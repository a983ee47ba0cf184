"""NoveltyBench's figures of a partition, `distinct_k` and `utility_k`, with their provenance.

A partition of k texts has one class number per text. In v1.0 (Zhang et al. 2025) a classifier
compares each text with the first of each class, and a reward model scores the texts. In v1.1 (2026)
a language model groups all k texts at once and scores the first of each class. The formulas are the
same but the scales are not, so every figure has a `Stamp`, and `same_stamp` refuses to mix them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anchored.errors import DataError

PATIENCE = 0.8
GOOD = 7  # score from which an answer counts as good; ours
# Bin edges that map the rewards of v1.0's Skywork-Reward-Gemma-2-27B-v0.2 to 1..10.
REWARD_THRESHOLDS = (-7.71875, -6.28125, -6.0, -5.71875, -5.5, -5.0, -4.375, -3.4375, -2.046875)


@dataclass(frozen=True, slots=True)
class Stamp:
    """The protocol and backend that made a figure; figures with other stamps are not comparable.

    `version` is NoveltyBench's, "1.0" or "1.1", or "unstated" if a file does not give it.
    """

    version: str
    backend: str

    def __str__(self) -> str:
        return f"version {self.version} by {self.backend}"

    def as_json(self) -> dict[str, str]:
        """Return the form in `results.json`."""
        return {"version": self.version, "backend": self.backend}


def stored_stamp(row: Mapping[str, Any], stage: str) -> Stamp:
    """Return the stamp of a row's `partition` or `score`s; `stage` says which.

    From v1.1 on, NoveltyBench's rows have a `partition_config` and a `score_config`. Rows without
    them but with the field `distinct` are v1.0's.
    """
    config = row.get(f"{stage}_config")
    if not isinstance(config, Mapping):
        return Stamp("1.0" if "distinct" in row else "unstated", "given")
    made_by = [str(config[name]) for name in ("alg", "scorer", "judge_model") if config.get(name)]
    return Stamp(str(config.get("version", "unstated")), " ".join(["given", *made_by]))


def same_stamp(stamps: Mapping[str, Stamp], figure: str) -> Stamp:
    """Return the stamp that all sets share.

    Raises:
        DataError: two sets have different versions or backends; the message names both.
    """
    (first, wanted), *others = stamps.items()
    for name, stamp in others:
        if stamp != wanted:
            raise DataError(
                f"{figure}: {first} has {wanted}, {name} has {stamp}, and these scales are not "
                "comparable; score all sets with one --equivalence, or each set by itself"
            )
    return wanted


def distinct_k(partition: Sequence[Hashable]) -> int:
    """Return the number of classes among k texts, 1 to k.

    The field `distinct` that NoveltyBench's v1.0 stores is max(partition), which is one too low.

    Raises:
        DataError: the partition is empty.
    """
    if not partition:
        raise DataError("distinct_k: the partition is empty")
    return len(set(partition))


def firsts(partition: Sequence[Hashable]) -> list[int]:
    """Return the position of the first text of each class, ascending."""
    seen = dict(zip(reversed(partition), reversed(range(len(partition))), strict=True))
    return sorted(seen.values())


def utility_k(
    partition: Sequence[Hashable], scores: Sequence[float | None], patience: float = PATIENCE
) -> float:
    """Return what a reader who asks k times gains, where repeated answers are worth nothing.

    (1 - p) / (1 - p^k) * sum over i of p^(i-1) [text i is the first of its class] u_i, with
    patience p and scores u from 1 to 10 (Zhang et al. 2025). Only the scores of the first texts are
    read.

    Raises:
        DataError: there are no texts, texts and scores differ in number, or the first text of a
            class has no score from 1 to 10.
    """
    k = len(partition)
    if not k or len(scores) != k:
        raise DataError(f"utility_k: {k} texts but {len(scores)} scores")
    weights = [patience**i for i in range(k)]
    return sum(weights[i] * first_score(scores, i) for i in firsts(partition)) / sum(weights)


def mean_quality(partition: Sequence[Hashable], scores: Sequence[float | None]) -> float:
    """Return the mean score, 1 to 10, of the first text of each class.

    Raises:
        DataError: as for `utility_k`.
    """
    heads = firsts(partition)
    if not heads:
        raise DataError("quality: the partition is empty")
    return sum(first_score(scores, i) for i in heads) / len(heads)


def good_answers(partition: Sequence[Hashable], scores: Sequence[float | None]) -> list[int]:
    """Return the positions of the texts whose score is at least `GOOD`.

    A text that was never scored has the score of the first text of its class.

    Raises:
        DataError: as for `utility_k`.
    """
    of_class = {partition[i]: first_score(scores, i) for i in firsts(partition)}
    own = [
        score if score and 1 <= score <= 10 else of_class[label]
        for label, score in zip(partition, scores, strict=True)
    ]
    return [i for i, score in enumerate(own) if score >= GOOD]


def effective_diversity(partition: Sequence[Hashable], scores: Sequence[float | None]) -> int:
    """Return the number of classes that the `good_answers` belong to, 0 to k.

    Diversity among the outputs that meet a quality threshold, after Shypula et al. (2025, arXiv
    2504.12522). That the threshold is a score of `GOOD`, and the classes those of `distinct_k`, is
    ours.

    Raises:
        DataError: as for `utility_k`.
    """
    return len({partition[i] for i in good_answers(partition, scores)})


def first_score(scores: Sequence[float | None], i: int) -> float:
    """Return the score of text `i`, the first of a class.

    NoveltyBench gives 0 (v1.0) or null (v1.1) to texts that were never scored.

    Raises:
        DataError: the score is not from 1 to 10.
    """
    score = scores[i]
    if score is None or not 1 <= score <= 10:
        raise DataError(
            f"generation_scores[{i}]: {score} is not a score from 1 to 10, but that text is the "
            "first of a class; use the partition that was scored (--equivalence given), or score "
            "all texts"
        )
    return score


def reward_to_score(reward: float) -> int:
    """Map a raw reward of v1.0's reward model to its scale from 1 to 10."""
    return bisect_left(REWARD_THRESHOLDS, reward) + 1
