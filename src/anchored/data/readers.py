"""Reads sources row by row: files, folders, hub datasets and the storyworld."""

from __future__ import annotations

import itertools
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

import datasets
import pyarrow.parquet as pq
import yaml
from datasets.exceptions import DatasetGenerationError
from pydantic import AfterValidator, Field

from anchored.annotation import Schema
from anchored.config import Config
from anchored.data.rows import Item, Row, Split, canonical_row
from anchored.errors import ConfigError, DataError
from anchored.files import COMPRESSED, read_jsonl, unpacked
from anchored.segments import OBJECTIVES
from anchored.storyworld import Storyworld

_TEXTS = (".txt", ".md")
_TABLES = (".parquet", ".arrow")
_IN_FOLDERS = (".jsonl", *_TABLES, *_TEXTS)
_PARQUET_BATCH = 256  # rows decoded at once


T = TypeVar("T")


def _known_objective(name: str) -> str:
    if name not in OBJECTIVES:
        raise ValueError(f"use one of {', '.join(OBJECTIVES)}")
    return name


ObjectiveName = Annotated[str, AfterValidator(_known_objective)]


class SourceConfig(Config):
    """One source of rows.

    `path` is one of these:

    - a `.jsonl`, `.json`, `.txt` or `.md` file, optionally `.gz`, `.xz` or `.zst`;
    - a `.parquet` or `.arrow` file;
    - a folder of such files, read in sorted order. Its `.json` files are ignored, and so are `.md`
      files next to files of rows, which they describe;
    - a folder written by `save_to_disk`;
    - `hf://owner/name[/configuration][?split=validation&revision=...]`;
    - `storyworld://small` or `storyworld://full/sft?seed=1&count=2000`.

    Everything but `.json` files and the single document of a text file is streamed.
    """

    path: str
    weight: float = Field(
        default=1.0,
        gt=0,
        description="share of the text drawn from this source until it is exhausted",
    )
    skip: int = Field(default=0, ge=0, description="number of rows to skip at the start")
    limit: int | None = Field(default=None, ge=1, description="maximum number of rows to read")
    where: dict[str, str | list[str]] = Field(
        default={}, description="keep only rows whose field has (one of) these values"
    )
    separator: str | None = Field(
        default=None, description="separator between the documents of a text file"
    )
    split: str = Field(
        default="train", description="split of a hub dataset or of a saved `DatasetDict`"
    )
    objective: ObjectiveName | None = Field(
        default=None, description="overrides the run's objective"
    )
    annotations: Path | None = Field(
        default=None, description="folder of stand-off annotations of these rows; only for prepare"
    )

    @property
    def endless(self) -> bool:
        """True if the source is infinite."""
        parts = urlsplit(self.path)
        return parts.scheme == "storyworld" and parts.path != "/sft" and self.limit is None


def load_schema(name: str) -> Schema:
    """Load a schema by name or file, or the storyworld's schema for `storyworld://small`."""
    parts = urlsplit(name)
    return (
        _storyworld(parts.netloc, name).schema
        if parts.scheme == "storyworld"
        else Schema.load(name)
    )


def read_rows(source: SourceConfig, prompted_share: float = 0.0) -> Iterator[tuple[str, Row]]:
    """Return `(place, row)` pairs of a source after `where`, `skip` and `limit`.

    Args:
        source: the source. The places are for error messages.
        prompted_share: passed to the storyworld, which writes its prompted documents itself.

    Raises:
        DataError: a file is missing or unreadable; the message names the file and any line.
    """
    return selected(_open(source, prompted_share), source, lambda pair: pair[1])


def read_items(source: SourceConfig, split: Split) -> Iterator[tuple[str, Item]]:
    """Return `(place, item)` pairs like `read_rows`; `split` cuts texts into chunks.

    Raises:
        DataError: a file or a row is invalid; the message names the file and any line.
    """
    return ((place, canonical_row(row, place, split)) for place, row in read_rows(source))


def selected(found: Iterable[T], source: SourceConfig, raw: Callable[[T], Row]) -> Iterator[T]:
    """Apply a source's `where`, `skip` and `limit` to what was read from it.

    `where` tests the fields of the raw rows, which `raw` returns.
    """
    rows = (one for one in found if _wanted(raw(one), source.where))
    stop = None if source.limit is None else source.skip + source.limit
    return itertools.islice(rows, source.skip, stop)


def _wanted(row: Row, where: Mapping[str, str | list[str]]) -> bool:
    return all(row.get(k) in ([v] if isinstance(v, str) else v) for k, v in where.items())


def _open(source: SourceConfig, prompted_share: float) -> Iterator[tuple[str, Row]]:
    scheme = urlsplit(source.path).scheme
    if scheme == "storyworld":
        return _open_storyworld(source.path, prompted_share)
    if scheme == "hf":
        return _open_hub(source)
    path = Path(source.path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; a hub dataset is written hf://owner/name")
    return _open_folder(path, source) if path.is_dir() else _open_file(path, source)


def _storyworld(size: str, name: str) -> Storyworld:
    if size not in ("small", "full"):
        raise ConfigError(f"{name}: {size!r} is not a size of the storyworld; use small or full")
    return Storyworld(size)


def _open_storyworld(url: str, prompted_share: float) -> Iterator[tuple[str, Row]]:
    parts = urlsplit(url)
    options = {name: yaml.safe_load(value) for name, value in parse_qsl(parts.query)}
    seed = options.pop("seed", 0)
    world = _storyworld(parts.netloc, url)
    try:
        if parts.path == "/sft":
            rows = world.sft_rows(options.pop("count", 2000), seed, **options)
        else:
            rows = world.documents(seed, options.pop("prompted_share", prompted_share), **options)
    except TypeError as error:
        raise ConfigError(f"{url}: {error}") from None
    return ((f"{url}: row {n}", row) for n, row in enumerate(rows, 1))


def _open_hub(source: SourceConfig) -> Iterator[tuple[str, Row]]:
    address, _, query = source.path.removeprefix("hf://").partition("?")
    name, options = address.split("/"), {"split": source.split, **dict(parse_qsl(query))}
    if unknown := options.keys() - {"split", "revision"}:
        raise ConfigError(
            f"{source.path}: {min(unknown)!r} is not an option of a hub dataset; use split or "
            "revision (a configuration is written hf://owner/name/configuration)"
        )
    with _readable(source.path, "a hub dataset"):
        data = datasets.load_dataset("/".join(name[:2]), *name[2:], streaming=True, **options)
    return _number(source.path, data)


def _open_folder(folder: Path, source: SourceConfig) -> Iterator[tuple[str, Row]]:
    if (saved := _saved_dataset(folder, source.split)) is not None:
        with _readable(saved, "a saved dataset"):
            data = datasets.load_from_disk(str(saved))
        yield from _number(str(saved), data)
        return
    files = _files_in(folder)
    if not files:
        raise DataError(
            f"{folder}: has no readable file; add one of these kinds: {', '.join(_IN_FOLDERS)}"
        )
    for path in files:
        yield from _open_file(path, source)


def _saved_dataset(folder: Path, split: str) -> Path | None:
    """Return the folder that `save_to_disk` wrote a dataset or this split to, or None."""
    if (folder / "dataset_info.json").is_file():
        return folder
    if not (folder / "dataset_dict.json").is_file():
        return None
    if not (folder / split / "dataset_info.json").is_file():
        known = ", ".join(sorted(path.parent.name for path in folder.glob("*/dataset_info.json")))
        raise DataError(f"{folder}: no split {split!r}; it has {known or 'none'}")
    return folder / split


def _files_in(folder: Path) -> list[Path]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    known = {path: kind for path in files if (kind := _kind(path)) in _IN_FOLDERS}
    rows = any(kind not in _TEXTS for kind in known.values())
    return [path for path, kind in known.items() if not (rows and kind == ".md")]


def _kind(path: Path) -> str:
    """Return the suffix of the content, without that of the compression."""
    return (Path(path.stem) if path.suffix in COMPRESSED else path).suffix


def _open_file(path: Path, source: SourceConfig) -> Iterator[tuple[str, Row]]:
    kind = _kind(path)
    if kind in _TEXTS:
        yield from _read_text(path, source.separator)
    elif kind in _TABLES:
        yield from _number(str(path), _parquet(path) if kind == ".parquet" else _arrow(path))
    else:
        for number, row in read_jsonl(path):
            yield f"{path}: line {number}", row


def _parquet(path: Path) -> Iterator[Row]:
    """Yield rows, decoding a few at a time: a row group may not fit in memory as objects."""
    with _readable(path, "parquet"), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_PARQUET_BATCH):
            yield from batch.to_pylist()


def _arrow(path: Path) -> Iterator[Row]:
    with _readable(path, "arrow"):
        yield from datasets.load_dataset(  # pyright: ignore
            "arrow", data_files=str(path), split="train", streaming=True
        )


@contextmanager
def _readable(name: Path | str, kind: str) -> Iterator[None]:
    """Turn a library's exception about a damaged file into one line that names the file."""
    try:
        yield
    except (OSError, ValueError, DatasetGenerationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{name}: not readable as {kind}: {reason}") from None


def _number(name: str, rows: Iterable[Any]) -> Iterator[tuple[str, Row]]:
    return ((f"{name}: row {number}", row) for number, row in enumerate(rows, 1))


def _read_text(path: Path, separator: str | None) -> Iterator[tuple[str, Row]]:
    """Yield one document per file or, with a separator, one per non-blank piece."""
    documents = _text_pieces(path, separator) if separator else iter([_whole_text(path)])
    for number, text in enumerate(documents, 1):
        place = f"{path}: document {number}" if separator else str(path)
        yield place, {"text": text}


def _whole_text(path: Path) -> str:
    return "".join(_text_lines(path))


def _text_pieces(path: Path, separator: str) -> Iterator[str]:
    rest = ""
    for line in _text_lines(path):
        rest += line
        if separator in line or separator in rest[-len(line) - len(separator) :]:
            *whole, rest = rest.split(separator)
            yield from (text for text in whole if text.strip())
    if rest.strip():
        yield rest


def _text_lines(path: Path) -> Iterator[str]:
    with unpacked(path) as file:
        for number, line in enumerate(file, 1):
            yield _decode(
                line.removeprefix(BOM_UTF8) if number == 1 else line, f"{path}: line {number}"
            )


def _decode(line: bytes, place: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: not UTF-8 at byte {error.start}; convert the file first"
        ) from None
