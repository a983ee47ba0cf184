"""`anchored inspect` on what `anchored annotate --annotator endpoint` wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from anchored.annotation import Annotation
from anchored.cli import main
from anchored.data.rows import Conversation
from anchored.errors import DataError
from anchored.inspection.inspect import view_of
from anchored.tags.standoff_join import read_annotated

pytest.importorskip("aiohttp")

from anchored.data.readers import SourceConfig
from fake_server import Answer, Script, Seen, serving

SCENES = ("mill", "ship", "forest")
CHUNK = "In house {} there stood a {} and nobody had been in it before the winter came. "
TURN = "The {} was found by a girl on day {}."


def place(seen: Seen) -> str:
    """The text asked about is the last thing in the message."""
    return re.findall("|".join(SCENES), seen.body["messages"][0]["content"])[-1]


def right(seen: Seen) -> Answer:
    return Answer(f"topic: {place(seen)}\n")


def fails_on_the_mill(seen: Seen) -> Answer:
    return Answer("?" if place(seen) == "mill" else "topic: Ship\n")


def rows() -> list[dict[str, Any]]:
    """12 documents of two chunks each, a turn that has its tags, and 6 that have none."""
    documents = [
        {"text": "\n\n".join(CHUNK.format(f"{n}-{i}", SCENES[n % 3]) * 3 for i in range(2))}
        for n in range(12)
    ]
    own = {"prompt": "Go.", "response": "So.", "annotation": [{"key": "topic", "value": "own"}]}
    turns = [{"prompt": f"Tell {n}.", "response": TURN.format(SCENES[n % 3], n)} for n in range(6)]
    return [*documents, own, *turns]


def annotated(corpus: Path, out: Path, script: Script) -> Path:
    with serving(script) as server:
        endpoint = ["--annotator", "endpoint", "--url", server.url, "--model", "m"]
        main(["annotate", str(corpus), "--out", str(out), *endpoint, "rows_per_shard=5"])
    return out


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    corpus = tmp_path / "in.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    first = annotated(corpus, tmp_path / "a", right)
    return corpus, first, annotated(corpus, tmp_path / "b", fails_on_the_mill)


def test_stand_off_folders_are_inspected_like_rows(
    folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, first, second = folders
    shown = view_of(first).data
    assert shown["annotations"] == 30  # what the folder holds, not what the corpus came with
    assert dict(shown["keys"]["topic"]["top"]) == {"mill": 10, "ship": 10, "forest": 10}
    assert view_of(second).data["annotations"] == 20  # failures are no annotations
    capsys.readouterr()

    options = ["inspect", "--tags", str(first), "--against", str(second), "--json"]
    assert main(options) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["annotations"] == 30 and data["keys"] == shown["keys"]
    assert data["informativeness"]["texts"] == 30
    assert data["prompts"]["rows"] == 6
    assert data["agreement"]["texts"] == 20
    assert data["agreement"]["keys"]["topic"]["exact"] == 0.5  # `ship` and `Ship` are the same
    assert "note" not in data

    corpus.rename(corpus.with_suffix(".away"))
    assert main(options) == 0
    gone = json.loads(capsys.readouterr().out)
    assert (gone["annotations"], gone["keys"]) == (30, shown["keys"])
    assert [gone[name] for name in ("informativeness", "prompts", "agreement")] == [None] * 3
    assert gone["note"].endswith(f"the annotated corpus {corpus} is not there.")
    assert main(options[:-1]) == 0
    assert "What needs the texts is left out" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"its corpus .* is missing"):
        read_annotated(SourceConfig(path=str(first)))


def test_a_corpus_that_changed_is_refused(folders: tuple[Path, Path, Path]) -> None:
    corpus, first, _ = folders
    changed = corpus.read_text(encoding="utf-8").replace("house 4-0", "house 5-0")
    corpus.write_text(changed, encoding="utf-8")
    with pytest.raises(DataError, match=r"line 5.* of its corpus has changed since"):
        list(read_annotated(SourceConfig(path=str(first))))


def test_where_is_about_the_fields_of_the_annotated_corpus(
    folders: tuple[Path, Path, Path],
) -> None:
    (item,) = read_annotated(SourceConfig(path=str(folders[1]), where={"prompt": "Tell 3."}))
    assert item.raw == rows()[16]
    assert isinstance(item, Conversation)
    assert [turn.annotation for turn in item.messages] == [None, Annotation.of({"topic": "mill"})]
