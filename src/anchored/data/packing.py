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
from dataclasses import replace
from itertools import count

from anchored.segments import Kind, Segment

Segments = Sequence[Segment]


def length(segments: Segments) -> int:
    """Number of tokens."""
    return sum(len(segment.ids) for segment in segments)


def has_loss(segments: Segments) -> bool:
    """Is any token learnt; the first never is, because nothing in its sequence predicts it."""
    first, *rest = segments
    return (first.supervised and len(first.ids) > 1) or any(s.supervised and s.ids for s in rest)


def split_document(segments: Segments, max_length: int) -> tuple[list[Segments], int]:
    """The sequences of a document, and how many of its tokens were dropped.

    Dropped are chunks that do not fit and whose annotation takes more than half of `max_length`.
    """
    if length(segments) <= max_length:
        return [segments], 0
    sequences: list[list[Segment]] = [[]]
    dropped = 0
    for unit in _units(segments):
        if length(unit) > max_length:
            parts = _cut(unit, max_length)
            dropped += 0 if parts else length(unit)
            sequences += [*parts, *([] if parts else [[]])]
        elif length(sequences[-1]) + length(unit) > max_length:
            sequences.append(unit)
        else:
            sequences[-1] = [*sequences[-1], *unit]
    return [sequence for sequence in sequences if sequence], dropped


def _units(segments: Segments) -> list[list[Segment]]:
    """Each chunk with its annotation; bos goes with the first, eos with the last."""
    units: list[list[Segment]] = [[]]
    for segment in segments:
        units[-1].append(segment)
        if segment.kind is Kind.TEXT:
            units.append([])
    *whole, tail = units
    whole[-1].extend(tail)
    return whole


def _cut(unit: Segments, max_length: int) -> list[list[Segment]]:
    """A chunk in parts, each behind its annotation; nothing if that leaves less than half a row."""
    at = next(i for i, segment in enumerate(unit) if segment.kind is Kind.TEXT)
    lead, text, tail = unit[:at], unit[at], unit[at + 1 :]
    room = max_length - length(lead) - length(tail)
    if room < max_length // 2:
        return []
    given = [replace(segment, supervised=False) for segment in lead[_bos(lead) :]]
    starts = range(0, len(text.ids), room)
    parts = [
        [*(given if start else lead), replace(text, ids=text.ids[start : start + room])]
        for start in starts
    ]
    parts[-1].extend(tail)
    return parts


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
        self._rows: dict[int, list[Segments]] = {}
        self._serials = count()

    def add(self, segments: Segments) -> Iterator[list[Segments]]:
        """Places one sequence; yields the rows that are closed by it."""
        size = length(segments)
        at = bisect_left(self._free, (size, -1))
        free, serial = (
            self._free.pop(at) if at < len(self._free) else (self.capacity, next(self._serials))
        )
        self._rows.setdefault(serial, []).append(segments)
        insort(self._free, (free - size, serial))
        if self._free[0][0] == 0 or len(self._free) > self.open_rows:
            yield self._rows.pop(self._free.pop(0)[1])

    def flush(self) -> Iterator[list[Segments]]:
        """The rows still open, in the order they were opened."""
        yield from (
            self._rows.pop(serial) for _, serial in sorted(self._free, key=lambda pair: pair[1])
        )
        self._free.clear()
