"""Joins a folder of stand-off annotations with its corpus, which is read again for the texts.

Only the folder's annotations count. Annotations in the corpus's own rows are another annotator's,
and texts that failed have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from anchored.annotation import Annotation
from anchored.config import read_yaml
from anchored.data.corpus_source import CorpusConfig, items
from anchored.data.readers import SourceConfig, read_items, selected
from anchored.data.rows import Document, Item
from anchored.data.standoff import Record, is_stand_off, open_parts, read_records, text_hash
from anchored.errors import DataError
from anchored.files import CONFIG_NAME
from anchored.segments import split_chunks


def read_annotated(source: SourceConfig) -> Iterator[Item]:
    """Return the items of a source, or of the corpus of a folder of stand-off annotations.

    Raises:
        DataError: the source or a row is invalid, or the folder's corpus is missing or changed.
    """
    if not is_stand_off(Path(source.path)):
        return (item for _, item in read_items(source, split_chunks))
    if missing := missing_corpus(source):
        raise DataError(f"{source.path}: its corpus {missing} is missing; put it back")
    return selected(_joined(Path(source.path)), source, lambda item: {**item.raw, "id": item.id})


def missing_corpus(source: SourceConfig) -> str | None:
    """Return the path of the corpus of a folder of stand-off annotations, if it is missing."""
    folder = Path(source.path)
    if not is_stand_off(folder):
        return None
    paths = (one.path for one in _corpus(folder).source)
    return next((p for p in paths if not urlsplit(p).scheme and not Path(p).exists()), None)


def stored_annotations(source: SourceConfig) -> Iterator[Annotation]:
    """Yield the annotations of a stand-off folder, without their texts.

    Raises:
        DataError: a shard is missing or damaged.
    """
    for record in read_records(Path(source.path)):
        if record.error is None:
            yield Annotation.from_rows(record.annotation)


def _corpus(folder: Path) -> CorpusConfig:
    made: dict[str, Any] = read_yaml(folder / CONFIG_NAME)
    fields = CorpusConfig.model_fields.keys() & made.keys()
    return CorpusConfig.model_validate({name: made[name] for name in fields})


def _joined(folder: Path) -> Iterator[Item]:
    """Join in order; rows without a text to annotate have no records."""
    kept = enumerate(item for item in items(_corpus(folder)) if item is not None)
    for number, group in groupby(read_records(folder), key=attrgetter("row")):
        records = list(group)
        item = next((item for place, item in kept if place == number), None)
        parts = [] if item is None else open_parts(item)
        wanted = [record.text_hash for record in records]
        if item is None or [text_hash(part.text) for part in parts] != wanted:
            raise DataError(
                f"{folder}: row {records[0].id!r} of its corpus has changed since it was "
                "annotated; run `anchored annotate` again"
            )
        yield _annotated(item, records)


def _annotated(item: Item, records: Sequence[Record]) -> Item:
    found = {one.part: Annotation.from_rows(one.annotation) for one in records if one.error is None}
    if isinstance(item, Document):
        chunks = [replace(chunk, annotation=found.get(i)) for i, chunk in enumerate(item.chunks)]
        return replace(item, chunks=tuple(chunks), annotation=None, divided=True)
    turns = [
        replace(turn, annotation=found.get(i))
        for i, turn in enumerate(item.messages[: records[-1].part + 1])
    ]
    return replace(item, messages=tuple(turns))
