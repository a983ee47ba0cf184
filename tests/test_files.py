"""Files that are whole or not there, folders that belong to one run, rows with line numbers."""

from __future__ import annotations

import datetime
import gzip
import json
import lzma
import pickle
from pathlib import Path

import pytest

from anchored.config import Config
from anchored.errors import ConfigError, DataError
from anchored.files import (
    atomic_write,
    building,
    claim,
    read_jsonl,
    released_if_unused,
    write_json,
    write_jsonl,
)


class Inner(Config):
    rate: float = 1e-5


class Run(Config):
    name: str = "a"
    inner: Inner = Inner()
    trainer: dict[str, object] = {}


class DiskFull(OSError):
    pass


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_atomic_write_replaces_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "new" / "a.txt"
    atomic_write(path, "one")
    atomic_write(path, "zwei ⚓\n")
    assert path.read_bytes() == "zwei ⚓\n".encode()
    assert names(path.parent) == ["a.txt"]


def test_atomic_write_keeps_the_old_contents_when_the_disk_is_full(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise DiskFull

    path = tmp_path / "a.txt"
    atomic_write(path, "old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskFull):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_real_full_disk_is_named_by_the_output_and_left_empty(tiny_disk):
    disk = tiny_disk(8)
    with pytest.raises(OSError, match="No space left") as written:
        atomic_write(disk / "a.txt", "x" * 20_000)
    with pytest.raises(OSError, match="No space left") as built, building(disk / "out") as folder:
        (folder / "a").write_text("x" * 20_000)
    assert (written.value.filename, built.value.filename) == (f"{disk}/a.txt", f"{disk}/out")
    assert pickle.loads(pickle.dumps(written.value)).filename == f"{disk}/a.txt"  # from a worker
    assert names(disk) == []


def test_a_file_that_cannot_be_made_is_named_by_its_place_in_the_output(tmp_path):
    with (
        pytest.raises(OSError, match="Is a directory") as caught,
        building(tmp_path / "o") as folder,
    ):
        folder.write_text("x")
    assert caught.value.filename == str(tmp_path / "o")
    with pytest.raises(OSError, match="No such file") as caught, building(tmp_path / "o") as folder:
        (folder / "no" / "a").write_text("x")
    assert caught.value.filename == str(tmp_path / "o" / "no" / "a")


def test_write_json_keeps_order_and_letters_and_refuses_nan(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"b": "é", "a": [1, None]})
    assert (
        path.read_text(encoding="utf-8") == '{\n  "b": "é",\n  "a": [\n    1,\n    null\n  ]\n}\n'
    )
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8"))["b"] == "é"


def test_building_shows_the_folder_only_when_it_is_whole(tmp_path):
    with building(tmp_path / "out") as folder:
        (folder / "a").write_text("x")
        assert not (tmp_path / "out").exists()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["a"]


def test_building_leaves_nothing_after_a_failure(tmp_path):
    with pytest.raises(KeyboardInterrupt), building(tmp_path / "out") as folder:
        (folder / "a").write_text("x")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_building_clears_what_a_killed_run_left(tmp_path):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "half").write_text("x")
    with building(tmp_path / "out") as folder:
        assert names(folder) == []


def test_building_refuses_a_path_in_use_and_fills_an_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    with building(tmp_path / "empty") as folder:
        (folder / "a").write_text("x")
    assert names(tmp_path / "empty") == ["a"]
    message = f"{tmp_path / 'empty'}: already exists; remove it or choose another output"
    with pytest.raises(DataError) as caught, building(tmp_path / "empty"):
        pytest.fail("entered")
    assert str(caught.value) == message


def test_claim_is_repeatable_and_names_the_first_field_that_differs(tmp_path):
    out = tmp_path / "runs" / "a"
    config = Run(trainer={"lr": 1e-4, "name": "1e5"})
    claim(out, config)
    (out / "checkpoint").mkdir()
    claim(out, config)
    with pytest.raises(ConfigError) as caught:
        claim(out, config.model_copy(update={"inner": Inner(rate=2e-5)}))
    assert str(caught.value) == (
        f"{out}: holds a run with inner.rate = 1e-05, this one has 2e-05; "
        "choose another output folder, or that value to resume"
    )


def test_a_field_that_is_newer_than_the_folder_has_its_default_there(tmp_path: Path):
    class Newer(Run):
        loss: str = "cross_entropy"

    claim(tmp_path, Run())
    claim(tmp_path, Newer())
    with pytest.raises(ConfigError, match="holds a run with loss = None, this one has 'gem'"):
        claim(tmp_path, Newer(loss="gem"))


def test_claim_tells_an_absent_field_from_a_changed_one(tmp_path):
    claim(tmp_path, Run(trainer={"lr": 0.1}))
    with pytest.raises(ConfigError, match=r"trainer\.lr = 0\.1, this one has None"):
        claim(tmp_path, Run())


class Listed(Config):
    sources: list[dict[str, object]]


def test_claim_names_the_field_within_a_list_and_shortens_its_values(tmp_path):
    sources: list[dict[str, object]] = [{"path": "a"}, {"path": "x" * 500, "limit": 3}]
    claim(tmp_path, Listed(sources=sources))
    longer = [sources[0], {**sources[1], "path": "y" * 500}]
    with pytest.raises(ConfigError) as caught:
        claim(tmp_path, Listed(sources=longer))
    assert str(caught.value).startswith(f"{tmp_path}: holds a run with sources.1.path = 'xxx")
    assert len(str(caught.value)) < 300 + len(str(tmp_path))
    with pytest.raises(ConfigError, match=r"sources\.1\.path = 'x+, this one has None"):
        claim(tmp_path, Listed(sources=sources[:1]))


def test_a_claimed_folder_may_be_named_by_another_path(tmp_path: Path):
    class Placed(Config):
        out: Path
        seed: int = 0

    claim(tmp_path, Placed(out=tmp_path))
    claim(tmp_path, Placed(out=Path("elsewhere")))
    with pytest.raises(ConfigError, match="seed = 0, this one has 1"):
        claim(tmp_path, Placed(out=tmp_path, seed=1))


class Wide(Config):
    workers: int


def test_a_run_is_resumed_on_a_machine_with_more_cores(tmp_path: Path):
    claim(tmp_path / "run", Wide(workers=2))
    claim(tmp_path / "run", Wide(workers=8))


@pytest.mark.parametrize("kept", [False, True])
def test_a_claim_is_taken_back_if_its_run_fails_before_it_leaves_anything(
    tmp_path: Path, kept: bool
):
    out = tmp_path / "run"
    with pytest.raises(DataError, match="wrong"), released_if_unused(out):
        claim(out, Run())
        if kept:
            (out / "metrics.jsonl").touch()
        raise DataError("wrong")
    assert out.exists() is kept


def test_rows_are_written_with_dates_as_text(tmp_path: Path):
    rows = [{"id": 1, "when": datetime.date(2026, 1, 2)}, {"text": "Größe"}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert (tmp_path / "rows.jsonl").read_text(encoding="utf-8") == (
        '{"id": 1, "when": "2026-01-02"}\n{"text": "Größe"}\n'
    )


def test_claim_refuses_folders_of_something_else(tmp_path):
    (tmp_path / "photo.jpg").write_text("x")
    with pytest.raises(ConfigError, match=r"holds files but no config\.yaml"):
        claim(tmp_path, Run())
    with pytest.raises(ConfigError, match="is a file; the output must be a folder"):
        claim(tmp_path / "photo.jpg", Run())
    assert names(tmp_path) == ["photo.jpg"]


ROWS = [{"text": "a\u2028b\u0085c"}, {"text": "é\r"}]


@pytest.mark.parametrize(
    ("name", "compress"),
    [("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress), ("a.jsonl.xz", lzma.compress)],
)
def test_rows_keep_their_line_number_in_every_packing(tmp_path, name, compress):
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).replace("\n", "\n\n")
    (tmp_path / name).write_bytes(compress(lines.encode("utf-8-sig")))
    assert list(read_jsonl(tmp_path / name)) == [(1, ROWS[0]), (3, ROWS[1])]


@pytest.mark.parametrize(("name", "compress"), [("a.json", bytes), ("a.json.xz", lzma.compress)])
def test_a_json_list_gives_its_items(tmp_path, name, compress):
    (tmp_path / name).write_bytes(compress(json.dumps(ROWS).encode()))
    assert list(read_jsonl(tmp_path / name)) == [(1, ROWS[0]), (2, ROWS[1])]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{}\n\n{"a": 1\n', "line 3: not JSON: Expecting ',' delimiter"),
        ("a.jsonl", b"{}\n[1]\n", "line 2: holds list, not an object {...}"),
        ("a.jsonl", b'{}\n{"a": "\xe9"}\n', "line 2: not UTF-8 at byte 7; convert the file first"),
        (
            "a.jsonl",
            b'{"a": "\\ud83d"}',
            "line 1: holds half a surrogate pair (\\ud...); remove it",
        ),
        ("a.jsonl", b"[" * 100_000, "line 1: not JSON: maximum recursion depth"),
        ("a.json", b'{"a": 1}', "holds one dict; write a list of objects"),
        ("a.json", b"[{}, 3]", "item 2: holds int, not an object {...}"),
        ("a.json", b"", "not JSON: Expecting value"),
        ("a.csv", b"a,b", "not a .jsonl or .json file (optionally .gz, .xz or .zst)"),
        ("a.gz", b"", "not a .jsonl or .json file (optionally .gz, .xz or .zst)"),
        ("a.jsonl.gz", b"plain", "damaged or cut short: Not a gzipped file (b'pl')"),
        ("a.jsonl.xz", b"plain", "damaged or cut short: Input format not supported by decoder"),
        ("a.jsonl.gz", gzip.compress(b"{}\n" * 99, mtime=0)[:-9], "damaged or cut short: "),
        ("a.jsonl.xz", lzma.compress(b"{}\n" * 99)[:-9], "damaged or cut short: "),
    ],
)
def test_a_broken_row_is_named_by_file_and_line(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        list(read_jsonl(path))
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_whole_surrogate_pair_is_a_letter_like_any_other(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": "\\ud83d\\ude00"}')
    assert list(read_jsonl(tmp_path / "a.jsonl")) == [(1, {"a": "😀"})]


def test_a_missing_file_is_the_users_fault(tmp_path):
    for name in ("none.jsonl", "folder.jsonl"):
        (tmp_path / "folder.jsonl").mkdir(exist_ok=True)
        with pytest.raises(DataError, match="no such file"):
            list(read_jsonl(tmp_path / name))
