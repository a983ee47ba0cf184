"""The corpus to annotate: its sources, its division into chunks, and its readable rows."""

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
    """The configuration that all annotators share.

    `source` is a path or a source, or a list of them; see `SourceConfig`.
    """

    source: tuple[SourceConfig, ...] = Field(min_length=1)
    out: Path
    schema_name: str = Field(default="general", description="built-in name or YAML file")
    min_chunk_chars: int = Field(default=200, ge=1)
    max_chunk_chars: int = Field(default=1500, ge=1)
    rows_per_shard: int = Field(default=500, ge=1)
    skip_bad_rows: bool = Field(default=False, description="count and skip invalid rows")
    cluster: Literal["ray"] | None = Field(
        default=None, description="distribute the work over the machines of a Ray cluster"
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
            raise ValueError("`annotations` works only with prepare; leave it out")
        return source

    @property
    def split(self) -> Split:
        """Function that cuts a document's text into chunks."""
        return partial(split_chunks, min_chars=self.min_chunk_chars, max_chars=self.max_chunk_chars)


def check_installed(config: CorpusConfig) -> None:
    """Check that the packages for a run on a cluster are installed.

    Raises:
        ConfigError: they are not.
    """
    if config.cluster is not None and find_spec(config.cluster) is None:
        raise ConfigError(
            f"cluster: {config.cluster} is not installed; pip install 'anchored[cluster]'"
        )


def items(config: CorpusConfig) -> Iterator[Item | None]:
    """Yield canonical rows, and None for each skipped row.

    Raises:
        DataError: a source cannot be read, or a row is invalid and `skip_bad_rows` is false.
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
    """Yield batches of `size` items, in order; the last batch may be smaller."""
    left = iter(many)
    while batch := tuple(islice(left, size)):
        yield batch
