"""A view of something: for the terminal, as HTML and as JSON data; and the tables in it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from anchored.escape import escape, shorten
from anchored.files import atomic_write
from anchored.formatting import Cells, number, percent
from anchored.report.page import page
from anchored.tags.statistics import KeyStatistics, TagStatistics

COVERAGE_INTRO = (
    "Coverage: share of annotations with the key. Entropy: of its values, in nats, plug-in and "
    "Miller-Madow. Once: values seen a single time."
)


@dataclass(frozen=True)
class View:
    """What is shown of one path: for the terminal, as HTML (markup) and as JSON data."""

    title: str
    terminal: Sequence[RenderableType]
    html: str
    data: Mapping[str, Any]


def show(view: View, html: Path | None = None, as_json: bool = False) -> None:
    """Prints a view, or its data as JSON; and writes it as one self-contained HTML file."""
    if html is not None:
        atomic_write(html, page(view.title, f"<h1>{escape(view.title)}</h1>{view.html}"))
    if as_json:
        print(json.dumps(view.data, ensure_ascii=False, indent=2))
    else:
        Console().print(*view.terminal, sep="\n")


def statistics_cells(found: TagStatistics) -> tuple[Cells, list[Cells]]:
    """Head and rows of the table of a corpus's tags, as plain text."""
    head = ("key", "coverage", "entropy", "corrected", "distinct", "once", "most frequent values")
    return head, [_key_cells(key, key_statistics) for key, key_statistics in found.keys.items()]


def _key_cells(key: str, found: KeyStatistics) -> Cells:
    top = ", ".join(f"{shorten(value, 40)} {count:,}" for value, count in found.top)
    entropies = number(found.entropy), number(found.miller_madow)
    return key, percent(found.coverage), *entropies, f"{found.distinct:,}", f"{found.once:,}", top


def table_html(head: Sequence[str], rows: Iterable[Sequence[str]], style: str = "") -> str:
    """The same cells as a table in the report's style."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    table = f'<table class="{style}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll" tabindex="0">{table}</div>'
