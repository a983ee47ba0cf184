"""Rows of bounded length: long documents are split between chunks, short ones packed.

A document longer than `max_length` becomes several sequences. Each takes as many whole chunks as
fit and starts with the annotation of its first chunk; only the first starts with bos and only the
last ends with eos, because the others neither open nor close a document. A chunk that alone is too
long is cut between tokens, and each part starts with its annotation, which carries loss only in the
first part, so that no annotation counts twice.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from itertools import count, pairwise

from anchored.segments import Kind, Segment

Segments = Sequence[Segment]


def token_count(segments: Segments) -> int:
    """Return the number of tokens of a sequence."""
    return sum([len(segment.ids) for segment in segments])


def has_loss(sequence: Segments) -> bool:
    """True if any token carries loss; the first never does: nothing in its sequence predicts it."""
    first, *rest = sequence
    return (first.weight > 0 and len(first.ids) > 1) or any(s.weight and s.ids for s in rest)


def split_document(document: Segments, max_length: int) -> tuple[list[Segments], int]:
    """Return the sequences of a document, and the number of its tokens that were dropped.

    A chunk that does not fit is dropped if its annotation takes more than half of `max_length`.
    """
    if token_count(document) <= max_length:
        return [document], 0
    sequences: list[Segments] = []
    together: list[Segment] = []
    used = dropped = 0
    for unit in _units(document):
        length = token_count(unit)
        if used + length > max_length:
            sequences += [together] if together else []
            together, used = [], 0
        if length <= max_length:
            together.extend(unit)
            used += length
            continue
        parts = _cut(unit, max_length)
        sequences += parts
        dropped += 0 if parts else length
    return sequences + ([together] if together else []), dropped


def _units(segments: Segments) -> list[Segments]:
    """Return each chunk with its annotation; bos goes with the first, eos with the last."""
    ends = [i for i, segment in enumerate(segments, 1) if segment.kind is Kind.TEXT]
    return [segments[a:b] for a, b in pairwise([0, *ends[:-1], len(segments)])]


def _cut(unit: Segments, max_length: int) -> list[Segments]:
    """A chunk in parts, each behind its annotation; nothing if that leaves less than half a row."""
    at = next(i for i, segment in enumerate(unit) if segment.kind is Kind.TEXT)
    lead, text, tail = unit[:at], unit[at], unit[at + 1 :]
    room = max_length - token_count(unit) + len(text.ids)
    if room < max_length // 2:
        return []
    given = [segment._replace(weight=0.0) for segment in lead[_bos(lead) :]]
    parts = [
        [*(given if start else lead), text._replace(ids=text.ids[start : start + room])]
        for start in range(0, len(text.ids), room)
    ]
    parts[-1].extend(tail)
    return list(parts)


def _bos(lead: Segments) -> int:
    """Return 1 if bos is first: an annotation has two control tokens, so bos makes three."""
    return sum(segment.kind is Kind.CONTROL for segment in lead) % 2


class BestFit:
    """Packs sequences into rows of `capacity` tokens: each goes where it leaves the least room.

    Args:
        capacity: tokens per row.
        open_rows: rows kept open; beyond these the fullest is closed, so that memory is bounded.
    """

    def __init__(self, capacity: int, open_rows: int = 256) -> None:
        self.capacity = capacity
        self.open_rows = open_rows
        self._free: list[tuple[int, int]] = []
        self._rows: dict[int, list[Segments]] = {}
        self._serials = count()

    def add(self, sequence: Segments) -> Iterator[list[Segments]]:
        """Place one sequence; yield the row that it closes, if any."""
        length = token_count(sequence)
        at = bisect_left(self._free, (length, -1))
        if at < len(self._free):
            free, serial = self._free.pop(at)
        else:
            free, serial = self.capacity, next(self._serials)
            self._rows[serial] = []
        self._rows[serial].append(sequence)
        insort(self._free, (free - length, serial))
        if self._free[0][0] == 0 or len(self._free) > self.open_rows:
            yield self._rows.pop(self._free.pop(0)[1])

    def flush(self) -> Iterator[list[Segments]]:
        """Yield the rows still open, in the order in which they were opened."""
        yield from self._rows.values()
        self._rows.clear()
        self._free.clear()
