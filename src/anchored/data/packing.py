"""Sequences to rows of bounded length: long documents split at chunk boundaries, short ones packed.

A document that does not fit `max_length` becomes several sequences. Each takes as many whole chunks
as fit and starts with the annotation of its first chunk; only the first starts with bos and only
the last ends with eos, because the others neither open nor close a document. A chunk that alone is
too long is cut between tokens, and its annotation stands before every part: learnt before the
first, given before the others, so that no plan counts twice.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, pairwise

from anchored.segments import Kind, Segment

Segments = Sequence[Segment]


@dataclass(frozen=True, slots=True)
class Sized:
    """Segments that are one sequence, and how many tokens they hold."""

    segments: Segments
    length: int

    @classmethod
    def of(cls, segments: Segments) -> Sized:
        """Counts the tokens."""
        return cls(segments, sum([len(segment.ids) for segment in segments]))

    @property
    def has_loss(self) -> bool:
        """Is any token learnt; the first never is, because nothing in its sequence predicts it."""
        first, *rest = self.segments
        return (first.supervised and len(first.ids) > 1) or any(
            s.supervised and s.ids for s in rest
        )


def split_document(document: Sized, max_length: int) -> tuple[list[Sized], int]:
    """The sequences of a document, and how many of its tokens were dropped.

    Dropped are chunks that do not fit and whose annotation takes more than half of `max_length`.
    """
    if document.length <= max_length:
        return [document], 0
    sequences: list[Sized] = []
    together: list[Sized] = []
    used = dropped = 0
    for unit in map(Sized.of, _units(document.segments)):
        if used + unit.length > max_length:
            sequences += _joined(together)
            together, used = [], 0
        if unit.length <= max_length:
            together.append(unit)
            used += unit.length
            continue
        parts = _cut(unit, max_length)
        sequences += parts
        dropped += 0 if parts else unit.length
    return sequences + _joined(together), dropped


def _units(segments: Segments) -> list[Segments]:
    """Each chunk with its annotation; bos goes with the first, eos with the last."""
    ends = [i for i, segment in enumerate(segments, 1) if segment.kind is Kind.TEXT]
    return [segments[a:b] for a, b in pairwise([0, *ends[:-1], len(segments)])]


def _joined(units: Sequence[Sized]) -> list[Sized]:
    if not units:
        return []
    return [
        Sized([s for unit in units for s in unit.segments], sum([unit.length for unit in units]))
    ]


def _cut(unit: Sized, max_length: int) -> list[Sized]:
    """A chunk in parts, each behind its annotation; nothing if that leaves less than half a row."""
    at = next(i for i, segment in enumerate(unit.segments) if segment.kind is Kind.TEXT)
    lead, text, tail = unit.segments[:at], unit.segments[at], unit.segments[at + 1 :]
    room = max_length - unit.length + len(text.ids)
    if room < max_length // 2:
        return []
    given = [Segment(segment.ids, segment.kind, False) for segment in lead[_bos(lead) :]]
    starts = range(0, len(text.ids), room)
    parts = [
        [
            *(given if start else lead),
            Segment(text.ids[start : start + room], text.kind, text.supervised),
        ]
        for start in starts
    ]
    parts[-1].extend(tail)
    return [Sized.of(part) for part in parts]


def _bos(lead: Segments) -> int:
    """1 if bos stands first: an annotation has two control tokens, bos makes their number odd."""
    return sum(segment.kind is Kind.CONTROL for segment in lead) % 2


class BestFit:
    """Packs sequences into rows of `capacity` tokens: each goes where it leaves the least room.

    Args:
        capacity: tokens a row holds.
        open_rows: rows kept open; beyond that the fullest is given out, so that memory is bounded.
    """

    def __init__(self, capacity: int, open_rows: int = 256) -> None:
        self.capacity = capacity
        self.open_rows = open_rows
        self._free: list[tuple[int, int]] = []
        self._rows: dict[int, list[Sized]] = {}
        self._serials = count()

    def add(self, sequence: Sized) -> Iterator[list[Sized]]:
        """Places one sequence; yields the row that it closes, if any."""
        at = bisect_left(self._free, (sequence.length, -1))
        if at < len(self._free):
            free, serial = self._free.pop(at)
        else:
            free, serial = self.capacity, next(self._serials)
            self._rows[serial] = []
        self._rows[serial].append(sequence)
        insort(self._free, (free - sequence.length, serial))
        if self._free[0][0] == 0 or len(self._free) > self.open_rows:
            yield self._rows.pop(self._free.pop(0)[1])

    def flush(self) -> Iterator[list[Sized]]:
        """The rows still open, in the order they were opened."""
        yield from self._rows.values()
        self._rows.clear()
        self._free.clear()
