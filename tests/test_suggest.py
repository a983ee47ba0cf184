"""`anchored schema suggest`: the verdict of each key, and a schema that loads."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from anchored.annotation import Annotation, Schema
from anchored.cli import main
from anchored.errors import DataError
from anchored.tags.suggest import SuggestConfig, run, suggest

QUIET = Console(quiet=True)
PLACES = ("forest", "castle", "kitchen", "village", "garden")
NAMES = ("Mara", "Tobin", "Ilse", "Ravi")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def plan(rng: random.Random, number: int, place: str) -> Annotation:
    pairs = [
        ("place", place),
        ("hero", rng.choice(NAMES)),
        ("kind", "tale"),
        ("serial", f"no {number}"),
        *([("weather", "rain")] if number % 40 == 0 else []),
        *([("thing", rng.choice("ab"))] if number % 2 else []),
        ("thing", rng.choice(["ring", "rope"])),
    ]
    return Annotation.of(pairs)


def tagged(path: Path, prompted: bool = False) -> Path:
    rng, rows = random.Random(0), []
    for n in range(300):
        place = rng.choice(PLACES)
        text = f"Once in the {place} somebody slept for {n} days."
        row: dict[str, Any] = {"annotation": plan(rng, n, place).rows()}
        asked = {"prompt": f"A tale of the {place}.", "response": text}
        row |= asked if prompted else {"text": text}
        rows.append(row)
    return write(path, rows)


def config(corpus: Path, sft: Path | None = None) -> SuggestConfig:
    other = sft and {"path": str(sft)}
    return SuggestConfig.model_validate({"corpus": {"path": str(corpus)}, "sft": other})


def test_each_key_gets_the_verdict_that_its_figures_give(tmp_path: Path):
    alone = suggest(config(tagged(tmp_path / "a.jsonl")))
    assert {one.key.name: one.verdict for one in alone.candidates} == {
        "place": "keep",
        "hero": "keep",
        "kind": "constant",
        "serial": "near-unique",
        "weather": "rare",
        "thing": "keep",
    }
    assert alone.candidates[0].prompt is None
    sft = suggest(config(tmp_path / "a.jsonl", tagged(tmp_path / "b.jsonl", prompted=True)))
    verdicts = {one.key.name: one.verdict for one in sft.candidates}
    assert (verdicts["place"], verdicts["hero"]) == ("decided by the prompt", "keep")


def test_the_schema_written_loads_and_says_why_the_other_keys_are_out(tmp_path: Path):
    out = tmp_path / "mine.yaml"
    found = run(config(tagged(tmp_path / "a.jsonl")), out, QUIET)
    schema = Schema.load(out)
    assert schema == found.schema
    assert schema.names == ("place", "hero", "thing")
    assert set(schema.keys[1].values or ()) == set(NAMES)
    assert [key.many for key in schema.keys] == [False, False, True]
    assert "# kind: constant (coverage 100%, entropy 0.00, distinct 1, " in out.read_text()
    assert all(schema.conform(Annotation.of({"hero": name})) for name in NAMES)


def test_rows_without_tags_are_read_by_the_offline_annotator(tmp_path: Path, capsys):
    rng, rows = random.Random(0), []
    for n in range(120):
        name, place = rng.choice(NAMES), rng.choice(PLACES)
        text = f"One night {name} went to the {place}. In the {place} {name} found {n} lost rings."
        rows.append({"prompt": f"A tale of {name}, please.", "response": text})
    path, out = write(tmp_path / "a.jsonl", rows), tmp_path / "mine.yaml"
    command = ["schema", "suggest", str(path), "--sft", str(path), "--out", str(out), "--json"]
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out)
    verdicts = {key: one["verdict"] for key, one in told["keys"].items()}
    assert verdicts["location"] == "keep"
    assert (verdicts["time"], verdicts["language"]) == ("constant", "constant")
    assert verdicts["entity"] == "decided by the prompt"
    general = Schema.load("general")
    assert all(key == general.key(key.name) for key in Schema.load(out).keys)


def test_no_key_worth_keeping_writes_nothing(tmp_path: Path):
    tags = [{"key": "kind", "value": "tale"}]
    rows = [{"text": f"Text {n}.", "annotation": tags} for n in range(9)]
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match="no key is worth keeping"):
        run(config(path), tmp_path / "mine.yaml", QUIET)
    assert not (tmp_path / "mine.yaml").exists()
    with pytest.raises(DataError, match="fewer than two prompts with a response"):
        suggest(config(path, path))
    with pytest.raises(DataError, match="no text"):
        suggest(config(write(tmp_path / "b.jsonl", [])))
