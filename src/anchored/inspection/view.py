"""Views for the terminal, as HTML and as JSON data, and the tables in them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from anchored.escape import shorten
from anchored.files import atomic_write
from anchored.formatting import Cells, number, percent
from anchored.report.page import render
from anchored.tags.statistics import KeyStatistics, TagStatistics

COVERAGE_INTRO = (
    "Coverage: share of annotations with the key. Entropy: entropy of its values in nats, plug-in "
    "and Miller-Madow. Once: number of values that occur only once."
)


@dataclass(frozen=True)
class View:
    """A view of one path: for the terminal, as a page and as JSON data.

    The page is rendered from `page` by `template`, a file in `report/templates`.
    """

    title: str
    terminal: Sequence[RenderableType]
    template: str
    page: Mapping[str, Any]
    data: Mapping[str, Any]


@dataclass(frozen=True)
class TagTable:
    """A table of plain text, with a title (empty to use the page's) and an explanation."""

    title: str
    intro: str
    head: Cells
    rows: Sequence[Cells]


def show(view: View, html: Path | None = None, as_json: bool = False) -> None:
    """Print a view, or its data as JSON; with `html`, also write it as a self-contained page."""
    if html is not None:
        atomic_write(html, render(view.template, title=view.title, **view.page))
    if as_json:
        print(json.dumps(view.data, ensure_ascii=False, indent=2))
    else:
        Console().print(*view.terminal, sep="\n")


def statistics_cells(found: TagStatistics) -> tuple[Cells, list[Cells]]:
    """Return the head and rows of the table of a corpus's tags, as plain text."""
    head = ("key", "coverage", "entropy", "corrected", "distinct", "once", "most frequent values")
    return head, [_key_cells(key, key_statistics) for key, key_statistics in found.keys.items()]


def _key_cells(key: str, found: KeyStatistics) -> Cells:
    top = ", ".join(f"{shorten(value, 40)} {count:,}" for value, count in found.top)
    entropies = number(found.entropy), number(found.miller_madow)
    return key, percent(found.coverage), *entropies, f"{found.distinct:,}", f"{found.once:,}", top
