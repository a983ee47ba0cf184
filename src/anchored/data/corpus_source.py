"""The corpus that is annotated: where it comes from, how it is cut, which of its rows are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, field_validator

from anchored.config import Config
from anchored.data.readers import SourceConfig, read_rows
from anchored.data.rows import Item, Split, canonical_row
from anchored.data.standoff import refuse_stand_off
from anchored.errors import ConfigError, DataError
from anchored.segments import split_chunks

T = TypeVar("T")


class CorpusConfig(Config):
    """What every annotator reads.

    `source` is a path or a source, or a list of them; see `SourceConfig`.
    """

    source: tuple[SourceConfig, ...] = Field(min_length=1)
    out: Path
    schema_name: str = Field(default="general", description="built-in name or YAML file")
    min_chunk_chars: int = Field(default=200, ge=1)
    max_chunk_chars: int = Field(default=1500, ge=1)
    rows_per_shard: int = Field(default=500, ge=1)
    skip_bad_rows: bool = Field(
        default=False, description="count rows that would be an error, and go on"
    )
    cluster: Literal["ray"] | None = Field(
        default=None, description="spread the work over the machines of a Ray cluster"
    )

    @field_validator("source", mode="before")
    @classmethod
    def _as_sources(cls, source: Any) -> Any:
        many = source if isinstance(source, list | tuple) else [source]
        return [{"path": str(one)} if isinstance(one, str | Path) else one for one in many]

    @field_validator("source")
    @classmethod
    def _no_annotations(cls, source: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        if any(one.annotations for one in source):
            raise ValueError("`annotations` is read by prepare alone; leave it out here")
        return source

    @property
    def split(self) -> Split:
        """Cuts a document's text into chunks."""
        return partial(split_chunks, min_chars=self.min_chunk_chars, max_chars=self.max_chunk_chars)


def check_installed(config: CorpusConfig) -> None:
    """Check that a run on a cluster can be one, before there is any work.

    Raises:
        ConfigError: it cannot.
    """
    if config.cluster is not None and find_spec(config.cluster) is None:
        raise ConfigError(
            f"cluster: {config.cluster} is not installed; pip install 'anchored[cluster]'"
        )


def items(config: CorpusConfig) -> Iterator[Item | None]:
    """Canonical rows; None for a bad row that is to be skipped.

    Raises:
        DataError: a source cannot be read, or a row is bad and `skip_bad_rows` is false.
    """
    split = config.split
    for source in config.source:
        refuse_stand_off(source)
        for place, row in read_rows(source):
            try:
                yield canonical_row(row, place, split)
            except DataError:
                if not config.skip_bad_rows:
                    raise
                yield None


def batched(many: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """`size` at a time, in order; the last batch may be smaller."""
    left = iter(many)
    while batch := tuple(islice(left, size)):
        yield batch
