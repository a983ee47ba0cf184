"""One shard of a prepared dataset: rows are read, mixed, segmented, masked, packed, written."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anchored.annotation import Schema
from anchored.data.canonical import CanonicalMap
from anchored.data.packing import BestFit, Segments, has_loss, split_document, token_count
from anchored.data.readers import SourceConfig, read_rows
from anchored.data.rows import Document, Item, canonical_row
from anchored.data.sequences import Draft, Drafter
from anchored.data.standoff import StandOff, refuse_stand_off
from anchored.data.store import SplitWriter
from anchored.errors import DataError
from anchored.segments import OBJECTIVES, Objective, encode_pieces, split_chunks
from anchored.tokenizer import AnchoredTokenizer

if TYPE_CHECKING:
    from anchored.data.prepare import PrepareConfig

_BATCH_CHARS = 1 << 18

Sourced = tuple[Item, Objective]
Check = Callable[[Item, str, Objective], None]


@dataclass
class Dropped:
    """Counts of the examples and tokens that were left out, by reason."""

    reasons: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, reason: str, tokens: int) -> None:
        """Count one example."""
        self.reasons.setdefault(reason, Counter()).update(examples=1, tokens=tokens)


@dataclass
class Account:
    """The counts of a shard or dataset.

    Attributes:
        splits: counts of each split, as returned by `SplitWriter.close`.
        read: what was read, by name.
        dropped: what was left out, by reason.
        left: tokens of the budget that remained when the sources ended.
    """

    splits: dict[str, dict[str, Any]]
    read: Counter[str]
    dropped: dict[str, Counter[str]]
    left: int

    @classmethod
    def load(cls, path: Path) -> Account:
        """Load an account that was written as JSON."""
        found = json.loads(path.read_bytes())
        dropped = {reason: Counter(counts) for reason, counts in found["dropped"].items()}
        return cls(found["splits"], Counter(found["read"]), dropped, found["left"])

    @classmethod
    def total(cls, accounts: Sequence[Account]) -> Account:
        """Add accounts up; the files of a split are left empty, because joining renames them."""
        read, dropped = Counter[str](), dict[str, Counter[str]]()
        for account in accounts:
            read.update(account.read)
            for reason, counts in account.dropped.items():
                dropped.setdefault(reason, Counter()).update(counts)
        splits = {
            name: _total_split([account.splits[name] for account in accounts])
            for name in accounts[0].splits
        }
        return cls(splits, read, dropped, sum(account.left for account in accounts))


def _total_split(splits: Sequence[dict[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for name, first in splits[0].items():
        values = [split[name] for split in splits]
        if name == "files":
            total[name] = {}
        elif isinstance(first, dict):
            total[name] = {kind: sum(value[kind] for value in values) for kind in first}
        else:
            total[name] = max(values) if name == "longest_row" else sum(values)
    return total


def sourced_items(
    config: PrepareConfig,
    dropped: Dropped,
    check: Check = lambda *_: None,
    number: int | None = None,
) -> Iterator[Sourced]:
    """Yield the rows of all sources, next from the one furthest behind its share of characters.

    With a `number`, yield the rows of that shard: every `config.shards`-th row of each source.
    """
    streams = [_stream(source, config, dropped, check, number) for source in config.sources]
    drawn = dict.fromkeys(range(len(streams)), 0.0)
    while drawn:
        at = min(drawn, key=drawn.__getitem__)
        sourced = next(streams[at], None)
        if sourced is None:
            del drawn[at]
            continue
        drawn[at] += characters(sourced[0]) / config.sources[at].weight
        yield sourced


def _stream(
    source: SourceConfig,
    config: PrepareConfig,
    dropped: Dropped,
    check: Check,
    number: int | None,
) -> Iterator[Sourced]:
    objective = _objective(source.objective or config.objective, config.format_share)
    split = partial(
        split_chunks, min_chars=config.min_chunk_chars, max_chars=config.max_chunk_chars
    )
    refuse_stand_off(source)
    beside = StandOff(source.annotations) if source.annotations else None
    canonical = CanonicalMap.load(config.canonical) if config.canonical else None
    place = None
    rows = read_rows(source, config.prompted_share)
    for place, row in rows if number is None else islice(rows, number, None, config.shards):
        try:
            item = canonical_row(row, place, beside.split if beside else split)
            item = beside.attach(item) if beside else item
            item = canonical.apply_to(item) if canonical else item
            check(item, place, objective)
        except DataError:
            if not config.skip_bad_rows:
                raise
            dropped.add("bad row", 0)
        else:
            yield item, objective
    if place is None and not number:  # the first shard has the first row
        raise DataError(
            f"{source.path}: no rows; check the file and the source's where, skip and limit"
        )


def is_weighted(config: PrepareConfig) -> bool:
    """True if any token carries a weight that is neither 0 nor 1."""
    names = {source.objective or config.objective for source in config.sources}
    return any(OBJECTIVES[name].is_weighted for name in names)


def _objective(name: str, format_share: float | None) -> Objective:
    objective = OBJECTIVES[name]
    return objective if format_share is None else replace(objective, format_share=format_share)


def characters(item: Item) -> int:
    """Return the number of characters of an item's texts, without annotations."""
    if isinstance(item, Document):
        return sum(len(chunk.text) for chunk in item.chunks)
    return sum(len(message.content) for message in item.messages)


class _BudgetSpent(Exception):
    """The token budget is used up: stop reading."""


class Shard:
    """Writes every `config.shards`-th row, starting at row `number`, to `folder`.

    Rows of one shard are never packed with rows of another.

    Args:
        config: the configuration.
        tokenizer: encodes the rows.
        schema: tags are checked against it; None for no check.
        folder: the splits are written here.
        number: number of the shard, from 0.
    """

    def __init__(
        self,
        config: PrepareConfig,
        tokenizer: AnchoredTokenizer,
        schema: Schema | None,
        folder: Path,
        number: int = 0,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self._number = number
        self._dropped = Dropped()
        self.drafter = Drafter(
            seed=config.seed,
            schema=schema,
            key_order=config.key_order,
            prompted_share=config.prompted_share,
            annotated_share=config.annotated_share,
            validation_share=config.validation_share,
            chat=tokenizer.chat,
        )
        self._left = None
        if config.token_budget is not None:
            rest = number < config.token_budget % config.shards
            self._left = config.token_budget // config.shards + rest
        weighted = is_weighted(config)
        self._writers = {"train": SplitWriter(folder, weighted)}
        if config.validation_share:
            self._writers["validation"] = SplitWriter(folder / "validation", weighted)
        self._packers = {name: BestFit(config.max_length) for name in self._writers}

    def write(self, watch: Callable[[Iterable[Sourced]], Iterable[Sourced]] = iter) -> Account:
        """Write all rows, close the splits and return their account.

        Args:
            watch: wraps the rows, to show progress while they are read.
        """
        rows = sourced_items(self.config, self._dropped, self.drafter.check, self._number)
        try:
            for drafts, encoded in self._encoded_ahead(self._drafted(watch(rows))):
                self._write_batch(drafts, encoded)
        except _BudgetSpent:
            self._left = 0
        splits = {}
        for name, writer in self._writers.items():
            for row in self._packers[name].flush():
                writer.write(row)
            splits[name] = writer.close()
        return Account(splits, self.drafter.counts, self._dropped.reasons, self._left or 0)

    def _drafted(self, items: Iterable[Sourced]) -> Iterator[list[Draft]]:
        """Yield batches of drafts, made row by row, so that rows are not held in memory too."""
        batch: list[Draft] = []
        chars = 0
        for item, objective in items:
            batch.extend(self.drafter.drafts(item, objective))
            chars += characters(item) + 100
            if chars >= _BATCH_CHARS:
                yield batch
                batch, chars = [], 0
        if batch:
            yield batch

    def _encoded_ahead(
        self, batches: Iterable[list[Draft]]
    ) -> Iterator[tuple[list[Draft], list[Segments]]]:
        """Encode in a second thread, two batches ahead: the tokenizer does not hold the GIL."""
        waiting: deque[tuple[list[Draft], Future[list[Segments]]]] = deque()
        with ThreadPoolExecutor(max_workers=1) as pool:
            for drafts in batches:
                waiting.append((drafts, pool.submit(self._encode, drafts)))
                if len(waiting) > 2:
                    ready, future = waiting.popleft()
                    yield ready, future.result()
            for ready, future in waiting:
                yield ready, future.result()

    def _write_batch(self, drafts: Sequence[Draft], encoded: Sequence[Segments]) -> None:
        room = self.config.max_length
        long = [i for i, s in enumerate(encoded) if drafts[i].instead and token_count(s) > room]
        instead = [draft.instead or draft for draft in (drafts[i] for i in long)]
        replaced = dict(zip(long, zip(instead, self._encode(instead), strict=True), strict=True))
        for i, pair in enumerate(zip(drafts, encoded, strict=True)):
            self._write_draft(*replaced.get(i, pair))

    def _encode(self, drafts: Sequence[Draft]) -> list[Segments]:
        return [*encode_pieces([draft.pieces for draft in drafts], self.tokenizer)]

    def _write_draft(self, draft: Draft, encoded: Segments) -> None:
        self.drafter.counts["documents behind their prompt"] += draft.instead is not None
        sequences, lost = [encoded], 0
        if draft.is_document:
            sequences, lost = split_document(encoded, self.config.max_length)
        if lost:
            self._dropped.add("chunk whose annotation is too long for max_length", lost)
        for sequence in sequences:
            self._write_sequence(draft.split, sequence)

    def _write_sequence(self, split: str, sequence: Segments) -> None:
        length = token_count(sequence)
        if length > self.config.max_length:
            self._dropped.add("conversation longer than max_length", length)
            return
        if not has_loss(sequence):
            self._dropped.add("no token with loss", length)
            return
        if split == "train" and self._left is not None:
            if length > self._left:
                raise _BudgetSpent
            self._left -= length
        rows = self._packers[split].add(sequence) if self.config.packing else [[sequence]]
        for row in rows:
            self._writers[split].write(row)
