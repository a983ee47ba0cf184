"""Entropies (nats) of the attributes of samples, read from the texts or from their annotations.

A *reading* holds the attributes of one sample: `{key: value}`, or an `Annotation`. A missing key
counts as the value `NONE`, since leaving something out is a choice too. If an annotation repeats a
key, its first value counts: sets of values would nearly all be distinct, and their entropy would
measure the sample size.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from anchored.annotation import Annotation
from anchored.errors import DataError

NONE = "(none)"
TOP = 8

Reading = Mapping[str, str] | Annotation


def entropy(values: Iterable[Hashable]) -> float:
    """Return the plug-in Shannon entropy (nats) of the empirical distribution of `values`.

    It is biased low by about (distinct values - 1) / 2N: compare only at equal N.

    Raises:
        DataError: there are no values.
    """
    return _plug_in(_counts(values))


def miller_madow(values: Iterable[Hashable]) -> float:
    """Return `entropy` (nats) plus its first-order bias, (distinct - 1) / 2N (Miller 1955).

    Raises:
        DataError: there are no values.
    """
    return _miller_madow(_counts(values))


@dataclass(frozen=True, slots=True)
class KeyEntropy:
    """One attribute's entropies in nats, count of distinct values, and `TOP` frequent values."""

    entropy: float
    miller_madow: float
    distinct: int
    top: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class SemanticEntropy:
    """Plug-in and Miller-Madow entropy (nats) of `n` readings, averaged over the keys."""

    mean: float
    mean_miller_madow: float
    by_key: dict[str, KeyEntropy]
    n: int


def semantic_entropy(readings: Sequence[Reading], keys: Collection[str]) -> SemanticEntropy:
    """Return each attribute's entropy over all readings, and their mean (paper, Stories).

    Raises:
        DataError: there are no readings or no keys.
    """
    if not keys:
        raise DataError("semantic entropy: no keys given; name at least one attribute")
    by_key = {key: _key_entropy(_counts(first_value(r, key) for r in readings)) for key in keys}
    return SemanticEntropy(
        mean=sum(key.entropy for key in by_key.values()) / len(by_key),
        mean_miller_madow=sum(key.miller_madow for key in by_key.values()) / len(by_key),
        by_key=by_key,
        n=len(readings),
    )


def annotation_entropy(annotations: Sequence[Annotation], keys: Collection[str]) -> SemanticEntropy:
    """Return the `semantic_entropy` of the sampled annotations: the breadth of R(z|x)."""
    return semantic_entropy(annotations, keys)


def annotation_drift(
    before: Sequence[Reading],
    after: Sequence[Reading],
    keys: Iterable[str],
    smoothing: float = 0.5,
) -> dict[str, float]:
    """Return KL(R_before || R_after) per key, in nats.

    Both distributions are smoothed by adding `smoothing` to the count of every value seen in either
    sample. Two samples of one distribution also show a positive drift, of about
    (distinct values - 1) (1/N_before + 1/N_after) / 2: compare it with `drift_floor`.

    Raises:
        DataError: one of the samples is empty.
    """
    return {key: _divergence(before, after, key, smoothing) for key in keys}


def drift_floor(
    before: Sequence[Reading],
    after: Sequence[Reading],
    keys: Collection[str],
    smoothing: float = 0.5,
    splits: int = 50,
    seed: int = 0,
) -> dict[str, float]:
    """Return the drift that samples of these sizes show if the distribution has not changed.

    It is the mean of `annotation_drift` over random splits of the pooled sample.
    """
    pooled = [*before, *after]
    rng = np.random.default_rng(seed)
    total = dict.fromkeys(keys, 0.0)
    for _ in range(splits):
        order = rng.permutation(len(pooled))
        left = [pooled[i] for i in order[: len(before)]]
        right = [pooled[i] for i in order[len(before) :]]
        for key, drift in annotation_drift(left, right, keys, smoothing).items():
            total[key] += drift / splits
    return total


@dataclass(frozen=True, slots=True)
class Adherence:
    """The share of tags that the texts keep, pooled and by key; `mean` is None without tags."""

    mean: float | None
    by_key: dict[str, float]
    tags: int


def adherence(
    annotations: Sequence[Annotation],
    readings: Sequence[Reading],
    keys: Collection[str] | None = None,
) -> Adherence:
    """Return the share of tags whose value is among those read from the text that followed.

    Values are compared exactly. `keys` limits the count to the keys that the reader can read.

    Raises:
        DataError: the numbers of readings and annotations differ.
    """
    if len(annotations) != len(readings):
        raise DataError(f"adherence: {len(annotations)} annotations but {len(readings)} readings")
    kept, seen = Counter[str](), Counter[str]()
    for annotation, reading in zip(annotations, readings, strict=True):
        for tag in annotation:
            if keys is None or tag.key in keys:
                seen[tag.key] += 1
                kept[tag.key] += tag.value in values_of(reading, tag.key)
    return Adherence(
        mean=kept.total() / seen.total() if seen else None,
        by_key={key: kept[key] / count for key, count in seen.items()},
        tags=seen.total(),
    )


def values_of(reading: Reading, key: str) -> tuple[str, ...]:
    """Return all values of `key` in a reading of either kind."""
    if isinstance(reading, Annotation):
        return reading.values(key)
    return (reading[key],) if key in reading else ()


def first_value(reading: Reading, key: str) -> str:
    """Return the value of `key` that entropies count, or `NONE` if it has none."""
    return next(iter(values_of(reading, key)), NONE)


def _counts(values: Iterable[Hashable]) -> Counter[Hashable]:
    counts = Counter(values)
    if not counts:
        raise DataError("entropy: no values to measure; the sample is empty")
    return counts


def _plug_in(counts: Counter[Hashable]) -> float:
    n = counts.total()
    return -math.fsum(count / n * math.log(count / n) for count in counts.values())


def _miller_madow(counts: Counter[Hashable]) -> float:
    return _plug_in(counts) + (len(counts) - 1) / (2 * counts.total())


def _key_entropy(counts: Counter[Hashable]) -> KeyEntropy:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
    return KeyEntropy(
        entropy=_plug_in(counts),
        miller_madow=_miller_madow(counts),
        distinct=len(counts),
        top=tuple((str(value), count) for value, count in ranked[:TOP]),
    )


def _divergence(
    before: Sequence[Reading], after: Sequence[Reading], key: str, smoothing: float
) -> float:
    p = _counts(first_value(reading, key) for reading in before)
    q = _counts(first_value(reading, key) for reading in after)
    union = p | q
    p_total = p.total() + smoothing * len(union)
    q_total = q.total() + smoothing * len(union)
    total = 0.0
    for value in union:
        p_value = (p[value] + smoothing) / p_total
        total += p_value * math.log(p_value * q_total / (q[value] + smoothing))
    return total
