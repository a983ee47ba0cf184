"""Data prepared in shards are those of one stream, and the shards that are done outlive a kill."""

from __future__ import annotations

import io
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


@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        (60, {"token_budget": 10**6}, "token_budget: 1000000 tokens asked for, but the sources"),
        (2, {}, "no row; see the file and its where, skip and limit, or lower shards: 3"),
    ],
)
def test_input_at_fault_is_named_and_nothing_stays_that_was_not_done(
    straight: Path, tmp_path: Path, rows: int, fields: dict[str, Any], message: str
):
    sources = [{"path": "storyworld://small?seed=0", "limit": rows}]
    tokenizer = str(straight / "tokenizer")
    with pytest.raises(DataError, match=message):
        prepare(config(tmp_path / "data", sources=sources, tokenizer=tokenizer, **fields), QUIET)
    assert not (tmp_path / "data").exists()
    assert not list(tmp_path.glob(".data.shards/.*"))
