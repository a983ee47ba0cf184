"""Data prepared in shards are those of one stream, and the shards that are done outlive a kill."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from anchored.data.prepare import PrepareConfig, load_prepared, prepare
from anchored.errors import ConfigError, DataError

QUIET = Console(quiet=True)
DIES_AFTER_A_SHARD = """
import os, signal, sys
from anchored.data import prepare as module

whole = module.as_completed

def dying(running):
    for future in whole(running):
        os.kill(os.getpid(), signal.SIGKILL)
        yield future

module.as_completed = dying
module.prepare(module.PrepareConfig.model_validate_json(sys.argv[1]))
"""


def config(out: Path, **fields: Any) -> PrepareConfig:
    given = {
        "out": out,
        "sources": [{"path": "storyworld://small?seed=0", "limit": 60}],
        "tokenizer": {"vocab_size": 400},
        "max_length": 192,
        "shards": 3,
    }
    return PrepareConfig.model_validate({**given, **fields})


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(config(tmp_path_factory.mktemp("straight") / "data", seed=1), QUIET)


def sequences(folder: Path) -> list[tuple[list[int], list[int]]]:
    found = []
    for row in load_prepared(folder)[0]:
        start = 0
        for length in row["seq_lengths"]:
            part = slice(start, start + length)
            found.append((row["input_ids"][part], row["labels"][part]))
            start += length
    return sorted(found)


def test_shards_hold_the_sequences_of_one_stream_each_once(straight: Path, tmp_path: Path):
    tokenizer = str(straight / "tokenizer")
    one = prepare(config(tmp_path / "one", shards=1, seed=1, tokenizer=tokenizer), QUIET)
    assert sequences(straight) == sequences(one)
    (_, ours), (_, theirs) = load_prepared(straight), load_prepared(one)
    assert len(ours["splits"]["train"]["files"]) == 3
    assert ours["read"] == theirs["read"]
    assert ours["tokens"] == theirs["tokens"]
    for name in ("sequences", "supervised", "by_kind", "supervised_by_kind", "longest_row"):
        assert ours["splits"]["train"][name] == theirs["splits"]["train"][name]
    assert [path.name for path in straight.parent.iterdir()] == ["data"]


def test_a_budget_and_a_validation_split_are_divided(straight: Path, tmp_path: Path):
    fields = {"token_budget": 3001, "validation_share": 0.3, "packing": False}
    out = prepare(config(tmp_path / "data", tokenizer=str(straight / "tokenizer"), **fields), QUIET)
    rows, manifest = load_prepared(out)
    assert 3001 - 3 * 192 < sum(map(len, rows["input_ids"])) <= 3001
    held, _ = load_prepared(out, split="validation")
    assert len(held) == manifest["splits"]["validation"]["rows"] > 0


def test_killed_and_started_again_it_prepares_what_is_left(straight: Path, tmp_path: Path):
    killed = config(tmp_path / "data", seed=1)
    command = [sys.executable, "-c", DIES_AFTER_A_SHARD, killed.model_dump_json()]
    died = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert died.returncode == -signal.SIGKILL, died.stderr
    staging = tmp_path / ".data.shards"
    done = [path for path in staging.iterdir() if path.name.startswith("shard-")]
    assert done and not (tmp_path / "data").exists()
    with pytest.raises(ConfigError, match="holds a run with seed = 1, this one has 2"):
        prepare(config(tmp_path / "data", seed=2), QUIET)
    said = io.StringIO()
    out = prepare(killed, Console(file=said, width=200))
    assert f"{3 - len(done)} of 3 shards to prepare" in said.getvalue() or len(done) == 3
    (ours, account), (theirs, expected) = load_prepared(out), load_prepared(straight)
    assert ours.to_dict() == theirs.to_dict()
    assert account["splits"] == expected["splits"]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_more_shards_than_rows_leave_some_empty(straight: Path, tmp_path: Path):
    fields = {"tokenizer": str(straight / "tokenizer"), "shards": 3, "packing": False}
    sources = [{"path": "storyworld://small?seed=0", "limit": 2}]
    out = prepare(config(tmp_path / "data", sources=sources, **fields), QUIET)
    rows, manifest = load_prepared(out)
    assert len(rows) == manifest["splits"]["train"]["rows"] >= 2
    assert len(manifest["splits"]["train"]["files"]) == 2


def test_a_budget_beyond_the_corpus_is_refused_and_what_is_done_can_be_used(
    straight: Path, tmp_path: Path
):
    fields = {"tokenizer": str(straight / "tokenizer"), "token_budget": 10**6}
    refused = "1000000 tokens asked for, but the sources end .* or use fewer shards"
    with pytest.raises(DataError, match=refused):
        prepare(config(tmp_path / "data", **fields), QUIET)
    assert not (tmp_path / "data").exists()
    kept = tmp_path / ".data.shards"
    with pytest.raises(ConfigError, match=f"token_budget = 1000000.*; or remove {kept} to start"):
        prepare(config(tmp_path / "data", **{**fields, "token_budget": 1000}), QUIET)
    assert len(list(kept.glob("shard-*"))) == 3
    shutil.rmtree(kept)
    prepare(config(tmp_path / "data", **{**fields, "token_budget": 1000}), QUIET)


def test_shards_of_a_corpus_that_changed_are_not_mixed(straight: Path, tmp_path: Path):
    rows = [{"id": str(n), "text": f"Once there was a {n}."} for n in range(6)]
    corpus = tmp_path / "rows.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"tokenizer": str(straight / "tokenizer"), "objective": "plain"}
    fields |= {"sources": [{"path": str(corpus)}], "token_budget": 10**6}
    with pytest.raises(DataError, match="token_budget"):  # with all shards done
        prepare(config(tmp_path / "data", **fields), QUIET)
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    with pytest.raises(ConfigError, match=f"^{corpus}: changed since shards were made of it"):
        prepare(config(tmp_path / "data", **fields), QUIET)


def test_what_a_kill_left_beside_finished_data_is_taken_away(straight: Path, tmp_path: Path):
    out = tmp_path / "data"
    prepare(config(out, tokenizer=str(straight / "tokenizer")), QUIET)
    (tmp_path / ".data.shards" / "shard-00000").mkdir(parents=True)
    with pytest.raises(DataError, match="already exists"):
        prepare(config(out, tokenizer=str(straight / "tokenizer")), QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
