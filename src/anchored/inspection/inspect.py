"""Show a dataset's tokens with their loss mask, statistics of a corpus's tags, or model facts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text
from safetensors import safe_open

from anchored.annotation import Annotation
from anchored.data.prepare import account_table
from anchored.data.readers import SourceConfig, read_items
from anchored.data.rows import uncut
from anchored.data.standoff import is_stand_off
from anchored.data.store import MANIFEST, load_prepared
from anchored.errors import DataError
from anchored.escape import visible
from anchored.files import read_jsonl
from anchored.formatting import Cells, number, percent, table_of
from anchored.inspection.view import COVERAGE_INTRO, TagTable, View, show, statistics_cells
from anchored.segments import Kind
from anchored.tags.observations import annotations_of
from anchored.tags.standoff_join import stored_annotations
from anchored.tags.statistics import statistics
from anchored.token_view import (
    Span,
    document_title,
    kind_name,
    legend_line,
    loss_account,
    segment_view,
    spans,
)
from anchored.tokenizer import AnchoredTokenizer

RECORD = "anchored.json"


@dataclass(frozen=True)
class Shown:
    """The rows of a prepared dataset to show: `count` rows from `first` on (counted from 0)."""

    first: int = 0
    count: int = 3
    split: str = "train"


def run(
    path: Path, shown: Shown = Shown(), html: Path | None = None, as_json: bool = False
) -> None:
    """Print the view of a prepared dataset, an annotated corpus or a model.

    Args:
        path: folder or file.
        shown: rows of a dataset to show.
        html: file to write the same view to, as a self-contained page.
        as_json: print data instead of the view.

    Raises:
        DataError: `path` cannot be inspected, or is damaged.
    """
    show(view_of(path, shown), html, as_json)


def view_of(path: Path, shown: Shown = Shown()) -> View:
    """Return the view of the dataset, model or corpus at `path`.

    Raises:
        DataError: `path` does not exist, or cannot be inspected.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; give a dataset, a model or rows")
    if (path / "dataset_info.json").is_file() and (path / MANIFEST).is_file():
        return dataset_view(path, shown)
    for model in (path, path / "model"):
        if (model / "config.json").is_file():
            return model_view(model)
    return corpus_view(path)


def dataset_view(path: Path, which: Shown) -> View:
    """Return the view of a prepared dataset: some rows, and the counts in its manifest.

    Raises:
        DataError: the folder does not match its manifest, or has no such row or split.
        TokenizerMismatch: the tokenizer saved with the dataset encodes differently.
    """
    dataset, manifest = load_prepared(path, split=which.split)
    if which.first >= len(dataset):
        raise DataError(
            f"{path}: there is no row {which.first} in the {which.split} split; give a row from 0 "
            f"to {len(dataset) - 1}"
        )
    tokenizer = AnchoredTokenizer.load(path / "tokenizer")
    places = range(which.first, min(which.first + which.count, len(dataset)))
    shown = {place: _columns(dataset[place]) for place in places}
    terminal: list[RenderableType] = [legend_line()]
    for place, row in shown.items():
        view = segment_view(*row, tokenizer, legend=False)
        terminal.append(Group(Rule(f"row {place}"), view))
    documents = {place: spans(*row, tokenizer) for place, row in shown.items()}
    facts = manifest_facts(manifest)
    return View(
        title=f"{path.name}: {manifest['objective']}",
        terminal=[*terminal, account_table(manifest), _facts_table(facts)],
        template="dataset",
        page=_dataset_page(documents, manifest, facts),
        data={"dataset": str(path), "manifest": manifest, "rows": _rows_data(documents.values())},
    )


def _columns(row: Mapping[str, Any]) -> tuple[list[int], list[int], list[int], list[int]]:
    return row["input_ids"], row["labels"], row["kinds"], row["seq_lengths"]


def manifest_facts(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return how a dataset was made, according to its manifest, as plain text."""
    tokenizer = manifest["tokenizer"]
    return {
        "objective": manifest["objective"],
        "schema": _schema_words(manifest.get("schema")),
        "tokenizer": f"{tokenizer['fingerprint']}, {tokenizer['vocab_size']:,} entries",
        "seed": str(manifest["config"].get("seed")),
        "versions": _pairs(manifest["versions"]),
    }


def _schema_words(schema: Mapping[str, Any] | None) -> str:
    if not schema:
        return "none"
    return f"{schema['name']} ({', '.join(key['name'] for key in schema['keys'])})"


def _pairs(mapping: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in mapping.items())


def _facts_table(facts: Mapping[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    for name, value in facts.items():
        table.add_row(name, Text(visible(value)))
    return table


def _rows_data(rows: Iterable[Sequence[Sequence[Span]]]) -> list[list[list[dict[str, Any]]]]:
    return [
        [
            [
                {
                    "kind": span.kind.name.lower(),
                    "supervised": span.supervised,
                    "tokens": span.tokens,
                    "text": span.text,
                }
                for span in document
            ]
            for document in row
        ]
        for row in rows
    ]


def _dataset_page(
    rows: Mapping[int, Sequence[Sequence[Span]]],
    manifest: Mapping[str, Any],
    facts: Mapping[str, str],
) -> dict[str, Any]:
    dropped = {
        f"left out: {reason}": f"{counts['examples']:,} examples, {counts['tokens']:,} tokens"
        for reason, counts in manifest["dropped"].items()
    }
    return {
        "kinds": [(kind.value, kind_name(kind)) for kind in Kind],
        "rows": [
            {
                "place": place,
                "account": loss_account(row),
                "documents": [
                    (document_title(number, row), document)
                    for number, document in enumerate(row, 1)
                ],
            }
            for place, row in rows.items()
        ],
        "account": [_account(name, split) for name, split in manifest["splits"].items()],
        "facts": {**facts, **dropped}.items(),
    }


def _account(name: str, split: Mapping[str, Any]) -> tuple[Cells, list[Cells]]:
    """Return the head and rows of the table of a split's tokens by kind."""
    rows = [
        (_plain(kind), tokens, split["supervised_by_kind"][kind])
        for kind, tokens in split["by_kind"].items()
    ]
    return (
        (f"{name}: {split['rows']:,} rows", "tokens", "with loss", "masked"),
        [
            (kind, f"{tokens:,}", f"{learnt:,}", f"{tokens - learnt:,}")
            for kind, tokens, learnt in [*rows, ("all", split["tokens"], split["supervised"])]
        ],
    )


def model_view(path: Path) -> View:
    """Return the view of a model folder: configuration, tokenizer and training.

    The sizes of the weights are read without loading them.

    Raises:
        DataError: a file of the folder is not JSON.
        TokenizerMismatch: the tokenizer encodes differently from the one used in training.
    """
    facts = {**_architecture(path), **_tokenizer_facts(path), **_training(path)}
    return View(
        title=f"model {path.parent.name if path.name == 'model' else path.name}",
        terminal=[_facts_table(facts)],
        template="model",
        page={"facts": facts.items()},
        data={"model": str(path), **facts},
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from None


def _architecture(path: Path) -> dict[str, str]:
    config = _read(path / "config.json")
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
    shape = {name: f"{config[name]:,}" for name in (*names, "vocab_size") if name in config}
    weights = sorted(path.glob("*.safetensors"))
    return {
        "architecture": ", ".join(config.get("architectures") or [str(config.get("model_type"))]),
        "parameters": f"{sum(map(_parameters, weights)):,} in {_files(weights)}",
        **shape,
        "max_position_embeddings": f"{config.get('max_position_embeddings', 0):,}",
    }


def _files(weights: Sequence[Path]) -> str:
    return "1 safetensors file" if len(weights) == 1 else f"{len(weights)} safetensors files"


def _parameters(weights: Path) -> int:
    with safe_open(weights, "numpy") as file:
        return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def _tokenizer_facts(path: Path) -> dict[str, str]:
    if not (path / "tokenizer.json").is_file():
        return {"tokenizer": "none in this folder"}
    tokenizer = AnchoredTokenizer.load(path)
    stored = _read(path / "tokenizer.json").get("added_tokens", [])
    own = {token["content"] for token in stored}
    added = [token for token in tokenizer.tokens.values() if token not in own]
    control = ", ".join(f"{name} {value}" for name, value in tokenizer.control.named().items())
    note = f" (not in this folder, added on loading: {' '.join(added)})" if added else ""
    return {
        "tokenizer": f"{tokenizer.fingerprint}, {len(tokenizer):,} entries",
        "control tokens": control + note,
    }


def _training(path: Path) -> dict[str, str]:
    record = _read(path / RECORD) if (path / RECORD).is_file() else None
    if record is None:
        return {"training": f"unknown: no {RECORD} in this folder"}
    facts = {
        "objective": record["objective"],
        "annotated": "yes" if record["annotated"] else "no",
        "schema": _schema_words(record.get("schema")),
        "versions": _pairs(record["versions"]),
    }
    return facts | _last_metrics(path.parent / "metrics.jsonl")


def _last_metrics(path: Path) -> dict[str, str]:
    rows = [row for _, row in read_jsonl(path)] if path.is_file() else []
    if not rows:
        return {}
    last = rows[-1]
    by_kind = ", ".join(f"{_plain(k)} {number(v, 3)}" for k, v in last["loss_by_kind"].items())
    return {
        "trained for": f"{last['step']:,} steps, {last['tokens']:,} tokens",
        "last loss": f"{number(last['loss'], 3)} ({by_kind})",
        "speed": f"{last['tokens_per_second']:,.0f} tokens/s, MFU {percent(last['mfu'])}",
    }


def _plain(name: str) -> str:
    return name.replace("_", " ")


def corpus_view(path: Path) -> View:
    """Return the view of annotated rows, in any format that `prepare` reads or stand-off.

    Raises:
        DataError: there are no rows, a row is damaged (file and line are named), or no row has an
            annotation.
    """
    found = statistics(_annotations(path))
    if not found.annotations:
        raise DataError(f"{path}: no row has an annotation; annotate it with `anchored annotate`")
    title = f"{path.name}: {found.annotations:,} annotations"
    head, cells = statistics_cells(found)
    return View(
        title=title,
        terminal=[table_of(title, COVERAGE_INTRO, head, cells)],
        template="tags",
        page={"tables": [TagTable("", COVERAGE_INTRO, head, cells)], "notes": []},
        data={"corpus": str(path), **found.data()},
    )


def _annotations(path: Path) -> Iterator[Annotation]:
    source = SourceConfig(path=str(path))
    if is_stand_off(path):
        return stored_annotations(source)
    return annotations_of(item for _, item in read_items(source, uncut))
