"""Stand-off annotations: what prepare makes of a corpus and of what lies beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
from rich.console import Console

from anchored.data.corpus_source import CorpusConfig, items
from anchored.data.prepare import NewTokenizer, PrepareConfig, prepare
from anchored.data.readers import SourceConfig
from anchored.data.rows import canonical_row
from anchored.data.standoff import Record, StandOff, open_parts, text_hash, write_shard
from anchored.errors import ConfigError, DataError
from anchored.segments import split_chunks

QUIET = Console(quiet=True)
ENDPOINT = "annotator: endpoint\nmin_chunk_chars: 20\nmax_chunk_chars: 60\n"
ROWS = [
    {
        "id": f"d{i}",
        "text": f"A bear of house {i} went out at noon.\n\nIt met a wolf and they sang.",
    }
    for i in range(6)
] + [{"id": "c", "prompt": "Sing.", "response": "La, said the bear."}]


def tags(value: str) -> tuple[dict[str, str], ...]:
    return ({"key": "topic", "value": value},)


def beside(folder: Path, rows: list[dict[str, Any]], failed: str = "", size: int = 3) -> Path:
    """Annotations that name each text's first words; `failed` is the id whose texts have none."""
    folder.mkdir()
    (folder / "config.yaml").write_text(ENDPOINT)
    records = []
    for number, row in enumerate(rows):
        item = canonical_row(row, "here", lambda text: split_chunks(text, 20, 60))
        for part in open_parts(item):
            error = "no answer" if item.id == failed else None
            found = () if error else tags(part.text[:16])
            records.append(
                Record(number, item.id, part.index, found, error, text_hash(part.text), "k")
            )
    for shard in range(-(-len(rows) // size)):
        write_shard(folder, shard, [one for one in records if one.row // size == shard])
    return folder


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prepared(out: Path, objective: str = "annotated", **source: Any) -> datasets.Dataset:
    config = PrepareConfig(
        out=out,
        sources=(SourceConfig(**source),),
        tokenizer=NewTokenizer(vocab_size=400),
        objective=objective,
        packing=False,
    )
    prepare(config, QUIET)
    return datasets.load_from_disk(str(out))  # pyright: ignore


def annotated(row: dict[str, Any]) -> dict[str, Any]:
    if "response" in row:
        return {**row, "annotation": list(tags(row["response"][:16]))}
    chunks = split_chunks(row["text"], 20, 60)
    return {
        "id": row["id"],
        "chunks": [{"text": text, "annotation": list(tags(text[:16]))} for text in chunks],
    }


def test_prepare_makes_the_same_of_stand_off_and_of_annotated_rows(tmp_path: Path) -> None:
    corpus = written(tmp_path / "in.jsonl", ROWS)
    rows = written(tmp_path / "rows.jsonl", [annotated(row) for row in ROWS])
    apart = prepared(tmp_path / "a", path=corpus, annotations=beside(tmp_path / "s", ROWS))
    inline = prepared(tmp_path / "b", path=rows)
    for column in ("input_ids", "labels", "kinds"):
        assert apart[column][:] == inline[column][:]
    assert (json.loads((tmp_path / "a/manifest.json").read_text())["read"]["annotations"]) == 13


def test_annotations_given_as_a_path_are_told_where_they_belong(tmp_path: Path) -> None:
    folder = beside(tmp_path / "s", ROWS)
    message = rf"^{re.escape(str(folder))}: .* prepare set its `annotations` to this folder$"
    with pytest.raises(DataError, match=message):
        prepared(tmp_path / "a", path=str(folder))
    config = CorpusConfig.model_validate({"source": str(folder), "out": tmp_path / "b"})
    with pytest.raises(DataError, match=message):
        next(items(config))


def test_rows_left_out_of_the_corpus_are_passed_over(tmp_path: Path) -> None:
    corpus = written(tmp_path / "in.jsonl", ROWS)
    folder = beside(tmp_path / "s", ROWS)
    some = prepared(tmp_path / "a", path=corpus, annotations=folder, skip=2, limit=3)
    assert len(some) == 3
    one = prepared(tmp_path / "b", path=corpus, annotations=folder, where={"id": "d5"})
    assert len(one) == 1


def test_a_failed_text_goes_without_and_is_counted(tmp_path: Path) -> None:
    corpus = written(tmp_path / "in.jsonl", ROWS)
    folder = beside(tmp_path / "s", ROWS, failed="d3")
    prepared(tmp_path / "a", path=corpus, annotations=folder)
    read = json.loads((tmp_path / "a/manifest.json").read_text())["read"]
    assert (read["annotations"], read["annotations missing"]) == (11, 2)


def test_a_text_that_changed_is_refused_whatever_bad_rows_are_passed_over(tmp_path: Path) -> None:
    folder = beside(tmp_path / "s", ROWS)
    rows_now = [dict(row) for row in ROWS]
    rows_now[4]["text"] += " Loudly."
    corpus = written(tmp_path / "in.jsonl", rows_now)
    config = PrepareConfig(
        out=tmp_path / "a",
        sources=(SourceConfig(path=corpus, annotations=folder),),
        tokenizer=NewTokenizer(vocab_size=400),
        skip_bad_rows=True,
    )
    with pytest.raises(
        ConfigError, match=r"s: has no further annotations for row 'd4': the corpus"
    ):
        prepare(config, QUIET)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda folder: (folder / "config.yaml").unlink(),
            "not a folder that `anchored annotate` wrote",
        ),
        (
            lambda folder: (folder / "config.yaml").write_text("annotator: offline\n"),
            "use it as the source's path",
        ),
        (lambda folder: (folder / "shard-00001.parquet").unlink(), "shard-00001.parquet: missing"),
        (
            lambda folder: (folder / "shard-00002.parquet").write_bytes(b"PAR1"),
            "shard-00002.parquet: not a shard of annotations",
        ),
    ],
    ids=["no folder", "offline", "missing", "damaged"],
)
def test_a_folder_that_is_none_is_refused_by_name(tmp_path: Path, spoil: Any, message: str) -> None:
    folder = beside(tmp_path / "s", ROWS)
    spoil(folder)
    with pytest.raises(DataError, match=message):
        beside_all = StandOff(folder)
        for row in ROWS:
            beside_all.attach(canonical_row(row, "here", beside_all.split))


def test_shards_load_in_datasets_as_they_are(tmp_path: Path) -> None:
    folder = beside(tmp_path / "s", ROWS)
    files = [str(path) for path in sorted(folder.glob("*.parquet"))]
    rows = datasets.load_dataset("parquet", data_files=files, split="train")
    assert rows[0]["annotation"] == [{"key": "topic", "value": "A bear of house "}]
    assert rows["id"][-1] == "c"


def test_annotations_of_annotations_are_refused(tmp_path: Path) -> None:
    from anchored.config import validated
    from anchored.corpus.offline_run import AnnotateConfig

    source = {"path": "x.jsonl", "annotations": "s"}
    with pytest.raises(ConfigError, match="works only with prepare"):
        validated(AnnotateConfig, {"source": source, "out": "o"}, "here")
