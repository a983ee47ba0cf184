"""`anchored annotate`: rows in, annotated rows out; killed and resumed; refusals."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from anchored.annotation import Annotation, Schema
from anchored.annotators.offline import OfflineAnnotator
from anchored.corpus import offline_run as module
from anchored.corpus.offline_run import AnnotateConfig, run
from anchored.data.rows import canonical_row
from anchored.errors import ConfigError, DataError
from anchored.tags.observations import annotations_of
from anchored.tags.statistics import TagStatistics, statistics

QUIET = Console(quiet=True)
NAMES = ("Mara", "Tobin", "Ilse", "Ravi")
PLACES = ("forest", "castle", "kitchen")
TEXT = (
    "One night {name} went to the {place}. There {name} found a lost ring, and was glad of it.\n\n"
)


def documents(count: int = 23) -> list[dict[str, Any]]:
    return [
        {
            "id": f"d{i}",
            "kind": "tale",
            "text": "".join(
                TEXT.format(name=NAMES[(i + j) % 4], place=PLACES[(i * j) % 3]) for j in range(4)
            ).strip(),
        }
        for i in range(count)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def config(source: Path, out: Path, **changes: Any) -> AnnotateConfig:
    fields = {"source": str(source), "out": out, "rows_per_shard": 4, "workers": 1, **changes}
    return AnnotateConfig.model_validate(fields)


def output(out: Path) -> list[dict[str, Any]]:
    lines = [line for path in sorted(out.glob("shard-*")) for line in path.open(encoding="utf-8")]
    return list(map(json.loads, lines))


def statistics_of(rows: list[dict[str, Any]]) -> TagStatistics:
    return statistics(annotations_of(canonical_row(row, "here") for row in rows))


def files(out: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(out.rglob("*")):
        text = path.read_bytes()
        if path.name == "config.yaml":
            text = json.dumps(yaml.safe_load(text) | {"out": None}).encode()
        if path.name == "manifest.json":  # a commit between two runs changes the code's version
            text = json.dumps(json.loads(text) | {"versions": None}).encode()
        yield path.name, text


def test_documents_keep_fields_and_text_and_get_chunks(tmp_path: Path):
    rows = documents()
    run(config(write(tmp_path / "in.jsonl", rows), tmp_path / "out"), QUIET)
    found = output(tmp_path / "out")
    assert [(row["id"], row["kind"]) for row in found] == [(row["id"], "tale") for row in rows]
    assert ["".join(chunk["text"] for chunk in row["chunks"]) for row in found] == [
        row["text"] for row in rows
    ]
    assert all("text" not in row and "annotation" not in row for row in found)
    tags = Annotation.from_rows(found[0]["chunks"][0]["annotation"])
    assert tags.values("time") == ("night",)
    assert set(tags.values("entity")) <= set(NAMES)


def test_a_document_behind_a_prompt_is_annotated_as_a_whole_too(tmp_path: Path):
    row = {**documents(1)[0], "prompt": "Tell me a tale."}
    run(config(write(tmp_path / "in.jsonl", [row, *documents()]), tmp_path / "out"), QUIET)
    annotator = OfflineAnnotator.load(Schema.load("general"), tmp_path / "out" / module.CALIBRATION)
    found = output(tmp_path / "out")[0]
    assert found["prompt"] == "Tell me a tale."
    assert found["annotation"] == annotator.annotate_batch([row["text"]])[0].rows()


def test_every_conversation_format_gets_the_annotation_of_its_response(tmp_path: Path):
    answer = TEXT.format(name="Mara", place="forest").strip()
    turns = [("user", "hi"), ("assistant", "hello"), ("user", "a tale"), ("assistant", answer)]
    rows = [
        {"prompt": "a tale", "response": answer},
        {"instruction": "a tale", "input": "", "output": answer},
        {"messages": [{"role": role, "content": content} for role, content in turns]},
    ]
    run(config(write(tmp_path / "in.jsonl", rows), tmp_path / "out"), QUIET)
    plain, alpaca, messages = output(tmp_path / "out")
    assert plain["response"] == alpaca["output"] == answer
    assert Annotation.from_rows(plain["annotation"]).values("entity") == ("Mara",)
    assert alpaca["annotation"] == plain["annotation"]
    assert messages["messages"][3]["annotation"] == plain["annotation"]
    assert "annotation" in messages["messages"][1]
    assert "annotation" not in messages["messages"][0] | messages["messages"][2]


def test_annotations_that_are_there_already_stay(tmp_path: Path):
    mine = [{"key": "topic", "value": "mine"}]
    for given in (mine, []):
        chunks = [{"text": "One day.", "annotation": given}, {"text": "It rained."}]
        rows = [
            {"id": "a", "prompt": "a", "chunks": chunks, "annotation": given},
            {"id": "b", "prompt": "a", "response": "It rained.", "annotation": given},
        ]
        out = tmp_path / f"out{len(given)}"
        run(config(write(tmp_path / "in.jsonl", rows), out), QUIET)
        document, conversation = output(out)
        assert document["chunks"][0]["annotation"] == given
        assert document["annotation"] == conversation["annotation"] == given
        assert document["chunks"][1]["annotation"] not in (mine, [])


def test_the_manifest_counts_what_was_written(tmp_path: Path):
    manifest = run(config(write(tmp_path / "in.jsonl", documents()), tmp_path / "out"), QUIET)
    assert json.loads((tmp_path / "out" / module.MANIFEST).read_text()) == manifest
    assert (manifest["rows"], manifest["shards"], manifest["skipped_rows"]) == (23, 6, 0)
    rows = output(tmp_path / "out")
    assert manifest["chunks"] == sum(len(row["chunks"]) for row in rows)
    assert manifest["characters"] == sum(len(row["text"]) for row in documents())
    assert manifest["tags"] == statistics_of(rows).data()
    assert manifest["annotator"].startswith("offline-1 (")


def test_one_process_or_two_write_the_same(tmp_path: Path):
    source = write(tmp_path / "in.jsonl", documents())
    for workers in (1, 2):
        run(config(source, tmp_path / str(workers), workers=workers), QUIET)
        (tmp_path / str(workers) / "config.yaml").unlink()  # it says how many
    assert list(files(tmp_path / "1")) == list(files(tmp_path / "2"))


DIE_IN_THE_THIRD_SHARD = """
import os, signal, sys
from anchored.corpus import offline_run as module

from anchored import files

whole = files.atomic_write

def write_or_die(path, text):
    if path.name == "shard-00002.jsonl":
        path.with_name(f".{path.name}.{os.getpid()}.partial").write_text(text[: len(text) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    whole(path, text)

files.atomic_write = write_or_die
module.run(module.AnnotateConfig.model_validate_json(sys.argv[1]))
"""


def test_killed_and_resumed_equals_a_straight_run(tmp_path: Path):
    source = write(tmp_path / "in.jsonl", documents())
    run(config(source, tmp_path / "straight"), QUIET)
    settings = config(source, tmp_path / "killed")
    command = [sys.executable, "-c", DIE_IN_THE_THIRD_SHARD, settings.model_dump_json()]
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
    names = {path.name for path in settings.out.iterdir() if "shard-" in path.name}
    assert {"shard-00000.jsonl", "shard-00001.jsonl"} < names
    assert [name.endswith(".partial") for name in sorted(names)] == [True, False, False]
    assert not (settings.out / module.MANIFEST).exists()
    run(settings, QUIET)
    assert list(files(settings.out)) == list(files(tmp_path / "straight"))


def test_a_finished_run_writes_no_shard_again(tmp_path: Path):
    settings = config(write(tmp_path / "in.jsonl", documents()), tmp_path / "out")
    first = run(settings, QUIET)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("shard-*")}
    assert run(settings, QUIET) == first
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("shard-*")}


def test_a_named_calibration_is_used_as_it_is(tmp_path: Path):
    corpus = write(tmp_path / "corpus.jsonl", documents())
    run(config(corpus, tmp_path / "corpus"), QUIET)
    calibration = tmp_path / "corpus" / module.CALIBRATION
    other = write(tmp_path / "sft.jsonl", [{"prompt": "a", "response": "A tale of a wolf."}])
    run(config(other, tmp_path / "sft", calibration=calibration), QUIET)
    assert (tmp_path / "sft" / module.CALIBRATION).read_bytes() == calibration.read_bytes()


def test_an_output_of_another_run_is_refused(tmp_path: Path):
    source = write(tmp_path / "in.jsonl", documents())
    run(config(source, tmp_path / "out"), QUIET)
    before = list(files(tmp_path / "out"))
    with pytest.raises(ConfigError, match="rows_per_shard = 4, this one has 5"):
        run(config(source, tmp_path / "out", rows_per_shard=5), QUIET)
    assert list(files(tmp_path / "out")) == before


def test_a_source_that_changed_is_refused(tmp_path: Path):
    source = write(tmp_path / "in.jsonl", documents())
    run(config(source, tmp_path / "out"), QUIET)
    write(source, documents(22))
    with pytest.raises(DataError, match="the source has changed since this run began"):
        run(config(source, tmp_path / "out"), QUIET)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', "line 24: not JSON"),
        ('{"id": "x", "text": " "}', "line 24: text: ' ' is empty"),
        ('{"id": "x"}', "line 24: has the fields id"),
    ],
)
def test_a_bad_row_is_named_before_anything_is_written(tmp_path: Path, line: str, message: str):
    source = write(tmp_path / "in.jsonl", documents())
    source.write_text(source.read_text() + line + "\n")
    with pytest.raises(DataError, match=message):
        run(config(source, tmp_path / "out"), QUIET)
    assert not (tmp_path / "out").exists()


def test_bad_rows_are_counted_where_that_is_asked_for(tmp_path: Path):
    source = write(tmp_path / "in.jsonl", [{"id": "x", "text": " "}, *documents()])
    manifest = run(config(source, tmp_path / "out", skip_bad_rows=True), QUIET)
    assert (manifest["rows"], manifest["skipped_rows"]) == (23, 1)


def test_a_missing_source_and_an_empty_one_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="no such file"):
        run(config(tmp_path / "none.jsonl", tmp_path / "out"), QUIET)
    with pytest.raises(DataError, match="no row to annotate"):
        run(config(write(tmp_path / "in.jsonl", []), tmp_path / "out"), QUIET)
    assert not (tmp_path / "out").exists()


def test_statistics_of_rows_of_every_format():
    def tags(*values: str) -> list[dict[str, str]]:
        return [{"key": "topic", "value": value} for value in values]

    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "annotation": tags("sea")},
    ]
    chunks = [{"text": "t", "annotation": tags("war")}, {"text": "u", "annotation": []}]
    rows = [
        {"chunks": chunks, "annotation": tags("x")},
        {"prompt": "p", "response": "r", "annotation": tags("war", "sea")},
        {"messages": turns},
        {"text": "plain"},
    ]
    assert statistics_of(rows).data() == {
        "annotations": 4,
        "keys": {
            "topic": {
                "coverage": 0.75,
                "entropy": 0.6931,
                "miller_madow": 0.8181,
                "distinct": 2,
                "once": 0,
                "top": [["sea", 2], ["war", 2]],
                "tail": [],
            }
        },
    }
    assert statistics_of([]).data() == {"annotations": 0, "keys": {}}


def test_turns_are_counted_where_the_row_annotates_the_last_of_them_too():
    def tags(value: str) -> list[dict[str, str]]:
        return [{"key": "topic", "value": value}]

    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "annotation": tags("sea")},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "b", "annotation": tags("war")},
    ]
    found = statistics_of([{"messages": turns, "annotation": tags("own")}])
    assert found.annotations == 2
    assert found.keys["topic"].top == (("own", 1), ("sea", 1))
