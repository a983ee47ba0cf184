"""A folder of stand-off annotations as annotated rows: its texts are read from the corpus again.

Only what the folder holds is an annotation here. What the corpus's rows came with is another
annotator's, and failed texts have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from anchored.config import read_yaml
from anchored.data.corpus_source import CorpusConfig, items
from anchored.data.readers import Document, Item, Row, SourceConfig, read_rows, selected
from anchored.data.standoff import Record, is_stand_off, open_parts, read_records, text_hash
from anchored.errors import DataError
from anchored.files import CONFIG_NAME


def read_annotated(source: SourceConfig) -> Iterator[tuple[str, Row]]:
    """`read_rows`, and the rows of a folder of stand-off annotations too.

    Raises:
        DataError: a source or a row is at fault, or the folder's corpus is gone or has changed.
    """
    if not is_stand_off(Path(source.path)):
        return read_rows(source)
    if missing := missing_corpus(source):
        raise DataError(f"{source.path}: its corpus {missing} is not there; put it back")
    return selected(_joined(Path(source.path)), source)


def missing_corpus(source: SourceConfig) -> str | None:
    """The path that the texts of a folder of stand-off annotations lay at, if none is there now."""
    folder = Path(source.path)
    if not is_stand_off(folder):
        return None
    paths = (one.path for one in _corpus(folder).source)
    return next((p for p in paths if not urlsplit(p).scheme and not Path(p).exists()), None)


def annotation_rows(source: SourceConfig) -> Iterator[Row]:
    """The annotations of a stand-off folder, each as a row without its text.

    Raises:
        DataError: a shard is missing or damaged.
    """
    for record in read_records(Path(source.path)):
        if record.error is None:
            yield {"annotation": list(record.annotation)}


def _corpus(folder: Path) -> CorpusConfig:
    made: dict[str, Any] = read_yaml(folder / CONFIG_NAME)
    fields = CorpusConfig.model_fields.keys() & made.keys()
    return CorpusConfig.model_validate({name: made[name] for name in fields})


def _joined(folder: Path) -> Iterator[tuple[str, Row]]:
    """Both are in the same order, but rows without a text to annotate have no records."""
    kept = enumerate(found for found in items(_corpus(folder)) if found[1] is not None)
    for number, group in groupby(read_records(folder), key=attrgetter("row")):
        records = list(group)
        row, item = next((found for place, found in kept if place == number), ({}, None))
        parts = [] if item is None else open_parts(row, item)
        wanted = [record.text_hash for record in records]
        if item is None or [text_hash(part.text) for part in parts] != wanted:
            raise DataError(
                f"{folder}: row {records[0].id!r} of its corpus changed since; "
                "run `anchored annotate` again"
            )
        yield f"{folder}: row {number + 1}", _row(item, records)


def _row(item: Item, records: Sequence[Record]) -> Row:
    found = {one.part: list(one.annotation) for one in records if one.error is None}
    if isinstance(item, Document):
        chunks = [
            {"text": chunk.text, "annotation": found.get(i)} for i, chunk in enumerate(item.chunks)
        ]
        return {"id": item.id, "prompt": item.prompt, "chunks": chunks}
    messages = [
        {"role": turn.role, "content": turn.content, "annotation": found.get(i)}
        for i, turn in enumerate(item.messages[: records[-1].part + 1])
    ]
    return {"id": item.id, "messages": messages}
