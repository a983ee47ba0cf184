"""Statistics of an annotated corpus: the coverage of each key and the breadth of its values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from anchored.annotation import Annotation

TOP = 10
TAIL = 5


@dataclass(frozen=True, slots=True)
class KeyStatistics:
    """Statistics of one key over all annotations.

    Attributes:
        coverage: share of the annotations that have the key.
        entropy: plug-in Shannon entropy of its values, in nats; a repeated key counts every value.
        miller_madow: `entropy` plus the correction of its first-order bias, (distinct - 1) / 2N
            (Miller 1955).
        distinct: number of distinct values.
        once: number of values that occur exactly once.
        top: the most frequent values with their counts.
        tail: the least frequent values outside `top` with their counts, the rarest last.
    """

    coverage: float
    entropy: float
    miller_madow: float
    distinct: int
    once: int
    top: tuple[tuple[str, int], ...]
    tail: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class TagStatistics:
    """Statistics of all keys, in order of first appearance, over a number of annotations."""

    annotations: int
    keys: Mapping[str, KeyStatistics]

    def data(self) -> dict[str, Any]:
        """Return the statistics as JSON data, for manifests and `--json`."""
        return {
            "annotations": self.annotations,
            "keys": {
                key: {
                    "coverage": round(found.coverage, 4),
                    "entropy": round(found.entropy, 4),
                    "miller_madow": round(found.miller_madow, 4),
                    "distinct": found.distinct,
                    "once": found.once,
                    "top": [list(pair) for pair in found.top],
                    "tail": [list(pair) for pair in found.tail],
                }
                for key, found in self.keys.items()
            },
        }


class TagCounter:
    """A counter of tags; `statistics()` may be called at any time."""

    def __init__(self) -> None:
        self.annotations = 0
        self._present: Counter[str] = Counter()
        self._values: dict[str, Counter[str]] = {}

    def add(self, annotation: Annotation) -> None:
        """Count one annotation."""
        self.annotations += 1
        self._present.update({tag.key for tag in annotation})
        for tag in annotation:
            self._values.setdefault(tag.key, Counter())[tag.value] += 1

    def counts(self, key: str) -> Mapping[str, int]:
        """Return the count of each value of `key`."""
        return self._values.get(key, {})

    def statistics(self) -> TagStatistics:
        """Return the statistics of what has been counted so far."""
        return TagStatistics(
            self.annotations,
            {
                key: _key_statistics(self._present[key] / self.annotations, values)
                for key, values in self._values.items()
            },
        )


def statistics(annotations: Iterable[Annotation]) -> TagStatistics:
    """Return the tag statistics of annotations."""
    counter = TagCounter()
    for annotation in annotations:
        counter.add(annotation)
    return counter.statistics()


def _key_statistics(coverage: float, values: Counter[str]) -> KeyStatistics:
    ranked = sorted(values.items(), key=lambda item: (-item[1], item[0]))
    entropy = _entropy(values)
    return KeyStatistics(
        coverage=coverage,
        entropy=entropy,
        miller_madow=entropy + (len(values) - 1) / (2 * values.total()),
        distinct=len(values),
        once=sum(count == 1 for count in values.values()),
        top=tuple(ranked[:TOP]),
        tail=tuple(ranked[TOP:][-TAIL:]),
    )


def _entropy(counts: Counter[str]) -> float:
    total = counts.total()
    return -sum(n / total * math.log(n / total) for n in counts.values()) + 0.0
