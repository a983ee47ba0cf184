"""NoveltyBench's two figures of a partition, with what made them: `distinct_k` and `utility_k`.

A partition of k texts is a class number a text. Zhang et al. 2025 (v1.0) let a classifier compare
each text with the first of each class and a reward model score them; v1.1 (2026) lets a language
model group all k at once and score the first of each class. The formulas are the same, the scales
are not: a `Stamp` goes with every figure, and `same_stamp` refuses to mix them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anchored.errors import DataError

PATIENCE = 0.8
# Skywork-Reward-Gemma-2-27B-v0.2's rewards to 1..10, in v1.0.
REWARD_THRESHOLDS = (-7.71875, -6.28125, -6.0, -5.71875, -5.5, -5.0, -4.375, -3.4375, -2.046875)


@dataclass(frozen=True, slots=True)
class Stamp:
    """By which protocol and by whose judgement a figure was made; others are on another scale.

    `version` is NoveltyBench's, "1.0" or "1.1", or "unstated" where a file does not say.
    """

    version: str
    backend: str

    def __str__(self) -> str:
        return f"version {self.version} by {self.backend}"

    def as_json(self) -> dict[str, str]:
        """The form in `results.json`."""
        return {"version": self.version, "backend": self.backend}


def stored_stamp(row: Mapping[str, Any], stage: str) -> Stamp:
    """What a row says about its `partition` or its `score`s, which is `stage`.

    From v1.1 on NoveltyBench's rows carry a `partition_config` and a `score_config`; rows without
    them but with its field `distinct` are of v1.0.
    """
    config = row.get(f"{stage}_config")
    if not isinstance(config, Mapping):
        return Stamp("1.0" if "distinct" in row else "unstated", "given")
    made_by = [str(config[name]) for name in ("alg", "scorer", "judge_model") if config.get(name)]
    return Stamp(str(config.get("version", "unstated")), " ".join(["given", *made_by]))


def same_stamp(stamps: Mapping[str, Stamp], figure: str) -> Stamp:
    """The one stamp of all sets.

    Raises:
        DataError: two sets' figures are of different versions or backends; both are named.
    """
    (first, wanted), *others = stamps.items()
    for name, stamp in others:
        if stamp != wanted:
            raise DataError(
                f"{figure}: {first} has {wanted}, {name} has {stamp}, and these scales do not "
                "compare; score all sets with one --equivalence, or each by itself"
            )
    return wanted


def distinct_k(partition: Sequence[Hashable]) -> int:
    """Number of classes among k texts, 1 to k.

    The field `distinct` that NoveltyBench's v1.0 stores is max(partition): one too low.

    Raises:
        DataError: the partition is empty.
    """
    if not partition:
        raise DataError("distinct_k: the partition is empty")
    return len(set(partition))


def firsts(partition: Sequence[Hashable]) -> list[int]:
    """Position of the first text of each class, ascending."""
    seen = dict(zip(reversed(partition), reversed(range(len(partition))), strict=True))
    return sorted(seen.values())


def utility_k(
    partition: Sequence[Hashable], scores: Sequence[float | None], patience: float = PATIENCE
) -> float:
    """What a reader who asks k times gains: repeated answers are worth nothing.

    (1 - p) / (1 - p^k) * sum over i of p^(i-1) [text i is the first of its class] u_i, with
    patience p and scores u from 1 to 10 (Zhang et al. 2025). Only the firsts' scores are read.

    Raises:
        DataError: no texts, not a score a text, or the first of a class has none from 1 to 10.
    """
    k = len(partition)
    if not k or len(scores) != k:
        raise DataError(f"utility_k: {k} texts but {len(scores)} scores")
    weights = [patience**i for i in range(k)]
    return sum(weights[i] * first_score(scores, i) for i in firsts(partition)) / sum(weights)


def mean_quality(partition: Sequence[Hashable], scores: Sequence[float | None]) -> float:
    """Mean score of the first text of each class, 1 to 10.

    Raises:
        DataError: as `utility_k`.
    """
    heads = firsts(partition)
    if not heads:
        raise DataError("quality: the partition is empty")
    return sum(first_score(scores, i) for i in heads) / len(heads)


def first_score(scores: Sequence[float | None], i: int) -> float:
    """The score of text `i`, the first of a class.

    NoveltyBench writes 0 (v1.0) or null (v1.1) to texts that were never scored.

    Raises:
        DataError: it is not from 1 to 10.
    """
    score = scores[i]
    if score is None or not 1 <= score <= 10:
        raise DataError(
            f"generation_scores[{i}]: {score} is no score from 1 to 10, but that text is the "
            "first of a class; take the partition that was scored (--equivalence given), or score "
            "all texts"
        )
    return score


def reward_to_score(reward: float) -> int:
    """A raw reward of v1.0's reward model on its scale from 1 to 10."""
    return bisect_left(REWARD_THRESHOLDS, reward) + 1
