"""The table of annotators: what the configuration and the run read from it, and its page."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from anchored.annotation import Annotation, Schema
from anchored.annotators.table import ANNOTATORS, AnnotatorEntry, Setup, find_annotator, usages
from anchored.corpus.offline_run import AnnotateConfig, run
from conftest import ROOT


@dataclass
class Constant:
    """Gives every text the same location."""

    schema: Schema
    value: str
    name: str = "constant-1"
    calibration: None = None
    unread: tuple[str, ...] = ()

    def annotate_batch(self, texts: Sequence[str]) -> list[Annotation]:
        return [Annotation.of({"location": self.value})] * len(texts)

    def again(self) -> partial[Constant]:
        return partial(Constant, self.schema, self.value)


def constant(setup: Setup) -> Constant:
    return Constant(setup.schema, setup.argument)


def test_a_new_entry_annotates_and_is_named_in_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ANNOTATORS, "constant", AnnotatorEntry("one value", constant, "VALUE"))
    (tmp_path / "in.jsonl").write_text('{"text": "It rained."}\n', encoding="utf-8")
    fields = {"source": str(tmp_path / "in.jsonl"), "out": tmp_path / "out", "workers": 1}
    config = AnnotateConfig.model_validate(fields | {"annotator": "constant:at sea: far"})
    manifest = run(config, Console(quiet=True))
    assert (manifest["annotator"], manifest["calibration"]) == ("constant-1", None)
    row = json.loads((tmp_path / "out" / "shard-00000.jsonl").read_bytes())
    assert row["chunks"][0]["annotation"] == [{"key": "location", "value": "at sea: far"}]
    assert usages()[-1] == "constant:VALUE"
    with pytest.raises(ValueError, match=r" or constant:VALUE$"):
        find_annotator("constant")


def wrongly_named() -> list[str]:
    """Every name with an argument too many, or with the one that it needs missing or empty."""
    return [
        name + end
        for name, entry in ANNOTATORS.items()
        for end in (("", ":") if entry.argument else (":", ":x"))
    ]


@pytest.mark.parametrize("named", ["offlime", *wrongly_named()])
def test_what_is_not_in_the_table_is_refused(named: str) -> None:
    with pytest.raises(ValueError) as error:
        find_annotator(named)
    assert str(error.value) == f"use {' or '.join(usages())}"


def test_the_documentation_has_the_table() -> None:
    page = (ROOT / "docs" / "annotators.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\S+)` \| (.*) \|$", page, re.MULTILINE)
    here = [
        (usage, entry.description)
        for usage, entry in zip(usages(), ANNOTATORS.values(), strict=True)
    ]
    assert rows[1:-1] == here  # between the heading and `endpoint`
