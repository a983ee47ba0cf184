"""Tables of `anchored score`: figures by set, and differences between sets."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from anchored.escape import shorten
from anchored.formatting import MISSING, interval, is_number, number
from anchored.metrics.table import in_order
from anchored.report.tables import NAME_CHARS, Cell, figure
from anchored.scoring.falls import falls

Results = Mapping[str, Any]
SIGNIFICANT = 0.05
SAID = 3
DIFFERENCE_COLUMNS = ("difference", "p", "p (Holm)", "detectable")


def metrics(results: Results) -> list[str]:
    """Return the metrics of these results, in the order of the table of metrics."""
    return in_order(next(iter(results["models"].values())))


def markdown(results: Results) -> str:
    """Return both tables in Markdown, one row per metric, with the backends and notes."""
    names = list(results["models"])
    parts = [_lines(["", *map(_label, names)], figures(results)), caption(results)]
    for name, other, found in pairs(results):
        head = [f"{_label(name)} minus {_label(other)}", *DIFFERENCE_COLUMNS]
        parts += [_lines(head, differences(found, metrics(results)))]
    if results["comparisons"]:
        parts.append(power_note(results))
    parts += [*_equal(results), *_between(results), _backends(results), *results["notes"]]
    return "\n\n".join(parts) + "\n"


def _equal(results: Results) -> Iterator[str]:
    """Yield the figures of the texts' first words in Markdown."""
    if cut := results.get("at_equal_length"):
        inner = {**results, **cut}
        head = [f"first {cut['words']} words", *map(_label, cut["models"])]
        yield _lines(head, figures(inner))
        for name, other, found in pairs(inner):
            head = [f"{_label(name)} minus {_label(other)}, first {cut['words']} words"]
            yield _lines([*head, *DIFFERENCE_COLUMNS], differences(found, metrics(inner)))
        yield from cut["notes"]


def _between(results: Results) -> Iterator[str]:
    if rows := between_rows(results):
        lines = (f"| {said.replace('|', chr(92) + '|')} | {value} |" for said, value in rows)
        yield "\n".join(["| answers to one prompt | mean cosine |", "| --- | ---: |", *lines])


def rich_tables(results: Results, width: int = 80) -> Iterator[Table | Text]:
    """Yield the tables, the notes and what they say, for a terminal that is `width` wide."""
    yield _figures(results, width)
    yield Text(f"{caption(results)}\n", "dim")
    yield from _rich_differences(results)
    if cut := results.get("at_equal_length"):
        inner = {**results, **cut}
        yield Text(f"At equal length: the first {cut['words']} words of each text", "bold")
        yield _figures(inner, width)
        yield from _rich_differences(inner)
        for note in cut["notes"]:
            yield Text(note, "dim")
    if rows := between_rows(results):
        table = _table(("mean cosine",), first="answers to one prompt", no_wrap=False)
        for said, value in rows:
            table.add_row(said, value)
        yield table
    notes = [*([power_note(results)] if results["comparisons"] else []), *results["notes"]]
    for note in notes:
        yield Text(note, "dim")
    yield from _said(results)


def _said(results: Results) -> Iterator[Text]:
    """Yield what happened and to which prompts; it comes last, where a terminal stops."""
    for sentence in verdicts(results):
        yield Text(f"\n{sentence}", "bold")
    for one in falls(results)[:SAID]:
        against = f" against {short_name(one.other)}" if one.other else ""
        counts = f": {one.count(1)} prompts fell, {one.count(-1)} rose" if one.other else ""
        yield Text(f"\n{one.metric}, {short_name(one.name)}{against}{counts}")
        for kind, fall in one.picks.items():
            before = "" if fall.before is None else f"{fall.before:g} to "
            yield Text(f"  {kind:6} {before}{fall.after:g}  {shorten(fall.prompt, 50)}")


def _rich_differences(results: Results) -> Iterator[Table | Text]:
    for name, other, found in pairs(results):
        yield Text(f"{short_name(name)} minus {short_name(other)}", "bold")
        table = _table(DIFFERENCE_COLUMNS)
        for metric, cells in differences(found, metrics(results)):
            table.add_row(metric, *map(_stacked, cells))
        yield table


def _figures(results: Results, width: int) -> Table:
    """Return the figures with one column per set or, where these do not fit, one row per set."""
    rows = list(figures(results))
    texts = [[_stacked(cell) for cell in cells] for _, cells in rows]
    widths = [max(cell_len(str(t)) for t in column) for column in _lines_of(texts)]
    needed = max(len(metric) for metric, _ in rows) + 2 + sum(max(w, 10) + 2 for w in widths)
    if needed <= width:
        table = _table(map(short_name, results["models"]), widths)
        for (metric, _), cells in zip(rows, texts, strict=True):
            table.add_row(metric, *cells)
        return table
    table = _table(("figure", "95%"), no_wrap=False)
    for metric, cells in rows:
        table.add_row(Text(metric, "bold"))
        for name, cell in zip(results["models"], cells, strict=True):
            bounds = Text(cell.interval, "dim")
            table.add_row(f"  {short_name(name)}", Text(cell.value), bounds)
    return table


def _lines_of(texts: Sequence[Sequence[Text]]) -> Iterator[list[str]]:
    """Yield the lines of each column."""
    for column in zip(*texts, strict=True):
        yield [line for text in column for line in text.plain.split("\n")]


def caption(results: Results) -> str:
    """Return the numbers of prompts and texts, and what the brackets are."""
    p, k, seeds = results["prompts"], results["k"], _seeds(results)
    text = f"{p} prompt{'s' if p > 1 else ''}, k = {k} texts each"
    over = "prompts" if p > 1 else "texts"
    if seeds > 1:
        text, over = f"{text}, {seeds} seeds", f"{over} and seeds"
    return f"{text}; brackets: 95% bootstrap over {over}."


def _seeds(results: Results) -> int:
    return len(next(iter(results["models"].values())).get("by_seed", (None,)))


def finding(results: Results) -> str:
    """Return the first `SAID` sentences of `verdicts`."""
    return " ".join(itertools.islice(verdicts(results), SAID))


def verdicts(results: Results) -> Iterator[str]:
    """Yield one sentence on `distinct_k` for each comparison or, without any, for each set."""
    models, k = results["models"], results["k"]
    if "distinct_k" not in metrics(results):
        return
    said = {
        name: f"{short_name(name)} gives {number(model['distinct_k'])} different answers in {k}"
        for name, model in models.items()
    }
    if not results["comparisons"]:
        yield from (f"{one}." for one in said.values())
    for name, other, found in pairs(results):
        beside = f"{short_name(other)} {number(models[other]['distinct_k'])}"
        # A single prompt gives no interval of this metric.
        how = f": {_verdict(found['distinct_k'])}" if "distinct_k" in found else ", to this prompt"
        yield f"{said[name]}, {beside}{how}."


def _verdict(difference: Mapping[str, Any]) -> str:
    bounds = f"{number(difference['mean'])} {interval(difference)}"
    if difference["p_holm"] is None:
        return f"a difference of {bounds} on this one prompt"
    if is_significant(difference):
        return f"a difference of {bounds}"
    detectable = number(difference["detectable"])
    return f"no difference shows, and one below {detectable} would mostly have gone unseen"


def power_note(results: Results) -> str:
    """Return a sentence on what a lack of significance does not mean."""
    if results["prompts"] == 1:
        return "One prompt says nothing about others: its differences have no p-value."
    if _seeds(results) > 1:
        return "Paired over prompts and seeds: intervals are of both, and there are no p-values."
    return (
        f"Paired over prompts; Holm over the {len(metrics(results))} metrics of a pair, * where "
        f"that is below {SIGNIFICANT:g}. With N = {results['prompts']} prompts a true difference "
        "below `detectable` would have gone unseen more than one time in five, before Holm."
    )


def figures(results: Results) -> Iterator[tuple[str, list[Cell]]]:
    """Yield each metric with its figure for each set, in the order of `models`.

    The share of texts cut at the token limit comes last, if it is known of any set.
    """
    for metric in metrics(results):
        found = list(results["models"].values())
        digits = _digits(model[metric] for model in found)
        yield (
            metric,
            [figure(model[metric], model["intervals"].get(metric), digits) for model in found],
        )

    cut = [model.get("truncation_rate") for model in results["models"].values()]
    if any(share is not None for share in cut):
        yield "truncation_rate", [figure(share, digits=3) for share in cut]


def between_rows(results: Results) -> list[tuple[str, str]]:
    """Return the similarity within each set and between each two sets, with its interval."""
    found = results.get("between")
    if not found:
        return []
    within = [(f"within {short_name(name)}", one) for name, one in found["within"].items()]
    pairs = [(" and ".join(map(short_name, one["sets"])), one) for one in found["pairs"]]
    return [(said, str(figure(one["mean"], one, 3))) for said, one in (*within, *pairs)]


def pairs(results: Results) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield each set, the set it is compared with, and its differences by metric."""
    for name, found in results["comparisons"].items():
        for other, differences in found.get("against", {}).items():
            yield name, other, differences


def differences(
    found: Mapping[str, Any], order: Sequence[str]
) -> Iterator[tuple[str, tuple[Cell, Cell, Cell, Cell]]]:
    """Yield each metric in this order, with a cell for each of `DIFFERENCE_COLUMNS`."""
    for metric in order:
        if metric not in found:
            continue
        one = found[metric]
        digits = _digits((one["mean"], one["low"], one["high"]))
        mean = figure(one["mean"], one, digits)
        star = "*" if is_significant(one) else ""
        yield (
            metric,
            (
                Cell(f"{mean.value}{star}", mean.interval, mean.exact),
                _p(one["p"]),
                _p(one["p_holm"]),
                figure(one["detectable"], digits=digits),
            ),
        )


def is_significant(difference: Mapping[str, Any]) -> bool:
    """Return True if Holm's p of this difference is below `SIGNIFICANT`."""
    p = difference["p_holm"]
    return p is not None and p < SIGNIFICANT


def _p(p: float | None) -> Cell:
    if p is None:
        return Cell(MISSING)
    return Cell("<0.001" if p < 0.001 else f"{p:.3f}", exact=p)


def _digits(values: Iterable[Any]) -> int:
    """Return the decimals that give the largest value three digits, at most three decimals."""
    largest = max((abs(value) for value in values if is_number(value)), default=0.0)
    return 3 if largest < 1 else max(0, 2 - math.floor(math.log10(largest)))


def _table(
    columns: Iterable[str], widths: Sequence[int] = (), first: str = "", no_wrap: bool = True
) -> Table:
    """Return a table whose numbers are never cut: only headings and names may wrap."""
    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(first, no_wrap=no_wrap, overflow="fold")
    for name, least in itertools.zip_longest(columns, widths):
        table.add_column(name, justify="right", overflow="fold", min_width=least)
    return table


def _stacked(cell: Cell) -> Text:
    text, bounds = Text(cell.value), cell.interval.strip("[]").replace(", ", "–")
    return text.append(f"\n{bounds}", "dim") if bounds else text


def _lines(head: Sequence[str], rows: Iterable[tuple[str, Sequence[Cell]]]) -> str:
    rule = ["---", *("---:" for _ in head[1:])]
    lines = [head, rule, *([metric, *map(str, cells)] for metric, cells in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _backends(results: Results) -> str:
    lines = (f"- {name}: {described(one)}" for name, one in results["backends"].items() if one)
    return "Made by:\n\n" + "\n".join(lines)


def described(backend: Any) -> str:
    """Describe a backend of `results.json` in one line."""
    if isinstance(backend, str):
        return backend
    parts = (
        f"{name} {', '.join(value) if isinstance(value, list) else value}"
        for name, value in backend.items()
    )
    return "; ".join(parts)


def short_name(name: str) -> str:
    """Shorten a set's name to one line that fits a heading."""
    return shorten(name, NAME_CHARS)


def _label(name: str) -> str:
    """Return a name from a file, safe in a Markdown table."""
    return short_name(name).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
