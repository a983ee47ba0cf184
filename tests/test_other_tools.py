"""What `anchored annotate` writes, other tools load as it is: datasets, polars, DuckDB."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import duckdb
import polars as pl
import pytest
from rich.console import Console

from anchored.corpus.offline_run import AnnotateConfig, run
from anchored.files import read_jsonl

TALE = "One night Mara went to the forest. There Mara found a lost ring, and was glad of it."
SHORT = "Zzz."  # nothing but sentiment and style can be read off it
ROWS = 300  # more than polars looks at by itself
KINDS: dict[str, Any] = {
    "documents": lambda text: {"chunks": [{"text": text}]},
    "conversations": lambda text: {"prompt": "A tale.", "response": text},
    "messages": lambda text: {
        "messages": [
            {"role": "user", "content": "A tale."},
            {"role": "assistant", "content": text},
        ]
    },
}


def annotate(folder: Path, kind: str, schema: str = "general") -> Path:
    texts = [SHORT] * (ROWS - 50) + [TALE] * 50
    rows = [json.dumps({"id": str(i), **KINDS[kind](text)}) for i, text in enumerate(texts)]
    source = folder / "in.jsonl"
    source.write_text("\n".join(rows), encoding="utf-8")
    fields = {"source": str(source), "out": folder / "out", "schema_name": schema, "workers": 1}
    config = AnnotateConfig.model_validate({**fields, "rows_per_shard": 100})
    run(config, Console(quiet=True))
    return folder / "out"


@pytest.fixture(scope="module", params=KINDS)
def annotated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return annotate(tmp_path_factory.mktemp("annotated"), request.param)


def written(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("shard-*")) for _, row in read_jsonl(path)]


def test_datasets_loads_the_shards(annotated: Path):
    files = str(annotated / "shard-*.jsonl")
    rows = datasets.load_dataset("json", data_files=files, split="train").to_list()  # pyright: ignore
    assert list(map(without_none, rows)) == list(map(without_none, written(annotated)))
    assert {"key": "entity", "value": "Mara"} in tags(rows[-1])


def test_polars_loads_the_shards(annotated: Path):
    rows = pl.scan_ndjson(annotated / "shard-*.jsonl", infer_schema_length=None).collect()
    assert list(map(without_none, rows.to_dicts())) == list(map(without_none, written(annotated)))


def test_duckdb_loads_the_shards(annotated: Path):
    found = duckdb.sql(f"select * from '{annotated}/shard-*.jsonl' order by id::int")
    rows = [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]
    texts = [{**row, "id": str(row["id"])} for row in rows]
    assert list(map(without_none, texts)) == list(map(without_none, written(annotated)))


def test_shards_whose_first_annotations_are_all_empty_load_with_the_type_given(tmp_path: Path):
    schema = tmp_path / "schema.yaml"
    schema.write_text("name: few\nkeys: [{name: entity, description: who}]\n", encoding="utf-8")
    out = annotate(tmp_path, "conversations", str(schema))
    expected = written(out)
    assert expected[0]["annotation"] == []
    tag = pl.List(pl.Struct({"key": pl.String, "value": pl.String}))
    shards = pl.scan_ndjson(out / "shard-*.jsonl", schema_overrides={"annotation": tag})
    assert shards.collect().to_dicts() == expected
    text = datasets.Value("string")
    features = datasets.Features(
        dict.fromkeys(("id", "prompt", "response"), text)
        | {"annotation": [{"key": text, "value": text}]}
    )
    files = str(out / "shard-*.jsonl")
    loaded = datasets.load_dataset("json", data_files=files, features=features, split="train")
    assert loaded.to_list() == expected  # pyright: ignore
    assert duckdb.sql(f"select annotation[1].value from '{files}'").fetchall()[-1] == ("Mara",)


def tags(row: dict[str, Any]) -> list[dict[str, str]]:
    parts = row.get("chunks") or row.get("messages") or [row]
    return [tag for part in parts for tag in part.get("annotation") or []]


def without_none(data: Any) -> Any:
    """A table gives every row all columns; what a row does not have is None there."""
    if isinstance(data, dict):
        return {key: without_none(value) for key, value in data.items() if value is not None}
    return [without_none(item) for item in data] if isinstance(data, list) else data
