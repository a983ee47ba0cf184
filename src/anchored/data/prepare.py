"""Rows to a prepared dataset: read, mixed, segmented, masked, packed and written as a stream."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from anchored.annotation import Schema
from anchored.config import Config, to_yaml, versions
from anchored.data.packing import BestFit, Sized, split_document
from anchored.data.plans import Plan, Planner
from anchored.data.readers import (
    Document,
    Item,
    ObjectiveName,
    SourceConfig,
    load_schema,
    parse_row,
    read_rows,
)
from anchored.data.standoff import StandOff, refuse_stand_off
from anchored.data.store import FORMAT, MANIFEST, SplitWriter, load_prepared, read_manifest
from anchored.errors import ConfigError, DataError
from anchored.files import CONFIG_NAME, atomic_write, building, digest, write_json
from anchored.segments import (
    OBJECTIVES,
    KeyOrder,
    Kind,
    Objective,
    check_annotations_come_back,
    encode_pieces,
    split_chunks,
)
from anchored.tags.canonical import CanonicalMap
from anchored.tokenizer import AnchoredTokenizer

__all__ = [
    "NewTokenizer",
    "PrepareConfig",
    "SourceConfig",
    "account_table",
    "load_prepared",
    "prepare",
    "read_manifest",
]

_BATCH_CHARS = 1 << 18


class NewTokenizer(Config):
    """A tokenizer to be learnt from the sources."""

    vocab_size: int = Field(ge=300)
    max_chars: int = Field(default=50_000_000, ge=1, description="text it is learnt from")


class PrepareConfig(Config):
    """What `anchored prepare` reads.

    The objective says whether annotations are written and what carries loss. `out` and `tokenizer`
    may be left out only inside a training configuration.
    """

    out: Path | None = None
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    tokenizer: str | NewTokenizer | None = Field(
        default=None, description="folder, hub id, or a new one"
    )
    objective: ObjectiveName = "annotated"
    schema_name: str | None = Field(
        default=None, description="built-in name or YAML file that tags are checked against"
    )
    canonical: Path | None = Field(
        default=None,
        description="file of spellings that are one value; `anchored inspect --tags` proposes one",
    )
    key_order: KeyOrder = "shuffled"
    prompted_share: float = Field(
        default=0.15,
        ge=0,
        le=1,
        description="share of documents with a prompt that pretraining sees behind it",
    )
    annotated_share: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="share of the rows that pretraining sees with their annotations; the others "
        "are written plain",
    )
    max_length: int = Field(default=1024, ge=16, description="tokens in a row")
    packing: bool = True
    token_budget: int | None = Field(
        default=None,
        ge=1,
        description="tokens kept, annotations included: these replace text, not add to it",
    )
    validation_share: float = Field(
        default=0.0, ge=0, lt=1, description="share of rows held out, by id"
    )
    min_chunk_chars: int = Field(default=200, ge=1)
    max_chunk_chars: int = Field(default=1500, ge=1)
    format_share: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="instead of the objective's own (0.3 % where it masks the plan)",
    )
    skip_bad_rows: bool = Field(
        default=False, description="count rows that would be an error, and go on"
    )
    seed: int = 0

    @model_validator(mode="after")
    def _ends(self) -> PrepareConfig:
        endless = [source.path for source in self.sources if source.endless]
        if endless and self.token_budget is None:
            raise ValueError(
                f"source {endless[0]!r} never ends: give it a limit, or a token_budget"
            )
        return self


Sourced = tuple[Item, Objective]
Check = Callable[[Item, str, Objective], None]


@dataclass
class _Dropped:
    """What was left out and why: examples and tokens by reason."""

    reasons: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, reason: str, tokens: int) -> None:
        self.reasons.setdefault(reason, Counter()).update(examples=1, tokens=tokens)

    def __str__(self) -> str:
        return ", ".join(f"{n['examples']} {why}" for why, n in self.reasons.items()) or "nothing"


def prepare(config: PrepareConfig, console: Console | None = None) -> Path:
    """Writes the prepared dataset that `config` describes and prints an account of its tokens.

    Args:
        config: the run.
        console: where the account goes; `Console(quiet=True)` for nowhere.

    Returns:
        `config.out`, which is there whole or not at all.

    Raises:
        ConfigError: `out` or `tokenizer` is missing, the tokenizer or schema cannot be loaded, or
            the tokenizer loses what an annotation is read by.
        DataError: a source or a row is at fault, `out` holds something already, or nothing that
            carries loss is left.
    """
    console = console or Console()
    if config.out is None:
        raise ConfigError("out: missing; name the folder of the prepared dataset")
    with building(config.out) as folder:
        schema = load_schema(config.schema_name) if config.schema_name else None
        tokenizer = _tokenizer(config)
        objectives = {source.objective or config.objective for source in config.sources}
        if any(OBJECTIVES[name].annotated for name in objectives):
            check_annotations_come_back(tokenizer, schema)
        tokenizer.save(folder / "tokenizer")
        run = _Run(config, tokenizer, schema, folder)
        run.write(_progress(_items(config, run.dropped, run.planner.check), console))
        manifest = _manifest(config, tokenizer, schema, run)
        write_json(folder / MANIFEST, manifest)
        atomic_write(folder / CONFIG_NAME, to_yaml(config))
    console.print(account_table(manifest))
    return config.out


def _tokenizer(config: PrepareConfig) -> AnchoredTokenizer:
    if config.tokenizer is None:
        raise ConfigError("tokenizer: missing; give a folder, a hub id or {vocab_size: ...}")
    if isinstance(config.tokenizer, str):
        return AnchoredTokenizer.load(config.tokenizer)
    items = (item for item, _ in _items(config, _Dropped()))
    texts = _first_chars(_texts(items), config.tokenizer.max_chars)
    return AnchoredTokenizer.train(texts, config.tokenizer.vocab_size)


def _first_chars(texts: Iterable[str], limit: int) -> Iterator[str]:
    seen = 0
    for text in texts:
        yield text
        seen += len(text)
        if seen >= limit:
            return


def _texts(items: Iterable[Item]) -> Iterator[str]:
    """All that is ever encoded, tags included."""
    for item in items:
        if isinstance(item, Document):
            for chunk in item.chunks:
                yield from (str(chunk.annotation), chunk.text)
            yield item.prompt or ""
        else:
            for message in item.messages:
                yield from (str(message.annotation or ""), message.content)


def _items(
    config: PrepareConfig, dropped: _Dropped, check: Check = lambda *_: None
) -> Iterator[Sourced]:
    """All sources, mixed: next comes the one that is furthest behind its weight in characters."""
    streams = [_stream(source, config, dropped, check) for source in config.sources]
    drawn = dict.fromkeys(range(len(streams)), 0.0)
    while drawn:
        at = min(drawn, key=drawn.__getitem__)
        sourced = next(streams[at], None)
        if sourced is None:
            del drawn[at]
            continue
        drawn[at] += _chars(sourced[0]) / config.sources[at].weight
        yield sourced


def _stream(
    source: SourceConfig, config: PrepareConfig, dropped: _Dropped, check: Check
) -> Iterator[Sourced]:
    objective = _objective(source.objective or config.objective, config.format_share)
    split = partial(
        split_chunks, min_chars=config.min_chunk_chars, max_chars=config.max_chunk_chars
    )
    refuse_stand_off(source)
    beside = StandOff(source.annotations) if source.annotations else None
    canonical = CanonicalMap.load(config.canonical) if config.canonical else None
    place = None
    for place, row in read_rows(source, config.prompted_share):
        try:
            item = parse_row(row, place, beside.split if beside else split)
            item = beside.attach(row, item) if beside else item
            item = canonical.apply_to(item) if canonical else item
            check(item, place, objective)
        except DataError:
            if not config.skip_bad_rows:
                raise
            dropped.add("bad row", 0)
        else:
            yield item, objective
    if place is None:
        raise DataError(f"{source.path}: no row; see the file and its where, skip and limit")


def _objective(name: str, format_share: float | None) -> Objective:
    objective = OBJECTIVES[name]
    return objective if format_share is None else replace(objective, format_share=format_share)


def _chars(item: Item) -> int:
    if isinstance(item, Document):
        return sum(len(chunk.text) for chunk in item.chunks)
    return sum(len(message.content) for message in item.messages)


def _progress(items: Iterable[Sourced], console: Console) -> Iterator[Sourced]:
    columns = (
        SpinnerColumn(),
        TextColumn("preparing: {task.completed:,} rows"),
        TimeElapsedColumn(),
    )
    stderr = Console(stderr=True)
    hidden = console.quiet or not stderr.is_interactive  # else it would leave an empty line
    with Progress(*columns, console=stderr, transient=True, disable=hidden) as bar:
        task = bar.add_task("prepare", total=None)
        for number, sourced in enumerate(items, 1):
            if number % 256 == 0:
                bar.update(task, completed=number)
            yield sourced


class _BudgetSpent(Exception):
    """The token budget is used up: stop reading."""


class _Run:
    """The state of one preparation: planner, packers, writers and accounts."""

    def __init__(
        self,
        config: PrepareConfig,
        tokenizer: AnchoredTokenizer,
        schema: Schema | None,
        folder: Path,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.dropped = _Dropped()
        self.splits: dict[str, dict[str, Any]] = {}
        self.planner = Planner(
            seed=config.seed,
            schema=schema,
            key_order=config.key_order,
            prompted_share=config.prompted_share,
            annotated_share=config.annotated_share,
            validation_share=config.validation_share,
            chat=tokenizer.chat,
        )
        self._left = config.token_budget
        self._writers = {"train": SplitWriter(folder)}
        if config.validation_share:
            self._writers["validation"] = SplitWriter(folder / "validation")
        self._packers = {name: BestFit(config.max_length) for name in self._writers}

    def write(self, items: Iterable[Sourced]) -> None:
        """Runs everything through and closes the splits."""
        try:
            for plans, encoded in self._encoded_ahead(self._planned(items)):
                self._write_batch(plans, encoded)
        except _BudgetSpent:
            self._left = 0
        for name, writer in self._writers.items():
            for row in self._packers[name].flush():
                writer.write(row)
            self.splits[name] = writer.close()
        self._check()

    def _check(self) -> None:
        for name, split in self.splits.items():
            if not split["supervised"]:
                raise DataError(
                    f"sources: no token of the {name} split carries loss under objective "
                    f"{self.config.objective!r}; left out: {self.dropped}"
                )
        if OBJECTIVES[self.config.objective].annotated and not self.planner.counts["annotations"]:
            raise DataError(
                f"sources: objective {self.config.objective!r} needs annotations and no row has "
                f"one; run `anchored annotate` first, or use objective plain or standard"
            )
        if self._left:
            budget = self.config.token_budget or 0
            raise DataError(
                f"token_budget: {budget} tokens asked for, but the sources end after "
                f"{budget - self._left}; lower the budget or add sources"
            )

    def _planned(self, items: Iterable[Sourced]) -> Iterator[list[Plan]]:
        """Batches of plans; rows are planned as they come, so that no batch of rows is held too."""
        batch: list[Plan] = []
        chars = 0
        for item, objective in items:
            batch.extend(self.planner.plans(item, objective))
            chars += _chars(item) + 100
            if chars >= _BATCH_CHARS:
                yield batch
                batch, chars = [], 0
        if batch:
            yield batch

    def _encoded_ahead(
        self, batches: Iterable[list[Plan]]
    ) -> Iterator[tuple[list[Plan], list[Sized]]]:
        """Encodes in a second thread, two batches ahead: the tokenizer does not hold the GIL."""
        waiting: deque[tuple[list[Plan], Future[list[Sized]]]] = deque()
        with ThreadPoolExecutor(max_workers=1) as pool:
            for plans in batches:
                waiting.append((plans, pool.submit(self._encode, plans)))
                if len(waiting) > 2:
                    ready, future = waiting.popleft()
                    yield ready, future.result()
            for ready, future in waiting:
                yield ready, future.result()

    def _write_batch(self, plans: Sequence[Plan], encoded: Sequence[Sized]) -> None:
        long = [i for i, sized in enumerate(encoded) if plans[i].instead and not self._fits(sized)]
        instead = [plan.instead or plan for plan in (plans[i] for i in long)]
        replaced = dict(zip(long, zip(instead, self._encode(instead), strict=True), strict=True))
        for i, pair in enumerate(zip(plans, encoded, strict=True)):
            self._write_plan(*replaced.get(i, pair))

    def _encode(self, plans: Sequence[Plan]) -> list[Sized]:
        pieces = [plan.pieces for plan in plans]
        return [Sized.of(segments) for segments in encode_pieces(pieces, self.tokenizer)]

    def _fits(self, sequence: Sized) -> bool:
        return sequence.length <= self.config.max_length

    def _write_plan(self, plan: Plan, sized: Sized) -> None:
        self.planner.counts["documents behind their prompt"] += plan.instead is not None
        sequences, lost = [sized], 0
        if plan.is_document:
            sequences, lost = split_document(sized, self.config.max_length)
        if lost:
            self.dropped.add("chunk whose annotation is too long for max_length", lost)
        for sequence in sequences:
            self._write_sequence(plan.split, sequence)

    def _write_sequence(self, split: str, sequence: Sized) -> None:
        if not self._fits(sequence):
            self.dropped.add("conversation longer than max_length", sequence.length)
            return
        if not sequence.has_loss:
            self.dropped.add("no token with loss", sequence.length)
            return
        if split == "train" and self._left is not None:
            if sequence.length > self._left:
                raise _BudgetSpent
            self._left -= sequence.length
        rows = self._packers[split].add(sequence) if self.config.packing else [[sequence]]
        for row in rows:
            self._writers[split].write(row)


def _manifest(
    config: PrepareConfig, tokenizer: AnchoredTokenizer, schema: Schema | None, run: _Run
) -> dict[str, Any]:
    train = run.splits["train"]
    dropped = {reason: dict(counts) for reason, counts in run.dropped.reasons.items()}
    return {
        "format": FORMAT,
        "objective": config.objective,
        "tokens": {
            "kept": train["tokens"],
            "supervised": train["supervised"],
            "masked": train["masked"],
            "dropped": sum(counts["tokens"] for counts in dropped.values()),
        },
        "dropped": dropped,
        "splits": run.splits,
        "read": dict(run.planner.counts),
        "schema": schema.model_dump(mode="json") if schema else None,
        "canonical": digest(config.canonical) if config.canonical else None,
        "config": config.model_dump(mode="json"),
        "versions": versions(),
        "tokenizer": {
            "fingerprint": tokenizer.fingerprint,
            "probe": tokenizer.probe(),
            "vocab_size": len(tokenizer),
        },
    }


def account_table(manifest: dict[str, Any]) -> Table:
    """The tokens of a manifest: kept, with loss, masked, by kind; what was missing or left out."""
    title = f"{manifest['config']['out']}: {manifest['objective']}"
    table = Table("", "rows", "tokens", "with loss", "masked", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, split in manifest["splits"].items():
        numbers = (split[key] for key in ("rows", "tokens", "supervised", "masked"))
        table.add_row(name, *(f"{number:,}" for number in numbers))
        for kind, tokens in split["by_kind"].items():
            learnt = split["supervised_by_kind"][kind]
            numbers = (f"{n:,}" for n in (tokens, learnt, tokens - learnt))
            table.add_row(f"  {kind.replace('_', ' ')}", "", *numbers)
    if missing := manifest["read"].get("annotations missing"):
        learnt = Kind.TAG_KEY in OBJECTIVES[manifest["objective"]].loss
        instead = "learnt as empty" if learnt else "empty"
        table.add_row(f"annotations missing, {instead}", f"{missing:,}", "", "", "")
    for reason, counts in manifest["dropped"].items():
        numbers = (f"{counts['examples']:,}", f"{counts['tokens']:,}")
        table.add_row(f"left out: {reason}", *numbers, "", "")
    return table
