"""Tables of `anchored capability`: figures with one row per task, and differences of models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from anchored.escape import shorten
from anchored.files import atomic_write
from anchored.formatting import MISSING, interval, is_number, number

Results = Mapping[str, Any]
DIGITS = 3
NAME_CHARS = 40


def report_capability(results: Results, out: Path, console: Console) -> None:
    """Write table.md into `out` and print the figures.

    Raises:
        OSError: `out` cannot be written.
    """
    atomic_write(out / "table.md", markdown(results))
    console.print(rich_table(results))


def markdown(results: Results) -> str:
    """Return the figures with standard errors, the differences, and how they were made."""
    names = list(results["models"])
    parts = [_lines(["task", "metric", *map(_label, names)], _figures(results))]
    for name, other, found in _pairs(results):
        head = [f"{_label(name)} minus {_label(other)}", "difference", "p (Holm)", "detectable"]
        parts.append(_lines(head, _differences(results, found)))
    return "\n\n".join([*parts, _asked(results), *results["notes"]]) + "\n"


def rich_table(results: Results) -> Table:
    """Return the figures as a table for a terminal."""
    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("task", no_wrap=True)
    table.add_column("metric")
    for name in results["models"]:
        table.add_column(shorten(name, NAME_CHARS), justify="right", overflow="fold")
    for row in _figures(results):
        table.add_row(*row)
    return table


def _figures(results: Results) -> Iterator[list[str]]:
    models = results["models"].values()
    for name, task in results["tasks"].items():
        metric = task["headline"]
        cells = [_with_error(model["capability"][name], metric) for model in models]
        yield [shorten(name, NAME_CHARS), metric, *cells]
    if len(results["tasks"]) > 1:
        yield ["average", "", *(number(m["capability_average"], DIGITS) for m in models)]


def _with_error(metrics: Mapping[str, Any], metric: str) -> str:
    error = metrics.get(stderr_of(metric))
    behind = f" ± {number(error, DIGITS)}" if is_number(error) else ""
    return f"{number(metrics[metric], DIGITS)}{behind}"


def stderr_of(metric: str) -> str:
    """Return the name of a metric's standard error, such as `exact_match_stderr,strict-match`."""
    name, separator, kind = metric.partition(",")
    return f"{name}_stderr{separator}{kind}"


def _pairs(results: Results) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for name, found in results["comparisons"].items():
        for other, differences in found["against"].items():
            yield name, other, differences


def _differences(results: Results, found: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, task in results["tasks"].items():
        one = found[name].get(task["headline"])
        if one is None:
            yield [shorten(name, NAME_CHARS), MISSING, MISSING, MISSING]
            continue
        cells = f"{number(one['mean'], DIGITS)} {interval(one, DIGITS)}"
        yield [
            shorten(name, NAME_CHARS),
            cells,
            number(one["p_holm"], DIGITS),
            number(one["detectable"], DIGITS),
        ]


def _asked(results: Results) -> str:
    lines = (
        f"- {_label(name)}: {model['format']} format, annotation {model['annotation']}"
        for name, model in results["models"].items()
    )
    return f"lm-eval {results['versions']['lm_eval']}. Asked by:\n\n" + "\n".join(lines)


def _lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def _label(name: str) -> str:
    """Return a model's name, safe in a Markdown table."""
    text = shorten(name, NAME_CHARS)
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
