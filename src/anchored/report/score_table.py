"""The results of `anchored score` as tables: figures by set, and differences between sets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from anchored.report.escape import shorten
from anchored.report.tables import MISSING, interval, is_number, number

Results = Mapping[str, Any]
NAME_CHARS = 40
SIGNIFICANT = 0.05

METRICS = {
    "distinct_k": "Classes of equivalent texts among a prompt's k.",
    "utility_k": "Mean worth from 1 to 10 of the next answer to one who asks k times and gains "
    "nothing from repeats.",
    "quality": "Mean score from 1 to 10 of the first text of each class.",
    "perplexity": "Of a prompt's texts under a reference model, all tokens together: lower is more "
    "fluent, or duller.",
    "semantic_entropy": "Entropy of each attribute over a prompt's texts, averaged over "
    "attributes, in nats; plug-in: compares at equal k only.",
    "semantic_entropy_miller_madow": "The same with its bias corrected to first order.",
    "dissimilarity": "1 - cosine of the embeddings, mean over all pairs of a prompt's texts.",
    "nearest_distance": "1 - cosine to the most similar other text of the prompt.",
    "vendi": "Effective number of distinct texts among a prompt's k, by their embeddings.",
    "distinct_1": "Distinct words over all words of a prompt's texts; falls with length.",
    "distinct_2": "The same of word pairs.",
    "distinct_3": "The same of word triples.",
    "ead": "Distinct words over those expected of as many random draws.",
    "self_bleu": "BLEU of each text against the others of its prompt: high is repetitive.",
    "compression_ratio": "Bytes over compressed bytes of a prompt's texts, all sets cut to the "
    "same bytes: high is repetitive.",
    "exact_duplicate_rate": "Share of texts that repeat an earlier one of their prompt.",
    "empty_rate": "Share of texts that hold nothing but white space.",
    "words": "Words and punctuation marks a text.",
}


def metrics(results: Results) -> list[str]:
    """The metrics of these results, in the order of `METRICS`; Vendi's other orders after it."""
    known = next(iter(results["models"].values()))
    orders = [name for name in known if name.startswith("vendi_")]
    return [
        name for metric in METRICS for name in (metric, *(orders if metric == "vendi" else ()))
        if name in known
    ]  # fmt: skip


def markdown(results: Results) -> str:
    """Both tables, a row a metric, with what they rest on."""
    names = list(results["models"])
    parts = [_lines(["", *map(_label, names)], _figures(results)), caption(results)]
    for name, other, found in _pairs(results):
        head = [
            f"{_label(name)} minus {_label(other)}",
            "difference",
            "p",
            "p (Holm)",
            "detectable",
        ]
        parts += [_lines(head, _rows(found, metrics(results)))]
    if results["comparisons"]:
        parts.append(power_note(results))
    parts += [_backends(results), *results["notes"]]
    return "\n\n".join(parts) + "\n"


def rich_tables(results: Results) -> Iterator[Table | Text]:
    """The same for a terminal."""
    table = _table(map(_name, results["models"]))
    for metric, *cells in _figures(results):
        table.add_row(metric, *(_stacked(cell) for cell in cells))
    yield table
    yield Text(f"{caption(results)}\n", "dim")
    for name, other, found in _pairs(results):
        yield Text(f"{_name(name)} minus {_name(other)}", "bold")
        table = _table(("difference", "p", "p (Holm)", "detectable"))
        for metric, *cells in _rows(found, metrics(results)):
            table.add_row(metric, *map(_stacked, cells))
        yield table
    notes = [*([power_note(results)] if results["comparisons"] else []), *results["notes"]]
    for note in notes:
        yield Text(note, "dim")


def caption(results: Results) -> str:
    """How many prompts and texts, and what the brackets are."""
    p, k = results["prompts"], results["k"]
    text = f"{p} prompt{'s' if p > 1 else ''}, k = {k} texts each; brackets: 95% bootstrap"
    return f"{text} over {'prompts' if p > 1 else 'texts'}."


def power_note(results: Results) -> str:
    """What an absence of significance does not say."""
    if results["prompts"] == 1:
        return "One prompt says nothing about others: its differences have no p-value."
    return (
        f"Paired over prompts; Holm over the {len(metrics(results))} metrics of a pair, * where "
        f"that is below {SIGNIFICANT:g}. With N = {results['prompts']} prompts a true difference "
        "below `detectable` would have gone unseen more than one time in five, before Holm."
    )


def _figures(results: Results) -> Iterator[list[str]]:
    for metric in metrics(results):
        found = list(results["models"].values())
        digits = _digits(model[metric] for model in found)
        bounds = [interval(model["intervals"].get(metric), digits) for model in found]
        cells = [
            f"{number(model[metric], digits)} {bracket}".rstrip()
            for model, bracket in zip(found, bounds, strict=True)
        ]
        yield [metric, *cells]


def _pairs(results: Results) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for name, found in results["comparisons"].items():
        for other, differences in found["against"].items():
            yield name, other, differences


def _rows(found: Mapping[str, Any], order: Sequence[str]) -> Iterator[list[str]]:
    for metric in order:
        if metric not in found:
            continue
        one = found[metric]
        digits = _digits((one["mean"], one["low"], one["high"]))
        star = "*" if one["p_holm"] is not None and one["p_holm"] < SIGNIFICANT else ""
        difference = f"{number(one['mean'], digits)}{star} {interval(one, digits)}"
        yield [
            metric,
            difference,
            _p(one["p"]),
            _p(one["p_holm"]),
            number(one["detectable"], digits),
        ]


def _p(p: float | None) -> str:
    if p is None:
        return MISSING
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _digits(values: Iterable[Any]) -> int:
    """Three figures of the largest value, and never more than three decimals."""
    largest = max((abs(value) for value in values if is_number(value)), default=0.0)
    return 3 if largest < 1 else max(0, 2 - math.floor(math.log10(largest)))


def _table(columns: Iterable[str]) -> Table:
    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    return table


def _stacked(cell: str) -> Text:
    value, _, bounds = cell.partition(" ")
    text = Text(value)
    return text.append(f"\n{bounds.strip('[]').replace(', ', '–')}", "dim") if bounds else text


def _lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def _backends(results: Results) -> str:
    lines = (f"- {name}: {_described(one)}" for name, one in results["backends"].items() if one)
    return "Made by:\n\n" + "\n".join(lines)


def _described(backend: Any) -> str:
    if isinstance(backend, str):
        return backend
    parts = (
        f"{name} {', '.join(value) if isinstance(value, list) else value}"
        for name, value in backend.items()
    )
    return "; ".join(parts)


def _name(name: str) -> str:
    return shorten(name, NAME_CHARS)


def _label(name: str) -> str:
    """A name from a file, safe in a Markdown table."""
    return _name(name).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
