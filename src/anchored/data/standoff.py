"""Stand-off annotations: a folder next to a corpus, in its order; the corpus is left unchanged.

    DIR/shard-00000.parquet    one record per text: row, id, part, annotation, error, text_hash, key
    DIR/config.yaml            how the corpus was cut

A part is a chunk of a document or an assistant turn of a conversation that had no annotation of its
own. `text_hash` ties an annotation to its text, so that it is never attached to another text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from anchored.annotation import Annotation
from anchored.config import read_yaml
from anchored.data.readers import SourceConfig
from anchored.data.rows import Conversation, Document, Item, Split
from anchored.errors import ConfigError, DataError
from anchored.files import CONFIG_NAME, naming
from anchored.segments import Chunk, Message, split_chunks

SHARD = "shard-{:05d}.parquet"
_NUMBER = re.compile(r"shard-(\d+)\.parquet")
_TAG = pa.struct([("key", pa.string()), ("value", pa.string())])
_COLUMNS = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("part", pa.int32()),
        ("annotation", pa.list_(_TAG)),
        ("error", pa.string()),
        ("text_hash", pa.string()),
        ("key", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Part:
    """A text that needs an annotation of its own.

    Attributes:
        index: number of the chunk, or of the turn in its conversation.
        text: the text.
        request: the prompt that a response answers.
    """

    index: int
    text: str
    request: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a shard.

    Attributes:
        row: number of the row in the corpus.
        id: id of that row.
        part: index of the part in the row.
        annotation: the annotation; empty after an error.
        error: why there is no annotation, if there is none.
        text_hash: hash of the part's text.
        key: journal key of the annotator's request.
    """

    row: int
    id: str
    part: int
    annotation: tuple[dict[str, str], ...]
    error: str | None
    text_hash: str
    key: str


def text_hash(text: str) -> str:
    """Return the hash of a text, 32 hex digits."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def open_parts(item: Item) -> list[Part]:
    """Return the parts of an item without annotation; a document with a prompt as its chunks."""
    if isinstance(item, Document):
        return [
            Part(i, chunk.text) for i, chunk in enumerate(item.chunks) if chunk.annotation is None
        ]
    return [
        Part(i, turn.content, _conversation(item.messages[:i]))
        for i, turn in enumerate(item.messages)
        if turn.role == "assistant" and turn.content and turn.annotation is None
    ]


def _conversation(turns: Sequence[Message]) -> str:
    if len(turns) == 1:
        return turns[0].content
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns)


def write_shard(folder: Path, number: int, records: Sequence[Record]) -> None:
    """Write a shard atomically, unless it has the same content already."""
    path = folder / SHARD.format(number)
    names = _COLUMNS.names
    columns = {name: [getattr(record, name) for record in records] for name in names}
    table = pa.table(columns, schema=_COLUMNS)
    if path.is_file() and read_table(path).equals(table):
        return
    partial_path = path.with_name(f".{path.name}.partial")
    try:
        with naming(path, partial_path):
            pq.write_table(table, partial_path, compression="zstd")
            partial_path.replace(path)
    finally:
        partial_path.unlink(missing_ok=True)


def read_table(path: Path) -> pa.Table:
    """Read a shard's table.

    Raises:
        DataError: the file is damaged or not a shard.
    """
    try:
        return pq.read_table(path, schema=_COLUMNS)
    except (pa.ArrowException, ValueError) as error:
        raise DataError(
            f"{path}: not a shard of annotations ({error}); remove it and annotate again"
        ) from None


def shard_numbers(folder: Path) -> list[int]:
    """Return the numbers of the existing shards, in order."""
    found = (_NUMBER.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in found if match)


def is_stand_off(folder: Path) -> bool:
    """Return True if the endpoint annotator wrote this folder."""
    if not (folder / CONFIG_NAME).is_file():
        return False
    if not shard_numbers(folder) and not any(folder.glob("journal*.jsonl")):
        return False  # another tool's config.yaml, possibly not even YAML
    return read_yaml(folder / CONFIG_NAME).get("annotator") == "endpoint"


def refuse_stand_off(source: SourceConfig) -> None:
    """Check that a source holds texts.

    Raises:
        DataError: it has stand-off annotations, whose texts are elsewhere.
    """
    if is_stand_off(Path(source.path)):
        raise DataError(
            f"{source.path}: has annotations but no texts; name the corpus instead, and for "
            "prepare set its `annotations` to this folder"
        )


def read_records(folder: Path) -> Iterator[Record]:
    """Yield all records in the corpus's order, with one shard at a time in memory.

    Raises:
        DataError: there is no shard, a shard in between is missing, or one is damaged.
    """
    numbers = shard_numbers(folder) if folder.is_dir() else []
    if not numbers:
        raise DataError(
            f"annotations: {folder}: has no {SHARD.format(0)}; run `anchored annotate` first"
        )
    for number, found in enumerate(numbers):
        if number != found:
            raise DataError(
                f"annotations: {folder / SHARD.format(number)}: missing; finish `anchored annotate`"
            )
        yield from read_shard(folder, number)


def read_shard(folder: Path, number: int) -> Iterator[Record]:
    """Yield the records of one shard.

    Raises:
        DataError: the shard is damaged.
    """
    for row in read_table(folder / SHARD.format(number)).to_pylist():
        yield Record(**row | {"annotation": tuple(row["annotation"])})


class StandOff:
    """Stand-off annotations, to attach to the rows of their corpus as these are read again.

    Rows of the corpus may be left out (by `where`, `skip`, `limit`), but not reordered.

    Args:
        folder: a folder that the endpoint annotator wrote.

    Raises:
        DataError: the folder is not one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.split = _split(folder)
        self._rows = groupby(read_records(folder), key=attrgetter("row"))

    def attach(self, item: Item) -> Item:
        """Return the item with its annotations; existing ones are kept.

        Raises:
            ConfigError: no annotations of its texts follow.
            DataError: a shard is missing or damaged.
        """
        parts = open_parts(item)
        if not parts:
            return item
        wanted = [text_hash(part.text) for part in parts]
        for _, group in self._rows:
            records = list(group)
            if [record.text_hash for record in records] == wanted:
                return _with(item, records)
        raise ConfigError(
            f"{self.folder}: has no further annotations for row {item.id!r}: the corpus changed or "
            "its annotation is unfinished; run `anchored annotate` again"
        )


def _split(folder: Path) -> Split:
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise DataError(f"annotations: {folder}: not a folder that `anchored annotate` wrote")
    made: dict[str, Any] = read_yaml(path)
    if made.get("annotator") != "endpoint":
        raise DataError(
            f"annotations: {folder}: has whole annotated rows; use it as the source's path"
        )
    return partial(
        split_chunks, min_chars=made["min_chunk_chars"], max_chars=made["max_chunk_chars"]
    )


def _with(item: Item, records: Sequence[Record]) -> Item:
    found = {
        record.part: Annotation.from_rows(record.annotation)
        for record in records
        if record.error is None
    }
    if isinstance(item, Conversation):
        turns = tuple(
            replace(turn, annotation=found[i]) if i in found else turn
            for i, turn in enumerate(item.messages)
        )
        return replace(item, messages=turns)
    chunks = tuple(
        Chunk(chunk.text, found[i]) if i in found else chunk for i, chunk in enumerate(item.chunks)
    )
    return replace(item, chunks=chunks)
