"""The annotated texts of rows, and a sample that is the same for two annotations of a corpus."""

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
    """A text with an annotation of its own: a chunk, or an assistant's turn.

    Attributes:
        row: id of the row that contains it.
        prompt: the user turn that it answers; empty for a chunk.
        text: its text.
        annotation: None if it was not annotated; an empty annotation means that nothing was found.
    """

    row: str
    prompt: str
    text: str
    annotation: Annotation | None

    @property
    def identity(self) -> tuple[str, str]:
        """What identifies the same part in another annotation of the corpus."""
        return self.prompt, self.text


def read_parts(source: SourceConfig) -> Iterator[Part]:
    """Yield all parts of a source's rows, in order.

    Raises:
        DataError: the source or a row is invalid; the message names file and line.
    """
    for item in read_annotated(source):
        yield from parts_of(item)


def parts_of(item: Item) -> Iterator[Part]:
    """Yield the parts of one item.

    A document without chunks that has one annotation for the whole is a single part.
    """
    if not isinstance(item, Document):
        yield from _turns(item.id, item.messages)
    elif item.annotation is not None and not item.divided:
        yield Part(item.id, "", item.text, item.annotation)
    else:
        for chunk in item.chunks:
            yield Part(item.id, "", chunk.text, chunk.annotation)


def annotations_of(items: Iterable[Item]) -> Iterator[Annotation]:
    """Yield the annotations of all parts that have one.

    The annotation of a whole document in chunks is not included.
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
    """Return the text that answers an item's prompt, with its annotation; None without a prompt."""
    if isinstance(item, Document):
        if item.prompt is None:
            return None
        return Part(item.id, item.prompt, item.text, item.whole_annotation)
    *_, last = _turns(item.id, item.messages)
    return last if last.prompt else None


class Sample(Generic[T]):
    """A uniform sample of at most `size` distinct items: those whose identities hash lowest.

    The sample depends neither on the order nor on other fields, so two annotations of one corpus
    are sampled at the same texts. Only the sampled items are held in memory.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size, self.salt = size, seed.to_bytes(8, "little")
        self._heap: list[tuple[int, T]] = []
        self._kept: set[int] = set()

    def add(self, item: T, *identity: str) -> None:
        """Offer an item to the sample."""
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
        """Return the sampled items, ordered by hash."""
        return [item for _, item in sorted(self._heap, key=lambda pair: -pair[0])]
