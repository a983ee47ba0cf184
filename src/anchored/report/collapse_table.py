"""Tables of `anchored evaluate`: the collapse first, then every figure and every comparison.

A treatment that falls behind SFT in adoption or quality is marked and listed below those ranked by
`gap_closed`: it is diverse only because it learnt less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from anchored.escape import shorten
from anchored.formatting import MISSING, is_number, number
from anchored.metrics.table import METRICS
from anchored.report import score_table
from anchored.report.tables import cell

Results = Mapping[str, Any]
MARK = "†"
JUDGED = ("adoption", "adoption_far", "quality", "utility_k", "perplexity", "frontier_area")


def _name(name: str) -> str:
    """Return a model's name, safe in a Markdown table."""
    return shorten(name, score_table.NAME_CHARS).replace("|", "\\|").replace("<", "&lt;")


def label(results: Results, name: str, call: Callable[[str], str] = _name) -> str:
    """Return a model's name, with a mark if the model is not ranked."""
    marked = results["comparisons"].get(name, {}).get("short_of")
    return call(name) + (f" {MARK}" if marked else "")


def markdown(results: Results) -> str:
    """Return all tables of one benchmark in Markdown."""
    parts = [score_table.markdown(results)]
    if ranked := order(results):
        head = ["", *columns(results)]
        rows = [[label(results, name), *_cells(results, name)] for name in ranked]
        lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        parts = [table, *explanations(results), *parts]
    return "\n\n".join(parts)


def rich_tables(results: Results, width: int = 80) -> Iterator[Table | Text]:
    """Yield the collapse for a terminal, one column per model; without roles, a score's tables."""
    ranked = order(results)
    if not ranked:
        yield from score_table.rich_tables(results, width)
    else:
        table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column("", no_wrap=True)
        for name in ranked:
            table.add_column(label(results, name), justify="right", overflow="fold")
        for column in columns(results):
            found = [cell(results, name, column) for name in ranked]
            texts = (Text(f"{one.value}\n{one.interval}".strip()) for one in found)
            table.add_row(column, *texts)
        yield table
        yield Text(f"{score_table.caption(results)}\n", "dim")
        for line in (*explanations(results), *results["notes"]):
            yield Text(f"{line}\n", "dim")


def order(results: Results) -> list[str]:
    """Return base and SFT, ranked treatments, then marked ones; empty without a treatment."""
    found = results["comparisons"]
    treatments = [name for name in found if "short_of" in found[name]]
    if not treatments:
        return []
    ranked = sorted(
        treatments, key=lambda name: (bool(found[name]["short_of"]), -_gap(results, name))
    )
    return [*(name for name in results["models"] if name not in treatments), *ranked]


def _gap(results: Results, name: str) -> float:
    mean = results["comparisons"][name]["gap_closed"]["mean"]
    return mean if is_number(mean) else float("-inf")


def columns(results: Results) -> list[str]:
    """Return the benchmark's diversity metrics, the comparison, and what qualifies it."""
    models = results["models"].values()

    def known(names: Any) -> list[str]:
        return [name for name in names if any(is_number(m.get(name)) for m in models)]

    return [
        *known(results.get("benchmark", {}).get("metrics", ())),
        "gap_closed",
        "collapse_reduction",
        *known(JUDGED),
    ]


def explanations(results: Results, call: Callable[[str], str] = _name) -> Iterator[str]:
    """Yield the metric of the comparison, the reason of each mark, and why a gap is missing.

    `call` prepares a model's name for display.
    """
    found = results["comparisons"]
    named = {one["metric"] for one in found.values() if "metric" in one}
    if named:
        yield f"gap_closed and collapse_reduction by {', '.join(sorted(named))}."
    for name, one in found.items():
        for short in one.get("short_of", ()):
            yield (
                f"{MARK} {call(name)} is not ranked: {short['metric']} {number(short['value'])}, "
                f"SFT {number(short['sft'])}, margin {_margin(short)}."
            )
        if reason := (one.get("gap_closed") or {}).get("reason"):
            yield f"{call(name)}: {reason}."


def _margin(short: Mapping[str, Any]) -> str:
    """Format a margin in the metric's own unit, or as a share of SFT's value for a ratio."""
    metric = METRICS.get(short["metric"])
    if metric and metric.is_ratio:
        return f"{100 * short['margin']:g} % of SFT's"
    return number(short["margin"])


def _cells(results: Results, name: str) -> Iterator[str]:
    for column in columns(results):
        yield str(cell(results, name, column)) or MISSING
