"""Annotated rows as what is measured on them, and a sample that two corpora draw alike."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Generic, TypeVar

from anchored.annotation import Annotation
from anchored.data.readers import SourceConfig
from anchored.data.rows import Document, Item
from anchored.segments import Message
from anchored.tags.standoff_join import read_annotated

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part:
    """A text that has an annotation of its own: a chunk, or an assistant's turn.

    Attributes:
        row: id of the row that it is part of.
        prompt: what the turn answers; empty for a chunk.
        text: its text.
        annotation: None where nobody annotated it; the empty one says that nothing was found.
    """

    row: str
    prompt: str
    text: str
    annotation: Annotation | None

    @property
    def identity(self) -> tuple[str, str]:
        """What makes it the same part in a corpus that somebody else annotated."""
        return self.prompt, self.text


def read_parts(source: SourceConfig) -> Iterator[Part]:
    """All parts of a source's rows, in order.

    Raises:
        DataError: a source or a row is at fault; it is named by file and line.
    """
    for item in read_annotated(source):
        yield from parts_of(item)


def parts_of(item: Item) -> Iterator[Part]:
    """The parts of one item.

    A document that does not come in chunks and has one annotation for the whole is one part.
    """
    if not isinstance(item, Document):
        yield from _turns(item.id, item.messages)
    elif item.annotation is not None and not item.divided:
        yield Part(item.id, "", item.text, item.annotation)
    else:
        for chunk in item.chunks:
            yield Part(item.id, "", chunk.text, chunk.annotation)


def annotations_of(items: Iterable[Item]) -> Iterator[Annotation]:
    """The annotations of all parts that have one.

    That of a whole document which comes in chunks is not among them.
    """
    for item in items:
        yield from (part.annotation for part in parts_of(item) if part.annotation is not None)


def _turns(name: str, messages: Sequence[Message]) -> Iterator[Part]:
    prompt = ""
    for turn in messages:
        if turn.role == "user":
            prompt = turn.content
        elif turn.role == "assistant":
            yield Part(name, prompt, turn.content, turn.annotation)


def prompted(item: Item) -> Part | None:
    """The text that an item's prompt asks for, with the annotation that stands between the two."""
    if isinstance(item, Document):
        if item.prompt is None:
            return None
        return Part(item.id, item.prompt, item.text, item.whole_annotation)
    *_, last = _turns(item.id, item.messages)
    return last if last.prompt else None


class Sample(Generic[T]):
    """At most `size` items, those whose identities hash lowest: an even draw from the distinct.

    It depends neither on the order nor on what else is there, so two annotations of one corpus are
    sampled at the same places. Memory is that of the items kept.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size, self.salt = size, seed.to_bytes(8, "little")
        self._heap: list[tuple[int, T]] = []
        self._kept: set[int] = set()

    def add(self, item: T, *identity: str) -> None:
        """Offers an item."""
        digest = blake2b("\0".join(identity).encode(), digest_size=8, salt=self.salt).digest()
        rank = -int.from_bytes(digest, "big")
        if rank in self._kept or (len(self._heap) == self.size and rank < self._heap[0][0]):
            return
        self._kept.add(rank)
        if len(self._heap) < self.size:
            heapq.heappush(self._heap, (rank, item))
        else:
            self._kept.discard(heapq.heapreplace(self._heap, (rank, item))[0])

    def items(self) -> list[T]:
        """What is kept, in an order of its own."""
        return [item for _, item in sorted(self._heap, key=lambda pair: -pair[0])]
