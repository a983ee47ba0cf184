"""An append-only file of finished work by key: cache and means of resuming in one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

from anchored.errors import DataError
from anchored.files import naming

Row = dict[str, Any]


def content_key(content: Any) -> str:
    """32 hex digits that stand for JSON data, whatever the order of its keys."""
    text = json.dumps(content, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Journal:
    """Rows by key in a JSON lines file, open for one writer inside `with`.

    A row is handed to the system whole before `put` returns: a killed process loses none. What a
    kill or a full disk cut off in the middle of a line is removed at the next start. A later row
    of a key replaces the earlier one.

    Args:
        path: the file, made with its folder where it is missing; None keeps rows in memory alone.

    Raises:
        DataError: a line is no row of a journal, or another process writes to the file.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._rows: dict[str, Row] = {}
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _opened(self.path)
            self._rows = _rows(self.path, self._file)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None and self.path is not None:
            if not self._rows:
                self.path.unlink()  # nothing came of it
            self._file.close()  # and with it the lock
            self._file = None

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: str) -> Row | None:
        """The newest row of a key, without the key; None if there is none."""
        return self._rows.get(key)

    def __getitem__(self, key: str) -> Row:
        return self._rows[key]

    def put(self, key: str, row: Mapping[str, Any]) -> None:
        """Adds a row; `row` must be JSON."""
        if self._file is not None and self.path is not None:
            line = json.dumps({"key": key, **row}, ensure_ascii=False, allow_nan=False) + "\n"
            _write(self._file, line.encode("utf-8", "backslashreplace"), self.path)
        self._rows[key] = dict(row)


def _opened(path: Path) -> BinaryIO:
    file = path.open("a+b", buffering=0)
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows locks no file this way
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise DataError(
            f"{path}: another run is writing to it; wait for it, or name another journal"
        ) from None
    return file


def _rows(path: Path, file: BinaryIO) -> dict[str, Row]:
    file.seek(0)
    rows: dict[str, Row] = {}
    whole = 0
    for number, line in enumerate(file, 1):
        if not line.endswith(b"\n"):
            break
        whole += len(line)
        row = _parsed(line, f"{path}: line {number}")
        rows[row.pop("key")] = row
    file.truncate(whole)
    return rows


def _parsed(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}; remove the line, or the file") from None
    if not isinstance(row, dict) or not isinstance(row.get("key"), str):
        raise DataError(f"{where}: is no row of a journal; name another file")
    return row


def _write(file: BinaryIO, data: bytes, path: Path) -> None:
    with naming(path):
        while data:
            data = data[file.write(data) or 0 :]
