from __future__ import annotations

import gzip
import itertools
import json
import lzma
import random
import string
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from anchored.config import load_config
from anchored.data.prepare import PrepareConfig
from anchored.data.readers import SourceConfig, load_schema, read_items, read_rows
from anchored.data.rows import Document, uncut
from anchored.errors import ConfigError, DataError


def rows_of(path, **options):
    return [row for _, row in read_rows(SourceConfig(path=str(path), **options))]


ROWS = [{"id": str(i), "text": f"Text {i}.\rStill {i}."} for i in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


def test_the_same_rows_come_from_every_kind_of_file(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES))
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(LINES))
    (tmp_path / "a.jsonl.zst").write_bytes(zstd(LINES[:40]) + zstd(LINES[40:]))
    (tmp_path / "a.json").write_text(json.dumps(ROWS), encoding="utf-8")
    rows = Dataset.from_list(ROWS)
    rows.to_parquet(tmp_path / "a.parquet")
    rows.save_to_disk(tmp_path / "saved")
    DatasetDict(train=rows, test=rows.select([1])).save_to_disk(tmp_path / "splits")
    arrow = next((tmp_path / "saved").glob("*.arrow"))
    names = ("jsonl", "jsonl.gz", "jsonl.xz", "jsonl.zst", "json", "parquet")
    paths = [*(f"a.{name}" for name in names), "saved", "splits", arrow]
    for path in paths:
        assert rows_of(tmp_path / path) == ROWS
    assert rows_of(tmp_path / "splits", split="test") == ROWS[1:2]
    with pytest.raises(DataError, match="no split 'dev'; it has test, train"):
        rows_of(tmp_path / "splits", split="dev")


def test_a_hub_dataset_takes_its_configuration_and_split_from_the_address(tmp_path, monkeypatch):
    folder = tmp_path / "owner" / "name"
    card = {"configs": [{"config_name": name, "data_files": [
        {"split": split, "path": f"{name}-{split}.parquet"} for split in ("train", "validation")
    ]} for name in ("one", "two")]}  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n", encoding="utf-8")
    for name in ("one-train", "one-validation", "two-train", "two-validation"):
        Dataset.from_list([{"text": name}]).to_parquet(folder / f"{name}.parquet")
    monkeypatch.chdir(tmp_path)  # what is there under its name is taken before the hub is asked
    assert rows_of("hf://owner/name/two?split=validation") == [{"text": "two-validation"}]
    assert rows_of("hf://owner/name/one") == [{"text": "one-train"}]
    assert rows_of("hf://owner/name/one", split="validation") == [{"text": "one-validation"}]
    ((place, _),) = read_rows(SourceConfig(path="hf://owner/name/one"))
    assert place == "hf://owner/name/one: row 1"
    with pytest.raises(ConfigError, match="'config' is not an option of a hub dataset"):
        rows_of("hf://owner/name?config=one")
    with pytest.raises(DataError, match=r"hf://owner/other: not readable as a hub dataset: "):
        rows_of("hf://owner/other")


def arrow_peak(path: Path) -> int:
    """The most bytes that Arrow held at once while all rows of a file were read."""
    pool, default = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        assert all(row["text"] for row in rows_of(path))
    finally:
        pa.set_memory_pool(default)
    return pool.max_memory()


def test_the_memory_for_a_parquet_file_does_not_grow_with_its_row_groups(tmp_path):
    text = "".join(random.Random(0).choices(string.printable, k=20_000))
    peaks = []
    for rows in (1_000, 4_000):
        table = pa.table({"text": [f"{i} {text[i:]}" for i in range(rows)]})
        path = tmp_path / f"{rows}.parquet"
        pq.write_table(table, path, row_group_size=rows, use_dictionary=False)
        peaks.append(arrow_peak(path))
    assert 0 < peaks[1] < 1.5 * peaks[0]


def test_a_folder_is_read_in_sorted_order_and_json_files_in_it_are_left_alone(tmp_path):
    folder = tmp_path / "corpus"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.txt").write_text("B", encoding="utf-8")
    (folder / "a.jsonl").write_text('{"text": "A"}\n', encoding="utf-8")
    (folder / "deep" / "c.txt.xz").write_bytes(lzma.compress(b"C"))
    (folder / "manifest.json").write_text("{}", encoding="utf-8")
    (folder / "README.md").write_text("About the rows.", encoding="utf-8")
    assert rows_of(folder) == [{"text": "A"}, {"text": "B"}, {"text": "C"}]


def test_a_folder_of_markdown_is_a_document_a_file(tmp_path):
    (tmp_path / "a.md").write_text("# One", encoding="utf-8")
    (tmp_path / "b.md.zst").write_bytes(zstd(b"# Two"))
    (tmp_path / "c.txt").write_text("Three", encoding="utf-8")
    assert rows_of(tmp_path) == [{"text": "# One"}, {"text": "# Two"}, {"text": "Three"}]


@pytest.mark.parametrize("separator", ["<|endoftext|>", "\n***\n"])
def test_a_text_file_is_split_at_its_separator_and_blank_pieces_are_no_documents(
    tmp_path, separator
):
    path = tmp_path / "a.txt"
    text = separator.join(["One.\n\nMore.", "Two.", "\n", "Three.", ""])
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert rows_of(path, separator=separator) == [
        {"text": "One.\n\nMore."},
        {"text": "Two."},
        {"text": "Three."},
    ]
    assert rows_of(path) == [{"text": text}]


def test_where_skip_and_limit_apply_in_this_order(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"n": n, "kind": "ab"[n % 2]}) + "\n" for n in range(9)))
    rows = rows_of(path, where={"kind": "a"}, skip=1, limit=2)
    assert [row["n"] for row in rows] == [2, 4]
    assert len(rows_of(path, where={"kind": ["a", "b"]})) == 9


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "a.jsonl: line 2: not JSON"),
        ("a.jsonl", b'{"text": "\xff"}\n', "a.jsonl: line 1: not UTF-8 at byte 10"),
        ("a.txt", b"fine\nbad \xe9\n", "a.txt: line 2: not UTF-8 at byte 4"),
        ("a.txt.xz", b"no xz", "a.txt.xz: damaged or cut short"),
        ("a.md.zst", b"no zstd", "a.md.zst: damaged or cut short"),
        ("a.jsonl.zst", zstd(LINES * 999)[:-9], "a.jsonl.zst: damaged or cut short: Truncated"),
        ("a.parquet", b"no parquet", "a.parquet: not readable as parquet: "),
        ("a.arrow", b"no arrow", "a.arrow: not readable as arrow: "),
        ("a.csv", b"x", "a.csv: not a .jsonl or .json file"),
        ("a.jsonl", None, "a.jsonl: no such file or folder; a hub dataset is written hf://owner/"),
    ],
)
def test_an_unreadable_file_is_named_with_its_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        rows_of(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path}/{message}")
    assert "\n" not in str(error.value)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="has no readable file; add one of these kinds"):
        rows_of(tmp_path)


def test_storyworld_sources_give_the_rows_of_the_storyworld():
    world = load_schema("storyworld://small")
    source = SourceConfig(path="storyworld://small?seed=3", limit=20)
    rows = [row for _, row in read_rows(source, prompted_share=0.5)]
    again = itertools.islice(read_rows(SourceConfig(path="storyworld://small?seed=3"), 0.5), 20)
    assert rows == [row for _, row in again]
    assert world.name == "storyworld"
    assert len(rows_of("storyworld://small/sft?seed=1&count=7&narrow_mass=1.0&cover=false")) == 7


@pytest.mark.parametrize("path", ["storyworld://huge", "storyworld://small?colour=red"])
def test_a_wrong_storyworld_address_is_a_config_error(path):
    with pytest.raises(ConfigError, match=path.replace("?", r"\?")):
        rows_of(path, limit=1)


def test_an_endless_source_needs_a_limit_or_a_budget(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("sources: [{path: 'storyworld://small'}]\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="never ends: set its limit, or a token_budget"):
        load_config(PrepareConfig, path)
    assert load_config(PrepareConfig, path, ["token_budget=1000"]).token_budget == 1000
    assert load_config(PrepareConfig, path, ["sources.0.limit=10"]).sources[0].limit == 10


def test_an_unknown_objective_is_a_config_error_that_lists_the_known_ones(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("sources: [{path: a.jsonl}]\nobjective: sft\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"objective: 'sft': use one of plain, annotated, stand"):
        load_config(PrepareConfig, path)


def test_real_files_are_read_as_they_lie(shared_data: Path):
    stories = rows_of(shared_data / "stories" / "tinystories.txt.xz", separator="<|endoftext|>")
    assert len(stories) > 1500
    assert len(rows_of(shared_data / "instructions" / "alpaca.json.xz", limit=5)) == 5
    source = SourceConfig(path=str(shared_data / "stories" / "stories.jsonl.xz"), limit=1)
    ((_, item),) = read_items(source, uncut)
    assert isinstance(item, Document)
