"""Which prompts fell: the prompts of a comparison, sorted by how much diversity each lost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from anchored.formatting import is_number
from anchored.metrics.table import METRICS, family, in_order

Results = Mapping[str, Any]
TIES = "dissimilarity"  # counts of answers are often equal; this metric then decides the order


@dataclass(frozen=True, slots=True)
class Fall:
    """One prompt of a comparison.

    Attributes:
        place: its index in `by_prompt`.
        prompt: the prompt.
        before, after: the figure of the other set and of the set that is compared with it. Without
            another set, `before` is None.
        fall: how much less diverse the set is than the other one; negative if it is more diverse.
    """

    place: int
    prompt: str
    before: float | None
    after: float
    fall: float


@dataclass(frozen=True, slots=True)
class Falls:
    """The prompts of one comparison, the largest fall first, or of one set, the narrowest first.

    Attributes:
        name: the set.
        other: the set that it is compared with; None if it is alone.
        metric: the figure that falls.
        prompts: the prompts for which both sets have the figure.
    """

    name: str
    other: str | None
    metric: str
    prompts: tuple[Fall, ...]

    @property
    def picks(self) -> dict[str, Fall]:
        """The worst, the median and the best prompt, if there are as many."""
        last = len(self.prompts) - 1
        places = {"worst": 0, "median": last // 2, "best": last}
        if last < 2:
            del places["median"]
        return {kind: self.prompts[place] for kind, place in places.items()}

    @property
    def mean(self) -> float:
        """The mean fall over prompts."""
        return math.fsum(one.fall for one in self.prompts) / len(self.prompts)

    def count(self, sign: int) -> int:
        """Return the number of prompts that fell (1), stayed the same (0) or rose (-1)."""
        return sum((one.fall > 0) - (one.fall < 0) == sign for one in self.prompts)


def main_metric(results: Results) -> str | None:
    """Return the figure that prompts are sorted by: the first diversity figure in table order."""
    model = next(iter(results["models"].values()))
    known = (name for name in in_order(model) if METRICS[family(name)].more_diverse)
    return next(known, None)


def falls(results: Results) -> list[Falls]:
    """Return the prompts of each comparison, the largest mean fall first.

    Without a comparison, the result is the prompts of each set. It is empty if the sets have fewer
    than two prompts, or no `by_prompt`.
    """
    metric = main_metric(results)
    if metric is None:
        return []
    found = [_of_pair(results, name, other, metric) for name, other in _pairs(results)]
    return sorted((one for one in found if len(one.prompts) > 1), key=lambda one: -one.mean)


def _pairs(results: Results) -> Iterator[tuple[str, str | None]]:
    if not results["comparisons"]:
        yield from ((name, None) for name in results["models"])
    for name, found in results["comparisons"].items():
        yield from ((name, other) for other in found.get("against", {}))


def _of_pair(results: Results, name: str, other: str | None, metric: str) -> Falls:
    rows = results["models"][name].get("by_prompt") or []
    others = (results["models"][other].get("by_prompt") or []) if other else [{}] * len(rows)
    sign = METRICS[family(metric)].more_diverse
    found = []
    for place, (row, before) in enumerate(zip(rows, others, strict=False)):
        if not is_number(row.get(metric)) or (other and not is_number(before.get(metric))):
            continue
        fall = sign * ((before[metric] if other else 0.0) - row[metric])
        tie = (before.get(TIES) or 0.0) - (row.get(TIES) or 0.0)
        one = Fall(place, row["prompt"], before.get(metric), row[metric], fall)
        found.append((-fall, -tie, place, one))
    return Falls(name, other, metric, tuple(one for *_, one in sorted(found, key=lambda x: x[:3])))
