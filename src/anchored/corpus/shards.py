"""Annotates the texts of shards concurrently, each text once, and writes them in corpus order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anchored.annotators.by_endpoint import Answer, Request
from anchored.annotators.prompts import written
from anchored.corpus.meter import Meter
from anchored.data.corpus_source import CorpusConfig, batched, items
from anchored.data.rows import Item
from anchored.data.standoff import Part, Record, open_parts, text_hash, write_shard
from anchored.endpoint import run_all
from anchored.errors import Incomplete
from anchored.journal import Journal

_SHARD_JOURNAL = "journal-of-shard-{}.jsonl"
OF_A_KILLED_RUN = 60.0
"""Seconds within which Ray ends the workers of a killed run, which write these journals."""

NumberedRows = Sequence[tuple[int, Item]]


@dataclass(frozen=True, slots=True)
class Share:
    """One of `count` equal parts of a corpus: the shards whose number modulo `count` is `index`."""

    index: int = 0
    count: int = 1

    def has(self, shard: int) -> bool:
        """Return True if the share includes the shard with this number."""
        return shard % self.count == self.index

    def file(self, name: str, suffix: str) -> str:
        """Return the name of a file that each share has for itself."""
        part = f"-{self.index}-of-{self.count}" if self.count > 1 else ""
        return f"{name}{part}{suffix}"


WHOLE = Share()


def numbered_shards(config: CorpusConfig, share: Share) -> Iterator[tuple[int, NumberedRows]]:
    """Yield a share's shards in order: the number of each, and its numbered rows."""
    kept = (item for item in items(config) if item is not None)
    for number, rows in enumerate(batched(enumerate(kept), config.rows_per_shard)):
        if share.has(number):
            yield number, rows


def shard_journal(folder: Path, number: int) -> Path:
    """Return the path of the journal of a shard that a worker of a cluster annotates."""
    return folder / _SHARD_JOURNAL.format(f"{number:05d}")


def collect_all(folder: Path, journal: Journal) -> None:
    """Move the answers in the journals of shards to the journal of the run.

    Raises:
        DataError: a worker of an earlier run still writes to one of them.
    """
    for path in sorted(folder.glob(_SHARD_JOURNAL.format("*"))):
        collect(path, journal)


def collect(path: Path, journal: Journal) -> None:
    """Move the answers in one journal to another."""
    if not path.is_file():  # the shard had no answers
        return
    with Journal(path, patience=OF_A_KILLED_RUN) as part:
        for key, row in part.items():
            if journal.get(key) is None:
                journal.put(key, row)
    path.unlink(missing_ok=True)


def too_many_failed(folder: Path, failed: int, first_error: str | None) -> Incomplete:
    """Return the error that stops a run at `max_failed`."""
    return Incomplete(
        f"{folder}: {failed:,} chunks failed, more than max_failed, the first by: {first_error}; "
        "run again to retry"
    )


@dataclass(slots=True)
class _Slot:
    """The place of one text in a shard; `key` and `error` are set once it is annotated."""

    row: int
    id: str
    part: int
    text_hash: str
    key: str = ""
    error: str | None = None


@dataclass(eq=False)
class _Shard:
    """A shard whose texts are being annotated; the texts themselves are not kept."""

    number: int
    slots: list[_Slot] = field(default_factory=list)
    left: int = 0


_Task = tuple[_Shard, Sequence[tuple[_Slot, Part]]]


@dataclass
class ShardWriter:
    """Annotates the texts of shards, keeps the answers in a journal, and writes the shards.

    Args:
        folder: the folder for the shards.
        journal: answers by key; an answer that it has is not requested again.
        key: returns the key of a request.
        ask: returns the annotation of a request, or its error.
        meter: counts texts and tokens.
        context_tags: number of preceding chunks whose tags go with a request. If there are any, the
            chunks of a document are annotated one after the other.
        max_failed: stop when more than this many texts have failed.
        on_settled: called after each text.
    """

    folder: Path
    journal: Journal
    key: Callable[[Request], str]
    ask: Callable[[Request], Awaitable[Answer]]
    meter: Meter
    context_tags: int = 0
    max_failed: int | None = None
    on_settled: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.first_error: str | None = None
        self._asking: dict[str, asyncio.Future[Answer]] = {}

    async def write(self, shards: Iterable[tuple[int, NumberedRows]], at_once: int) -> None:
        """Annotate and write all shards, at most `at_once` texts or documents at a time.

        Raises:
            EndpointError: no request can succeed.
            Incomplete: more than `max_failed` texts have failed.
        """
        await run_all(self._tasks(shards), self._settle, self._settled, at_once)

    def _tasks(self, shards: Iterable[tuple[int, NumberedRows]]) -> Iterator[_Task]:
        for number, rows in shards:
            shard = _Shard(number)
            todo = [places for row, item in rows if (places := _places(row, item))]
            shard.slots = [slot for places in todo for slot, _ in places]
            shard.left = len(shard.slots)
            if not shard.left:
                write_shard(self.folder, number, [])
            for places in todo:
                yield from self._parallel(shard, places)

    def _parallel(self, shard: _Shard, places: list[tuple[_Slot, Part]]) -> Iterator[_Task]:
        """Yield the parts of a row that can be annotated at the same time."""
        if self.context_tags:
            yield shard, places
        else:
            yield from ((shard, [place]) for place in places)

    async def _settle(self, task: _Task) -> None:
        _, places = task
        earlier: list[str] = []
        for slot, part in places:
            shown = earlier[-self.context_tags :] if self.context_tags else ()
            request = Request(part.text, part.request, tuple(shown))
            slot.key = self.key(request)
            answer = await self.settled(slot.key, request)
            slot.error = answer.error
            self._stop_if_too_many(answer.error)
            earlier.append(written(answer.annotation))

    async def settled(self, key: str, request: Request) -> Answer:
        """Return the answer from the journal, from a request in flight, or from the model."""
        if (row := self.journal.get(key)) is not None:
            answer = Answer.of(row)
            self.meter.repeated()
        elif key in self._asking:
            answer = await self._asking[key]
            self.meter.repeated(failed=answer.error is not None)
        else:
            answer = await self._asked(key, request)
            self.meter.answered(answer.usage, failed=answer.error is not None)
        self.on_settled()
        return answer

    async def _asked(self, key: str, request: Request) -> Answer:
        self._asking[key] = asyncio.get_running_loop().create_future()
        try:
            answer = await self.ask(request)
            if answer.error is None:
                self.journal.put(key, answer.row())
            self._asking[key].set_result(answer)
            return answer
        finally:
            self._asking.pop(key).cancel()  # frees other waiters if this request is cancelled

    def _stop_if_too_many(self, error: str | None) -> None:
        self.first_error = self.first_error or error
        if self.max_failed is not None and self.meter.failed > self.max_failed:
            raise too_many_failed(self.folder, self.meter.failed, self.first_error)

    def _settled(self, task: _Task, _: None) -> None:
        shard, places = task
        shard.left -= len(places)
        if not shard.left:
            write_shard(self.folder, shard.number, [self._record(slot) for slot in shard.slots])

    def _record(self, slot: _Slot) -> Record:
        tags = () if slot.error else tuple(self.journal[slot.key]["annotation"])
        return Record(slot.row, slot.id, slot.part, tags, slot.error, slot.text_hash, slot.key)


def _places(number: int, item: Item) -> list[tuple[_Slot, Part]]:
    return [
        (_Slot(number, item.id, part.index, text_hash(part.text)), part)
        for part in open_parts(item)
    ]
