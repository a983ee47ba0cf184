"""The diversity of the answers to a few prompts, and the share kept since an earlier snapshot.

The figures are those of `anchored score`, by the same names: computed within each prompt and
averaged over prompts, with equal numbers of answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from anchored.annotation import Annotation
from anchored.errors import DataError
from anchored.metrics.collapse import share_kept
from anchored.metrics.embedding import Embedder, mean_dissimilarity
from anchored.metrics.entropy import annotation_drift, drift_floor
from anchored.metrics.equivalence import Equivalence
from anchored.metrics.table import METRICS, Observed
from anchored.monitor.probe import Answer

RESAMPLES = 500
ENTROPY = METRICS["semantic_entropy"]
CLASS = "class"  # the only attribute of answers that are merely partitioned into classes

Attributes = Callable[[str], Mapping[str, str]]
Reading = dict[str, str]


@dataclass(frozen=True)
class DiversitySnapshot:
    """What was read from the answers of one turn, prompts x samples.

    Attributes:
        readings: `{attribute: value}` of each answer.
        annotations: `{key: first value}` of each annotation, without unreadable ones.
        dissimilarity: mean dissimilarity of the answers.
    """

    readings: list[list[Reading]]
    annotations: list[list[Reading]]
    dissimilarity: float

    @property
    def semantic_entropy(self) -> float:
        """Plug-in estimate in nats, over the attributes that any answer has."""
        return _within(self.readings, _keys(self.readings))

    def as_json(self) -> dict[str, Any]:
        """Return the form stored in a file."""
        return asdict(self)


@dataclass(frozen=True)
class Reader:
    """A reader that makes snapshots from the attributes of answers, or else from their classes."""

    embedder: Embedder
    equivalence: Equivalence
    attributes: Attributes | None

    @property
    def name(self) -> str:
        """How answers are read; only snapshots with the same name are comparable."""
        how = "attributes" if self.attributes else self.equivalence.name
        return f"{how}; {self.embedder.name}"

    def snapshot(self, answers: Sequence[Sequence[Answer]]) -> DiversitySnapshot:
        """Read all answers of one turn.

        Raises:
            DataError: no attribute could be read off any answer.
        """
        texts = [[answer.text for answer in group] for group in answers]
        readings = [self._read(group) for group in texts]
        if not _keys(readings):
            raise DataError(
                "collapse monitor: `attributes` finds no attribute in any answer; fix the function"
            )
        annotations = [
            [_first_values(answer.annotation) for answer in group if answer.annotation is not None]
            for group in answers
        ]
        vectors = [self.embedder.embed(group) for group in texts]
        return DiversitySnapshot(readings, annotations, mean_dissimilarity(vectors))

    def _read(self, texts: Sequence[str]) -> list[Reading]:
        if self.attributes:
            return [dict(self.attributes(text)) for text in texts]
        return [{CLASS: str(label)} for label in self.equivalence.partition(texts)]


def compared(before: DiversitySnapshot, now: DiversitySnapshot) -> dict[str, float]:
    """Return the figures of `now`, and how they compare with those of `before`.

    `kept` is the share of the semantic entropy that remains, with the ends of its 95 % interval; it
    is left out if there was no entropy before. Entropies are over the attributes of earlier
    answers.
    """
    keys = _keys(before.readings)
    figures = {
        "semantic_entropy": _within(now.readings, keys),
        "dissimilarity": now.dissimilarity,
    }
    statistic, of_before = ENTROPY.sampled([_observed(before.readings, keys)])
    _, of_now = ENTROPY.sampled([_observed(now.readings, keys)])
    kept = share_kept(of_before, of_now, statistic, RESAMPLES)
    if kept is not None:
        figures |= {"kept": kept.mean, "kept_low": kept.low, "kept_high": kept.high}
    return figures | _annotation_figures(before, now)


def _annotation_figures(before: DiversitySnapshot, now: DiversitySnapshot) -> dict[str, float]:
    old, new = (
        [annotation for group in snapshot.annotations for annotation in group]
        for snapshot in (before, now)
    )
    keys = _keys(before.annotations)
    if not old or not new or not keys:
        return {}
    return {
        "annotation_entropy": _within([group for group in now.annotations if group], keys),
        "annotation_drift": fmean(annotation_drift(old, new, keys).values()),
        "annotation_drift_floor": fmean(drift_floor(old, new, keys).values()),
    }


def _within(groups: Sequence[Sequence[Reading]], keys: Sequence[str]) -> float:
    values = [ENTROPY.function(one) for one in _observed(groups, keys)]
    return fmean(value for value in values if value is not None)


def _observed(groups: Sequence[Sequence[Reading]], keys: Sequence[str]) -> list[Observed]:
    return [Observed(readings=group, keys=tuple(keys)) for group in groups]


def _keys(groups: Sequence[Sequence[Reading]]) -> list[str]:
    return sorted({key for group in groups for reading in group for key in reading})


def _first_values(annotation: Annotation) -> Reading:
    return {key: annotation.values(key)[0] for key in {tag.key for tag in annotation}}
