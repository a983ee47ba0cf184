"""An append-only file of finished work by key: a cache that also makes runs resumable."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

from anchored.errors import DataError
from anchored.files import naming

Row = dict[str, Any]
_KEY = re.compile(rb'\{"key": "([^"\\]*)".*\}\n', re.DOTALL)


def content_key(content: Any) -> str:
    """Return 32 hex digits that identify JSON data, regardless of the order of its keys."""
    text = json.dumps(content, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Journal:
    """Rows by key in a JSON lines file, open for one writer inside `with`.

    `put` hands the whole row to the system before it returns, so that a killed process loses no
    row. A line that a kill or a full disk left incomplete is removed at the next start. A later row
    of a key replaces the earlier one. Rows stay on disk, and so does the index of their positions,
    a temporary SQLite table: memory does not grow with the file.

    Args:
        path: the file, created with its folder if missing; None for a temporary file.
        read_only: open beside a writer, see the rows present at the start, and never `put`.
        patience: seconds to wait for another writer to finish.

    Raises:
        DataError: a line is not a journal row, or another process writes to the file.
    """

    def __init__(self, path: Path | None, read_only: bool = False, patience: float = 0.0) -> None:
        self.path, self.read_only, self._patience = path, read_only, patience
        self._name = path or Path("journal")
        self._end = 0

    def __enter__(self) -> Self:
        if self.path is None:
            self._file = cast(BinaryIO, tempfile.TemporaryFile(buffering=0))
        elif self.read_only:
            self._file = self.path.open("rb", buffering=0)
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _opened(self.path, time.monotonic() + self._patience)
        self._index = _index()
        try:
            self._read()
        except DataError:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.path is not None and not self._end and not self.read_only:
            self.path.unlink()  # leave no empty file behind
        self._close()

    def _close(self) -> None:
        self._index.close()
        self._file.close()  # which also releases the lock

    def __len__(self) -> int:
        return self._index.execute("SELECT count(*) FROM places").fetchone()[0]

    def get(self, key: str) -> Row | None:
        """Return the newest row of a key, without the key, or None if there is none."""
        place = self._place(key)
        return None if place is None else self._row(*place)

    def __getitem__(self, key: str) -> Row:
        row = self.get(key)
        if row is None:
            raise KeyError(key)
        return row

    def put(self, key: str, row: Mapping[str, Any]) -> None:
        """Append a row; `row` must be JSON data."""
        line = json.dumps({"key": key, **row}, ensure_ascii=False, allow_nan=False) + "\n"
        data = line.encode("utf-8", "backslashreplace")
        self._write(data)
        self._index.execute(_INSERT, (_digest(key), self._end, len(data)))
        self._end += len(data)

    def rows(self) -> Iterator[Row]:
        """Yield the newest row of every key, without the key, in the order of their `put`."""
        for _, row in self.items():
            yield row

    def items(self) -> Iterator[tuple[str, Row]]:
        """Yield every key with its newest row, in the order of their `put`."""
        for at, size, key in self._lines():
            if self._place(key) == (at, size):
                yield key, self._row(at, size)

    def _place(self, key: str) -> tuple[int, int] | None:
        return self._index.execute(_SELECT, (_digest(key),)).fetchone()

    def _row(self, at: int, size: int) -> Row:
        line = os.pread(self._file.fileno(), size, at)
        row = _parsed(line, f"{self._name}: byte {at}")
        del row["key"]
        return row

    def _read(self) -> None:
        """Fill the index and cut off anything after the last whole line."""
        for at, size, key in self._lines():
            self._index.execute(_INSERT, (_digest(key), at, size))
            self._end = at + size
        if not self.read_only:
            self._file.truncate(self._end)

    def _lines(self) -> Iterator[tuple[int, int, str]]:
        """Yield the position, size and key of every whole line."""
        at = 0
        with os.fdopen(os.dup(self._file.fileno()), "rb") as file:
            file.seek(0)
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                yield at, len(line), _key(line, f"{self._name}: line {number}")
                at += len(line)

    def _write(self, data: bytes) -> None:
        with naming(self._name):
            try:
                while data:
                    data = data[self._file.write(data) or 0 :]
            except OSError:
                self._file.truncate(self._end)  # leave no partial row before the next one
                raise


_INSERT = "INSERT OR REPLACE INTO places VALUES (?, ?, ?)"
_SELECT = "SELECT at, size FROM places WHERE key = ?"


def _index() -> sqlite3.Connection:
    """Return an empty table in a temporary file that SQLite removes itself."""
    index = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    for setting in ("journal_mode = OFF", "synchronous = OFF"):
        index.execute(f"PRAGMA {setting}")
    index.execute("CREATE TABLE places (key BLOB PRIMARY KEY, at INT, size INT) WITHOUT ROWID")
    index.execute("BEGIN")  # never committed: one transaction per row would only be slower
    return index


def _opened(path: Path, until: float) -> BinaryIO:
    file = path.open("a+b", buffering=0)
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows has no such lock
        return file
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() < until:
                time.sleep(0.1)
                continue
            file.close()
            raise DataError(
                f"{path}: another run is writing to it; wait for it, or name another journal"
            ) from None


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _key(line: bytes, where: str) -> str:
    """Read the key from the start of a line as `put` writes it: parsing all rows is slow."""
    match = _KEY.fullmatch(line)
    return match[1].decode("utf-8", "replace") if match else _parsed(line, where)["key"]


def _parsed(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}; remove the line, or the file") from None
    if not isinstance(row, dict) or not isinstance(row.get("key"), str):
        raise DataError(f"{where}: not a journal row; name another file")
    return row
