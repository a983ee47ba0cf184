from __future__ import annotations

import json
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from anchored.errors import DataError
from anchored.journal import Journal, content_key


def test_rows_come_back_by_key_and_a_later_one_replaces_the_earlier(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal.jsonl"
    with Journal(path) as journal:
        journal.put("a", {"value": 1})
        journal.put("b", {"value": "\ud800 half\u2028"})
        journal.put("a", {"value": 2})
        assert json.loads(path.read_text().splitlines()[0]) == {"key": "a", "value": 1}
    with Journal(path) as journal:
        assert (journal.get("a"), journal["b"]["value"]) == ({"value": 2}, "\ud800 half\u2028")
        assert (len(journal), journal.get("c")) == (2, None)


def test_a_torn_last_line_is_cut_and_the_next_row_stands_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    whole = b'{"key": "a", "value": 1}\n'
    for cut in range(1, len(whole)):
        path.write_bytes(whole + whole[:cut])
        with Journal(path) as journal:
            assert len(journal) == 1
            journal.put("b", {"value": 2})
        with Journal(path) as journal:
            assert {key: journal[key] for key in "ab"} == {"a": {"value": 1}, "b": {"value": 2}}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", r"line 2: not JSON: .*remove the line"),
        ('{"id": 3}', "line 2: not a journal row"),
    ],
)
def test_another_file_is_refused_and_left_as_it_is(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "journal.jsonl"
    text = f'{{"key": "a"}}\n{line}\n'
    path.write_text(text)
    with pytest.raises(DataError, match=message), Journal(path):
        pass
    assert path.read_text() == text


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.put("a", {})
        with pytest.raises(DataError, match="another run is writing to it"), Journal(path):
            pass
    with Journal(path):
        pass


def test_a_patient_writer_waits_for_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with ExitStack() as first:
        first.enter_context(Journal(path)).put("a", {})
        timer = threading.Timer(0.3, first.close)
        timer.start()
        with Journal(path, patience=30) as second:
            assert len(second) == 1
        timer.join()


def test_an_unused_journal_leaves_no_file(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl"):
        pass
    assert list(tmp_path.iterdir()) == []
    with Journal(None) as journal:
        journal.put("a", {"value": 1})
        assert journal["a"] == {"value": 1}


def test_a_full_disk_names_the_file_and_costs_no_row_before(
    tiny_disk: Callable[[int], Path],
) -> None:
    path = tiny_disk(64) / "journal.jsonl"
    written = 0
    with pytest.raises(OSError) as caught, Journal(path) as journal:
        while True:
            journal.put(str(written), {"value": "x" * 500})
            written += 1
    assert caught.value.filename == str(path)
    with Journal(path) as journal:
        assert len(journal) == written > 50


def test_keys_depend_on_the_content_and_not_on_the_order_of_its_names() -> None:
    assert content_key({"a": 1, "b": [2]}) == content_key({"b": [2], "a": 1})
    assert content_key({"a": 1}) != content_key({"a": "1"})
    assert len(content_key("\ud800")) == 32


def test_the_newest_rows_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        for key, value in (("a", 1), ("b", 2), ("a", 3)):
            journal.put(key, {"value": value})
        assert list(journal.rows()) == [{"value": 2}, {"value": 3}]
        next(journal.rows())
        journal.put("c", {"value": 4})
        assert journal["c"] == {"value": 4}


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"".join(b'{"key": "%d", "value": 1}\n' % i for i in range(50_000)))
    tracemalloc.start()
    with Journal(path) as journal:
        assert (len(journal), journal["49999"]) == (50_000, {"value": 1})
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert held < 200_000  # a dict of the keys alone takes 5 MB
