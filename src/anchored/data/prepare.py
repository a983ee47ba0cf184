"""Rows to a prepared dataset: read, mixed, cut into segments, masked, packed and written as a stream."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from anchored.annotation import Annotation, Schema
from anchored.config import Config, to_yaml, versions
from anchored.data.packing import BestFit, Segments, has_loss, length, split_document
from anchored.data.readers import (
    Conversation,
    Document,
    Item,
    Row,
    SourceConfig,
    load_schema,
    parse_row,
    read_rows,
)
from anchored.data.store import FORMAT, MANIFEST, SplitWriter
from anchored.errors import DataError
from anchored.files import CONFIG_NAME, atomic_write, building, write_json
from anchored.segments import (
    OBJECTIVES,
    Chunk,
    KeyOrder,
    Kind,
    Message,
    Objective,
    Piece,
    conversation_pieces,
    document_pieces,
    encode_pieces,
    format_variant,
    order_keys,
    split_chunks,
    turns_to_learn,
)
from anchored.tokenizer import AnchoredTokenizer

_BATCH_CHARS = 1 << 18
_KNOWN_TAGS = 1 << 18


class NewTokenizer(Config):
    """A tokenizer to be learnt from the sources."""

    vocab_size: int = Field(ge=300)
    max_chars: int = Field(50_000_000, ge=1, description="text it is learnt from, from the start")


class PrepareConfig(Config):
    """What `anchored prepare` reads. The objective says whether annotations are written and what carries loss."""

    out: Path
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    tokenizer: str | NewTokenizer
    objective: str = Field(description=f"one of {', '.join(OBJECTIVES)}")
    schema_name: str | None = Field(
        None, description="built-in name or YAML file: tags are checked against it"
    )
    key_order: KeyOrder = "shuffled"
    prompted_share: float = Field(
        0.15,
        ge=0,
        le=1,
        description="share of the documents with a prompt written as a conversation in pretraining",
    )
    max_length: int = Field(1024, ge=16, description="tokens a row")
    packing: bool = True
    token_budget: int | None = Field(
        None,
        ge=1,
        description="tokens kept, annotations included: they replace text, so runs stay comparable",
    )
    validation_share: float = Field(
        0.0, ge=0, lt=1, description="share of the rows held out, chosen by their id"
    )
    min_chunk_chars: int = Field(200, ge=1)
    max_chunk_chars: int = Field(1500, ge=1)
    format_share: float | None = Field(
        None, ge=0, le=1, description="instead of the objective's own share"
    )
    skip_bad_rows: bool = Field(
        False, description="leave out and count rows that would be an error"
    )
    seed: int = 0

    @field_validator("objective")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in OBJECTIVES:
            raise ValueError(f"use one of {', '.join(OBJECTIVES)}")
        return name

    @model_validator(mode="after")
    def _ends(self) -> PrepareConfig:
        endless = [source.path for source in self.sources if source.endless]
        if endless and self.token_budget is None:
            raise ValueError(
                f"source {endless[0]!r} never ends: give it a limit, or give a token_budget"
            )
        return self


@dataclass(frozen=True)
class _Plan:
    """One sequence to be: its pieces, and for a document that is tried as a conversation, what it falls back to."""

    held_out: bool
    pieces: list[Piece]
    document: Document | None
    prompted: bool = False


@dataclass
class _Account:
    """What was read, what was left out and why."""

    read: Counter[str] = field(default_factory=Counter)
    dropped: dict[str, Counter[str]] = field(default_factory=dict)

    def drop(self, reason: str, tokens: int) -> None:
        self.dropped.setdefault(reason, Counter()).update(examples=1, tokens=tokens)


def prepare(config: PrepareConfig, console: Console | None = None) -> Path:
    """Writes the prepared dataset that `config` describes and prints an account of its tokens.

    Args:
        config: the run.
        console: where the account goes; `Console(quiet=True)` for nowhere.

    Returns:
        `config.out`, there whole or not at all.

    Raises:
        ConfigError: the tokenizer or the schema cannot be loaded.
        DataError: a source or a row is at fault, `out` holds something already, or nothing that carries loss is left.
    """
    console = console or Console()
    with building(config.out) as folder:
        schema = load_schema(config.schema_name) if config.schema_name else None
        tokenizer = _tokenizer(config)
        tokenizer.save(folder / "tokenizer")
        run = _Run(config, tokenizer, schema, folder)
        run.write(_progress(_items(config, run.account), console))
        manifest = _manifest(config, tokenizer, schema, run)
        write_json(folder / MANIFEST, manifest)
        atomic_write(folder / CONFIG_NAME, to_yaml(config))
    console.print(account_table(manifest))
    return config.out


def _tokenizer(config: PrepareConfig) -> AnchoredTokenizer:
    if isinstance(config.tokenizer, str):
        return AnchoredTokenizer.load(config.tokenizer)
    texts = _first_chars(_texts(_items(config, _Account())), config.tokenizer.max_chars)
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
            yield from (
                text for chunk in item.chunks for text in (str(chunk.annotation), chunk.text)
            )
            yield item.prompt or ""
        else:
            for message in item.messages:
                yield from (str(message.annotation or ""), message.content)


def _items(config: PrepareConfig, account: _Account) -> Iterator[Item]:
    """All sources, parsed and mixed: next comes the source that is furthest behind its weight in characters."""
    split = partial(
        split_chunks, min_chars=config.min_chunk_chars, max_chars=config.max_chunk_chars
    )
    streams = [iter(read_rows(source, config.prompted_share)) for source in config.sources]
    drawn = dict.fromkeys(range(len(streams)), 0.0)
    while drawn:
        at = min(drawn, key=drawn.__getitem__)
        pair = next(streams[at], None)
        if pair is None:
            del drawn[at]
            continue
        item = _parse(config, account, pair, split)
        if item is not None:
            drawn[at] += _chars(item) / config.sources[at].weight
            yield item


def _parse(
    config: PrepareConfig, account: _Account, pair: tuple[str, Row], split: Any
) -> Item | None:
    place, row = pair
    try:
        return parse_row(row, place, split)
    except DataError:
        if not config.skip_bad_rows:
            raise
        account.drop("bad row", 0)
        return None


def _chars(item: Item) -> int:
    if isinstance(item, Document):
        return sum(len(chunk.text) for chunk in item.chunks)
    return sum(len(message.content) for message in item.messages)


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    chars = 0
    for item in items:
        batch.append(item)
        chars += _chars(item) + 100
        if chars >= _BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _progress(items: Iterable[Item], console: Console) -> Iterator[Item]:
    columns = (
        SpinnerColumn(),
        TextColumn("preparing: {task.completed:,} rows"),
        TimeElapsedColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True, quiet=console.quiet), transient=True)
    with bar if not console.quiet else nullcontext():
        task = bar.add_task("prepare", total=None)
        for number, item in enumerate(items, 1):
            if number % 256 == 0:
                bar.update(task, completed=number)
            yield item


class _BudgetSpent(Exception):
    """The token budget is used up: stop reading."""


class _Run:
    """The state of one preparation: writers, packers and the account."""

    def __init__(
        self,
        config: PrepareConfig,
        tokenizer: AnchoredTokenizer,
        schema: Schema | None,
        folder: Path,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.schema = schema
        self.account = _Account()
        self.objective = _objective(config)
        self.pretraining = Kind.PROMPT in self.objective.loss
        self.left = config.token_budget
        self.splits: dict[str, dict[str, Any]] = {}
        self._known_tags: set[Any] = set()
        folders = {"train": folder, "validation": folder / "validation"}
        self._writers = {name: SplitWriter(folders[name]) for name in self._names()}
        self._packers = {name: BestFit(config.max_length) for name in self._names()}

    def _names(self) -> list[str]:
        return ["train", "validation"] if self.config.validation_share else ["train"]

    def write(self, items: Iterable[Item]) -> None:
        """Runs everything through and closes the splits."""
        try:
            for batch in _batches(items):
                self._write_batch([plan for item in batch for plan in self._plans(item)])
        except _BudgetSpent:
            pass
        else:
            self._check_budget()
        for name, writer in self._writers.items():
            for row in self._packers[name].flush():
                writer.write(row)
            self.splits[name] = writer.close()
        self._check_splits()

    def _check_budget(self) -> None:
        if self.left:
            budget = self.config.token_budget or 0
            raise DataError(
                f"token_budget: {budget} tokens asked for, but the sources end after {budget - self.left}; "
                f"lower the budget or add sources"
            )

    def _check_splits(self) -> None:
        for name, split in self.splits.items():
            if not split["supervised"]:
                raise DataError(
                    f"{self.config.out}: no token of the {name} split carries loss under objective "
                    f"{self.objective.name!r}; left out: {self._reasons()}"
                )
        if self.objective.annotated and not self.account.read["annotations"]:
            raise DataError(
                f"sources: objective {self.objective.name!r} needs annotations and no row has one; "
                f"run `anchored annotate` first, or use objective plain or standard"
            )

    def _reasons(self) -> str:
        return (
            ", ".join(f"{n['examples']} {why}" for why, n in self.account.dropped.items())
            or "nothing"
        )

    # Planning

    def _plans(self, item: Item) -> Iterator[_Plan]:
        held_out = _share(self.config, "validation", item.id, self.config.validation_share)
        if isinstance(item, Conversation):
            self.account.read["conversations"] += 1
            return self._conversation_plans(item, held_out)
        self.account.read["documents"] += 1
        self.account.read["chunks"] += len(item.chunks)
        share = self.config.prompted_share if self.pretraining else 1.0
        prompted = item.prompt is not None and _share(self.config, "prompted", item.id, share)
        return iter(
            [
                self._prompted_plan(item, held_out)
                if prompted
                else self._document_plan(item, held_out)
            ]
        )

    def _conversation_plans(self, item: Conversation, held_out: bool) -> Iterator[_Plan]:
        turns = list(turns_to_learn(item.messages))
        for i, messages in enumerate(turns[-1:] if self.pretraining else turns):
            *earlier, last = messages
            name = f"{item.id}:{i}"
            response = Message("assistant", last.content, self._annotation(last.annotation, name))
            yield _Plan(
                held_out, conversation_pieces([*earlier, response], self._variant(name)), None
            )

    def _prompted_plan(self, item: Document, held_out: bool) -> _Plan:
        annotation = self._annotation(item.whole_annotation, f"{item.id}:0")
        messages = (Message("user", item.prompt or ""), Message("assistant", item.text, annotation))
        return _Plan(
            held_out,
            conversation_pieces(messages, self._variant(f"{item.id}:0")),
            item,
            prompted=True,
        )

    def _document_plan(self, item: Document, held_out: bool) -> _Plan:
        chunks = [
            Chunk(c.text, self._annotation(c.annotation, f"{item.id}:{i}"))
            for i, c in enumerate(item.chunks)
        ]
        return _Plan(held_out, document_pieces(chunks, self._variant(item.id)), item)

    def _variant(self, name: str) -> Objective:
        variant = format_variant(self.objective, self.config.seed, name)
        self.account.read["format examples"] += variant is not self.objective
        return variant

    def _annotation(self, annotation: Annotation | None, name: str) -> Annotation:
        """Checked, without the keys that SFT is meant to change, in this example's order."""
        if not self.objective.annotated or not annotation:
            self.account.read["without annotation"] += self.objective.annotated
            return Annotation()
        self.account.read["annotations"] += 1
        if self.schema:
            self._check_tags(annotation, name)
            annotation = self.schema.canonical(annotation)
            annotation = annotation if self.pretraining else self.schema.anchored(annotation)
        return order_keys(annotation, self.config.key_order, self.config.seed, name)

    def _check_tags(self, annotation: Annotation, name: str) -> None:
        """`Schema.check`, skipped for tags that passed it before: it takes longer than encoding them."""
        assert self.schema
        if len(annotation.keys) == len(annotation) and self._known_tags.issuperset(annotation.tags):
            return
        try:
            self.schema.check(annotation)
        except DataError as error:
            raise DataError(
                f"{name}: annotation: {error}; mend the row, or the schema_name"
            ) from None
        if len(self._known_tags) < _KNOWN_TAGS:
            self._known_tags.update(annotation.tags)

    # Writing

    def _write_batch(self, plans: Sequence[_Plan]) -> None:
        encoded = encode_pieces([plan.pieces for plan in plans], self.tokenizer)
        for plan, segments in zip(plans, encoded, strict=True):
            self._write_example(plan, segments)

    def _write_example(self, plan: _Plan, segments: Segments) -> None:
        if plan.prompted and self.pretraining and length(segments) > self.config.max_length:
            assert plan.document
            plan = self._document_plan(plan.document, plan.held_out)
            (segments,) = encode_pieces([plan.pieces], self.tokenizer)
        sequences, dropped = [segments], 0
        if plan.document and not plan.prompted:
            sequences, dropped = split_document(segments, self.config.max_length)
        if dropped:
            self.account.drop("chunk with an annotation too long for max_length", dropped)
        self.account.read["prompted documents"] += plan.prompted
        for sequence in sequences:
            self._write_sequence("validation" if plan.held_out else "train", sequence)

    def _write_sequence(self, split: str, sequence: Segments) -> None:
        size = length(sequence)
        if size > self.config.max_length:
            return self.account.drop("conversation longer than max_length", size)
        if not has_loss(sequence):
            return self.account.drop("no token with loss", size)
        if split == "train" and self.left is not None:
            if size > self.left:
                raise _BudgetSpent
            self.left -= size
        rows = self._packers[split].add(sequence) if self.config.packing else [[sequence]]
        for row in rows:
            self._writers[split].write(row)
        return None


def _objective(config: PrepareConfig) -> Objective:
    objective = OBJECTIVES[config.objective]
    share = objective.format_share if config.format_share is None else config.format_share
    return Objective(objective.name, objective.annotated, objective.loss, share)


def _share(config: PrepareConfig, what: str, name: str, share: float) -> bool:
    """Does the row called `name` fall into a seeded share; the same answer whatever else is in the corpus."""
    return share > 0 and random.Random(f"{config.seed}:{what}:{name}").random() < share


def _manifest(
    config: PrepareConfig, tokenizer: AnchoredTokenizer, schema: Schema | None, run: _Run
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "objective": config.objective,
        "config": config.model_dump(mode="json"),
        "versions": versions(),
        "tokenizer": {
            "fingerprint": tokenizer.fingerprint,
            "probe": tokenizer.probe(),
            "vocab_size": len(tokenizer),
        },
        "schema": schema.model_dump(mode="json") if schema else None,
        "read": dict(run.account.read),
        "dropped": {reason: dict(counts) for reason, counts in run.account.dropped.items()},
        "splits": run.splits,
    }


def account_table(manifest: dict[str, Any]) -> Table:
    """The token account of a manifest: kept, with loss, masked, by kind; and what was left out and why."""
    table = Table(
        "",
        "rows",
        "tokens",
        "with loss",
        "masked",
        title=f"{manifest['config']['out']}: {manifest['objective']}",
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for name, split in manifest["splits"].items():
        table.add_row(
            name, *(f"{split[key]:,}" for key in ("rows", "tokens", "supervised", "masked"))
        )
        for kind, tokens in split["by_kind"].items():
            learnt = split["supervised_by_kind"][kind]
            table.add_row(
                f"  {kind.replace('_', ' ')}",
                "",
                f"{tokens:,}",
                f"{learnt:,}",
                f"{tokens - learnt:,}",
            )
    for reason, counts in manifest["dropped"].items():
        table.add_row(
            f"left out: {reason}", f"{counts['examples']:,}", f"{counts['tokens']:,}", "", ""
        )
    return table
