"""`anchored inspect`: a dataset's tokens with their mask, a corpus's tags, a model's facts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

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
from anchored.escape import escape, visible
from anchored.files import read_jsonl
from anchored.inspection.view import (
    COVERAGE_INTRO,
    View,
    show,
    statistics_cells,
    table_html,
    table_of,
)
from anchored.report.page import definitions
from anchored.report.tables import number, percent
from anchored.segments import NO_LOSS, Kind
from anchored.tags.observations import annotations_of
from anchored.tags.standoff_join import stored_annotations
from anchored.tags.statistics import statistics
from anchored.tokenizer import AnchoredTokenizer

RECORD = "anchored.json"
_BRACKETS = ("⟦", "⟧")
COLOURS = {
    Kind.CONTROL: "magenta",
    Kind.PROMPT: "cyan",
    Kind.TAG_KEY: "yellow",
    Kind.TAG_VALUE: "green",
    Kind.TEXT: "default",
}


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring tokens of one kind, with or without loss alike; a control token is alone."""

    text: str
    kind: Kind
    supervised: bool
    tokens: int


@dataclass(frozen=True)
class Shown:
    """Which rows of a prepared dataset: `count` of them from `first` on (counted from 0)."""

    first: int = 0
    count: int = 3
    split: str = "train"


def run(
    path: Path, shown: Shown = Shown(), html: Path | None = None, as_json: bool = False
) -> None:
    """Print the view of a prepared dataset, an annotated corpus or a model.

    Args:
        path: folder or file.
        shown: rows of a dataset.
        html: file to write the same view to as well, self-contained.
        as_json: print data instead of the view.

    Raises:
        DataError: there is nothing at `path` that can be inspected, or it is damaged.
    """
    show(view_of(path, shown), html, as_json)


def view_of(path: Path, shown: Shown = Shown()) -> View:
    """The view of whatever lies at `path`.

    Raises:
        DataError: nothing there, or nothing that can be inspected.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if (path / "dataset_info.json").is_file() and (path / MANIFEST).is_file():
        return dataset_view(path, shown)
    for model in (path, path / "model"):
        if (model / "config.json").is_file():
            return model_view(model)
    return corpus_view(path)


def spans(
    input_ids: Sequence[int],
    labels: Sequence[int],
    kinds: Sequence[int],
    seq_lengths: Sequence[int],
    tokenizer: AnchoredTokenizer,
) -> list[list[Span]]:
    """One row of a prepared dataset as text: the spans of each document packed into it.

    Raises:
        DataError: the columns differ in length, or `seq_lengths` does not add up to it.
    """
    total = sum(map(int, seq_lengths))
    if {len(input_ids), len(labels), len(kinds)} != {total}:
        raise DataError(
            f"row: {len(input_ids)} input_ids, {len(labels)} labels, {len(kinds)} kinds, and "
            f"seq_lengths adds up to {total}; prepare the data again"
        )
    tokens = [
        _Token(int(token), Kind(int(kind)), int(label) != NO_LOSS)
        for token, label, kind in zip(input_ids, labels, kinds, strict=True)
    ]
    edges = [0, *accumulate(map(int, seq_lengths))]
    return [list(_document_spans(tokens[a:b], tokenizer)) for a, b in pairwise(edges)]


class _Token(NamedTuple):
    token: int
    kind: Kind
    supervised: bool


def _document_spans(tokens: Sequence[_Token], tokenizer: AnchoredTokenizer) -> Iterator[Span]:
    for (kind, supervised, place), group in groupby(enumerate(tokens), key=_span_key):
        ids = [token.token for _, token in group]
        if kind is Kind.CONTROL:
            text = f"‹{_control_name(ids[0], place == 0, tokenizer)}›"
        else:
            text = visible(tokenizer.decode(ids))
        yield Span(text, kind, supervised, len(ids))


def _span_key(placed: tuple[int, _Token]) -> tuple[Kind, bool, int]:
    place, (_, kind, supervised) = placed
    return kind, supervised, place if kind is Kind.CONTROL else -1


def _control_name(token: int, is_first: bool, tokenizer: AnchoredTokenizer) -> str:
    """bos, eos and pad may share an id: the first of a document is bos, any other eos.

    What a chat template puts beside ours goes by its spelling.
    """
    control = tokenizer.control
    if token == control.bos and is_first:
        return "bos"
    if token == control.eos:
        return "eos"
    names = {number: name for name, number in reversed(control.named().items())}
    return names.get(token) or str(tokenizer.hf.convert_ids_to_tokens(token))


def segment_view(
    input_ids: Sequence[int],
    labels: Sequence[int],
    kinds: Sequence[int],
    seq_lengths: Sequence[int],
    tokenizer: AnchoredTokenizer,
    legend: bool = True,
) -> Text:
    """One row in colour: a hue a kind, underlined with loss, dim without; documents apart.

    Raises:
        DataError: see `spans`.
    """
    documents = spans(input_ids, labels, kinds, seq_lengths, tokenizer)
    view = Text()
    for place, document in enumerate(documents, 1):
        view.append(f"{_document_title(place, documents)}\n", style="dim italic")
        view.append_text(_document_text(document)).append("\n")
    view.append(loss_account(documents), style="italic")
    return Text.assemble(_legend(), "\n", view) if legend else view


def _document_text(document: Sequence[Span]) -> Text:
    """Stretches with loss stand in brackets too: colours are lost in a log file."""
    text = Text()
    for supervised, stretch in groupby(document, key=lambda span: span.supervised):
        opening, closing = _BRACKETS if supervised else ("", "")
        text.append(opening, style="bold")
        for span in stretch:
            text.append(span.text, style=_style(span.kind, supervised))
        text.append(closing, style="bold")
    return text


def _document_title(place: int, documents: Sequence[Sequence[Span]]) -> str:
    spans_here = documents[place - 1]
    tokens = sum(span.tokens for span in spans_here)
    learnt = sum(span.tokens for span in spans_here if span.supervised)
    return f"document {place} of {len(documents)}: {tokens:,} tokens, {learnt:,} with loss"


def _style(kind: Kind, supervised: bool) -> str:
    return f"{COLOURS[kind]} {'underline' if supervised else 'dim'}"


def _legend() -> Text:
    legend = Text()
    for kind in Kind:
        legend.append(_name(kind), style=COLOURS[kind]).append("  ")
    legend.append("with loss".join(_BRACKETS), style="underline")
    return legend.append("  ").append("without", style="dim")


def _name(kind: Kind) -> str:
    return _plain(kind.name.lower())


def loss_account(documents: Iterable[Sequence[Span]]) -> str:
    """How many tokens carry loss, in all and by kind, in one line."""
    tokens, learnt = _counts(documents)
    by_kind = ", ".join(
        f"{_name(kind)} {learnt[kind]:,}/{tokens[kind]:,}" for kind in Kind if tokens[kind]
    )
    share = percent(learnt.total() / tokens.total()) if tokens else "0%"
    return f"loss on {learnt.total():,} of {tokens.total():,} tokens ({share}): {by_kind}"


def _counts(documents: Iterable[Sequence[Span]]) -> tuple[Counter[Kind], Counter[Kind]]:
    tokens: Counter[Kind] = Counter()
    learnt: Counter[Kind] = Counter()
    for span in (span for document in documents for span in document):
        tokens[span.kind] += span.tokens
        learnt[span.kind] += span.tokens if span.supervised else 0
    return tokens, learnt


def dataset_view(path: Path, which: Shown) -> View:
    """Rows of a prepared dataset, and its manifest's account.

    Raises:
        DataError: the folder is not what its manifest describes, or has no such row or split.
        TokenizerMismatch: the tokenizer saved with it encodes differently.
    """
    dataset, manifest = load_prepared(path, split=which.split)
    if which.first >= len(dataset):
        raise DataError(
            f"{path}: row {which.first} of the {which.split} split was asked for, but it has "
            f"{len(dataset)} rows, counted from 0"
        )
    tokenizer = AnchoredTokenizer.load(path / "tokenizer")
    places = range(which.first, min(which.first + which.count, len(dataset)))
    shown = {place: _columns(dataset[place]) for place in places}
    terminal: list[RenderableType] = [_legend()]
    for place, row in shown.items():
        view = segment_view(*row, tokenizer, legend=False)
        terminal.append(Group(Rule(f"row {place}"), view))
    documents = {place: spans(*row, tokenizer) for place, row in shown.items()}
    facts = manifest_facts(manifest)
    return View(
        title=f"{path.name}: {manifest['objective']}",
        terminal=[*terminal, account_table(manifest), _facts_table(facts)],
        html=_dataset_html(documents, manifest, facts),
        data={"dataset": str(path), "manifest": manifest, "rows": _rows_data(documents.values())},
    )


def _columns(row: Mapping[str, Any]) -> tuple[list[int], list[int], list[int], list[int]]:
    return row["input_ids"], row["labels"], row["kinds"], row["seq_lengths"]


def manifest_facts(manifest: Mapping[str, Any]) -> dict[str, str]:
    """What a manifest says about how its data was made, as plain text."""
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


def _dataset_html(
    rows: Mapping[int, Sequence[Sequence[Span]]],
    manifest: Mapping[str, Any],
    facts: Mapping[str, str],
) -> str:
    legend = "".join(f'<span class="k{kind:d}">{_name(kind)}</span> ' for kind in Kind)
    legend += '<span class="loss">with loss</span> <span class="free">without</span>'
    body = f'<p class="meta seq">{legend}</p>'
    for place, row in rows.items():
        parts = "".join(_document_html(number, row) for number in range(1, len(row) + 1))
        account = f'<p class="meta">{escape(loss_account(row))}</p>'
        body += f"<section><h2>Row {place}</h2>{account}{parts}</section>"
    table = "".join(_account_html(name, split) for name, split in manifest["splits"].items())
    dropped = {
        f"left out: {reason}": f"{counts['examples']:,} examples, {counts['tokens']:,} tokens"
        for reason, counts in manifest["dropped"].items()
    }
    made = definitions({**facts, **dropped}.items())
    return f"{body}<section><h2>Account</h2>{table}{made}</section>"


def _document_html(place: int, row: Sequence[Sequence[Span]]) -> str:
    marks = "".join(
        f'<span class="k{span.kind:d} {"loss" if span.supervised else "free"}" '
        f'title="{_name(span.kind)}, {span.tokens} tokens">{escape(span.text)}</span>'
        for span in row[place - 1]
    )
    return (
        f'<h3 class="meta">{_document_title(place, row)}</h3><p class="seq" dir="auto">{marks}</p>'
    )


def _account_html(name: str, split: Mapping[str, Any]) -> str:
    rows = [
        (_plain(kind), tokens, split["supervised_by_kind"][kind])
        for kind, tokens in split["by_kind"].items()
    ]
    return table_html(
        (f"{name}: {split['rows']:,} rows", "tokens", "with loss", "masked"),
        [
            (kind, f"{tokens:,}", f"{learnt:,}", f"{tokens - learnt:,}")
            for kind, tokens, learnt in [*rows, ("all", split["tokens"], split["supervised"])]
        ],
    )


def model_view(path: Path) -> View:
    """Configuration, tokenizer and training of a model folder; weights are measured, not loaded.

    Raises:
        DataError: a file of it is not JSON.
        TokenizerMismatch: its tokenizer encodes differently from the one it was trained with.
    """
    facts = {**_architecture(path), **_tokenizer_facts(path), **_training(path)}
    return View(
        title=f"model {path.parent.name if path.name == 'model' else path.name}",
        terminal=[_facts_table(facts)],
        html=definitions(facts.items()),
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
    """Tag statistics of annotated rows: in any format `prepare` reads, or stand-off.

    Raises:
        DataError: no rows there, a damaged one (named by file and line), or no annotation at all.
    """
    found = statistics(_annotations(path))
    if not found.annotations:
        raise DataError(f"{path}: no row carries an annotation; make them with `anchored annotate`")
    title = f"{path.name}: {found.annotations:,} annotations"
    head, cells = statistics_cells(found)
    return View(
        title=title,
        terminal=[table_of(title, COVERAGE_INTRO, head, cells)],
        html=f'<p class="intro">{COVERAGE_INTRO}</p>{table_html(head, cells, "tags-table")}',
        data={"corpus": str(path), **found.data()},
    )


def _annotations(path: Path) -> Iterator[Annotation]:
    source = SourceConfig(path=str(path))
    if is_stand_off(path):
        return stored_annotations(source)
    return annotations_of(item for _, item in read_items(source, uncut))
