"""Files and folders that appear whole or not at all, and rows read with their line numbers."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import os
import re
import shutil
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from anchored.config import Config, read_yaml, to_yaml
from anchored.errors import AnchoredError, ConfigError, DataError

CONFIG_NAME = "config.yaml"
_WEIGHTS_AND_SETTINGS = (".safetensors", ".json", ".txt", ".model")
# Fields that change the speed or the price of a run but not its result.
_NOT_COMPARED = {
    "out", "cluster", "workers", "device_map", "journal", "url", "key_env", "concurrency",
    "timeout", "attempts", "patience", "requests_per_minute", "tokens_per_minute",
    "price_in", "price_out",
}  # fmt: skip


def _open_zstd(path: Path, mode: str) -> BinaryIO:
    import pyarrow

    assert mode == "rb"
    # Through pyarrow, which is a dependency anyway: Python has zstd only from 3.14 on.
    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))


_OPENERS: Mapping[str, Any] = {".gz": gzip.open, ".xz": lzma.open, ".zst": _open_zstd}
COMPRESSED = tuple(_OPENERS)


@contextmanager
def naming(path: Path, partial: Path | None = None) -> Iterator[None]:
    """Make an `OSError` in the body name `path`: a full disk names no file, or only `partial`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = str(error.filename or path).replace(str(partial or path), str(path))
        raise


def as_os_error(error: Exception, path: Path) -> OSError | None:
    """Return the system error inside an error of a Rust library, or None if there is none."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1])), str(path)) if found else None


def atomic_write(path: Path, text: str) -> None:
    """Write `text` as UTF-8 so that `path` holds either the old contents or the new ones.

    Parent folders are created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with naming(path, partial), partial.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, data: Any) -> None:
    """Write `data` atomically as indented JSON, with the keys in the order given.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot hold.
    """
    atomic_write(path, json.dumps(data, ensure_ascii=False, allow_nan=False, indent=2) + "\n")


@contextmanager
def building(path: Path) -> Iterator[Path]:
    """Yield a folder beside `path` that becomes `path` at the end, or is removed on failure.

    The leftovers of a killed run are removed first.

    Raises:
        DataError: `path` already holds something.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise DataError(f"{path}: already exists; remove it or choose another output")
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with naming(path, partial):
            partial.mkdir(parents=True)
            yield partial
            partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def claim(out: Path, config: Config, free: Collection[str] = ()) -> None:
    """Reserve `out` for this configuration: write `config.yaml`, or compare with the one there.

    Fields that do not affect the result are not compared: a folder may be moved or named by
    another path, and a run may resume on a machine with more cores or against another server.
    The fields in `free` (`a` or `a.b`), and the fields inside them, are not compared either. A
    field that the saved configuration lacks counts as having its default there.

    Raises:
        ConfigError: `out` belongs to a run with another configuration, or to something else.
    """
    saved = out / CONFIG_NAME
    if saved.is_file():
        read = read_yaml(saved) or {}
        newer = {
            name
            for name, field in type(config).model_fields.items()
            if name not in read
            and getattr(config, name) == field.get_default(call_default_factory=True)
        }
        before = _leaves(read)
        now = _leaves(config.model_dump(mode="json", exclude=newer))
        for field in {**before, **now}:
            if _counts(field, free) and before.get(field) != now.get(field):
                raise ConfigError(
                    f"{out}: holds a run with {field} = {before.get(field)!r:.80}, this one has "
                    f"{now.get(field)!r:.80}; choose another output folder, or that value to resume"
                )
        return
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; the output must be a folder")
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(
            f"{out}: holds files but no {CONFIG_NAME}; choose an empty or new output folder"
        )
    atomic_write(saved, to_yaml(config))


@contextmanager
def released_if_unused(out: Path) -> Iterator[None]:
    """Undo a claim if the body fails on its input before it writes anything else to `out`."""
    try:
        yield
    except AnchoredError:
        if out.is_dir() and [path.name for path in out.iterdir()] == [CONFIG_NAME]:
            shutil.rmtree(out)
        raise


def _counts(field: str, free: Collection[str]) -> bool:
    inside_free = any(f"{field}.".startswith(f"{name}.") for name in free)
    return not inside_free and field.rpartition(".")[2] not in _NOT_COMPARED


def _leaves(data: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings and lists to `{"a.0.b": value}`; an empty one is a value."""
    if not isinstance(data, dict | list) or not data:
        return {prefix or "configuration": data}
    leaves: dict[str, Any] = {}
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        leaves |= _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one row per line, atomically; values without a JSON type (dates) become text."""
    lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    atomic_write(path, "".join(lines))


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number (from 1) and the row of each JSON object; blank lines are skipped.

    A `.jsonl` file is streamed. A `.json` file holds one list, and the number is the position of
    the item. Either name may also end in one of `COMPRESSED`.

    Raises:
        DataError: no such file, another file type, or a line (named by its number) that is not
            UTF-8, not JSON or not an object.
    """
    suffixes = path.suffixes
    packed = bool(suffixes) and suffixes[-1] in COMPRESSED
    kind = "".join(suffixes[-2:-1] if packed else suffixes[-1:])
    if kind not in (".json", ".jsonl"):
        raise DataError(f"{path}: not a .jsonl or .json file (optionally .gz, .xz or .zst)")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    with unpacked(path) as file:
        yield from _lines(path, file) if kind == ".jsonl" else _items(path, file)


@contextmanager
def unpacked(path: Path) -> Iterator[BinaryIO]:
    """Open a file as a stream of bytes, decompressed if its name ends in one of `COMPRESSED`.

    Raises:
        DataError: raised in the body, on reading: the compressed data is damaged or cut short.
    """
    opener = _OPENERS.get(path.suffix)
    try:
        with cast(BinaryIO, opener(path, "rb") if opener else path.open("rb")) as file:
            yield file
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(f"{path}: damaged or cut short: {error}") from None


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    # Bytes, because text mode would also split a row at a lone carriage return.
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, _row(_parse(line, f"{path}: line {number}"), f"{path}: line {number}")


def _items(path: Path, file: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    data = _parse(file.read(), str(path))
    if not isinstance(data, list):
        raise DataError(f"{path}: holds one {type(data).__name__}; write a list of objects")
    for number, item in enumerate(data, 1):
        yield number, _row(item, f"{path}: item {number}")


def _parse(raw: bytes, where: str) -> Any:
    try:
        data = json.loads(raw.decode("utf-8-sig"))
        if b"\\ud" in raw.lower():
            json.dumps(data, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 at byte {error.start}; convert the file first"
        ) from None
    except UnicodeEncodeError:
        raise DataError(f"{where}: holds half a surrogate pair (\\ud...); remove it") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from None
    return data


def _row(data: Any, where: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise DataError(f"{where}: holds {type(data).__name__}, not an object {{...}}")
    return data


def folder_digest(folder: Path) -> str:
    """Return twelve hex digits of the SHA-256 of a model folder's weights and settings."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in _WEIGHTS_AND_SETTINGS and path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()[:12]


def weights_digest(model: str) -> str:
    """Return an identifier of a model's weights: the digest of a folder, else the model's name."""
    return folder_digest(Path(model)) if Path(model).is_dir() else model
