"""Tags of an annotated corpus: how often a key is there and how broad its values are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TOP = 10


@dataclass(frozen=True, slots=True)
class KeyStatistics:
    """One key over all annotations.

    Attributes:
        coverage: share of the annotations that have the key.
        entropy: plug-in Shannon entropy of its values, in nats; a repeated key counts once a value.
        distinct: number of different values.
        top: the most frequent values and how often each occurs.
    """

    coverage: float
    entropy: float
    distinct: int
    top: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class TagStatistics:
    """All keys, in order of first appearance, over `annotations` chunks and responses."""

    annotations: int
    keys: Mapping[str, KeyStatistics]

    def data(self) -> dict[str, Any]:
        """As JSON data, for manifests and `--json`."""
        return {
            "annotations": self.annotations,
            "keys": {
                key: {
                    "coverage": round(found.coverage, 4),
                    "entropy": round(found.entropy, 4),
                    "distinct": found.distinct,
                    "top": [list(pair) for pair in found.top],
                }
                for key, found in self.keys.items()
            },
        }


class TagCounter:
    """Counts tags as annotations go by; `statistics()` at any time."""

    def __init__(self) -> None:
        self.annotations = 0
        self._present: Counter[str] = Counter()
        self._values: dict[str, Counter[str]] = {}

    def add(self, tags: Sequence[Mapping[str, str]]) -> None:
        """One annotation in its stored form, `[{"key": ..., "value": ...}]`."""
        self.annotations += 1
        self._present.update({tag["key"] for tag in tags})
        for tag in tags:
            self._values.setdefault(tag["key"], Counter())[tag["value"]] += 1

    def statistics(self) -> TagStatistics:
        """What has been counted so far."""
        return TagStatistics(
            self.annotations,
            {
                key: KeyStatistics(
                    coverage=self._present[key] / self.annotations,
                    entropy=_entropy(values),
                    distinct=len(values),
                    top=tuple(sorted(values.items(), key=lambda item: (-item[1], item[0]))[:TOP]),
                )
                for key, values in self._values.items()
            },
        )


def statistics(rows: Iterable[Mapping[str, Any]]) -> TagStatistics:
    """The tags of annotated rows: those of chunks, of responses and of assistant turns.

    The annotation of a whole document that has annotated chunks is not counted besides them.
    """
    counter = TagCounter()
    for row in rows:
        for tags in row_annotations(row):
            counter.add(tags)
    return counter.statistics()


def row_annotations(row: Mapping[str, Any]) -> Iterator[Sequence[Mapping[str, str]]]:
    """The annotations of one row, in stored form and in order; none where it has none."""
    if row.get("chunks") is not None:
        parts = row["chunks"]
    elif row.get("messages") is not None and row.get("annotation") is None:
        parts = row["messages"]
    else:
        parts = [row]
    for part in parts:
        if part.get("annotation") is not None:
            yield part["annotation"]


def _entropy(counts: Counter[str]) -> float:
    total = counts.total()
    return -sum(n / total * math.log(n / total) for n in counts.values()) + 0.0
