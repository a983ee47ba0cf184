"""Render report pages: each is one file that opens anywhere, without scripts, and loads nothing.

The markup is in `templates/`. Jinja escapes everything inserted into it, and hidden characters are
made visible in the finished page, so that no template can forget either. Only SVG from `drawing`
is inserted as markup.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from markupsafe import escape as as_markup

from anchored.escape import cut, shorten, visible
from anchored.files import atomic_write
from anchored.formatting import percent
from anchored.report.tables import Cell, Results

MAX_BYTES = 3_000_000
_FOLDER = Path(__file__).parent
_WIDE, _NARROW = 1024, 344


@dataclass(frozen=True, slots=True)
class Row:
    """A table row: its heading and cells as plain text, and the colour of its subject."""

    heading: str
    cells: Sequence[Cell]
    colour: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table; `label` is its accessible name, and `kind` its class in the style sheet."""

    label: str
    head: Sequence[str]
    rows: Sequence[Row]
    kind: str = "comparison"


@cache
def _templates() -> Environment:
    found = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "anchor": _anchor,
        "breakable": _breakable,
        "percent": percent,
        "prose": _prose,
        "shorten": shorten,
    }
    found.globals["css"] = Markup((_FOLDER / "page.css").read_text(encoding="utf-8"))
    return found


def render(template: str, **data: Any) -> str:
    """Render the page `template` of `templates/`, and make its hidden characters visible."""
    return visible(_templates().get_template(f"{template}.html.j2").render(data))


def report(template: str, sections: Mapping[str, Any], **data: Any) -> str:
    """Render a whole report: for each section with content, the template's block of that name."""
    shown = {name: found for name, found in sections.items() if found}
    return render(template, sections=list(shown), **shown, **data)


def write_largest(pages: Iterable[str], path: Path) -> None:
    """Write the first of `pages` that is smaller than `MAX_BYTES`, or else the last.

    Raises:
        OSError: `path` cannot be written.
    """
    found = ""
    for found in pages:
        if len(found.encode()) < MAX_BYTES:
            break
    atomic_write(path, found)


def drawn(plots: Mapping[str, Callable[[int], str]]) -> dict[str, tuple[Markup, Markup]]:
    """Draw each plot for a wide and for a narrow page; leave out plots that are empty."""
    found = {name: (Markup(plot(_WIDE)), Markup(plot(_NARROW))) for name, plot in plots.items()}
    return {name: pair for name, pair in found.items() if pair[0]}


def configuration(results: Results) -> str:
    """Return the configuration of these results as YAML."""
    return yaml.safe_dump(results.get("config") or {}, sort_keys=False, allow_unicode=True)


def _anchor(title: str) -> str:
    """Return the id of the section with this title, for links within the page."""
    return "".join(c if c.isalnum() else "-" for c in title.lower())


def _breakable(name: str) -> Markup:
    """Let a name break after its underscores and slashes, so that columns can be narrow."""
    return Markup(re.sub("([_/])", r"\1<wbr>", str(as_markup(name))))


def _prose(text: Any, chars: int = 4_000) -> str:
    """Return the text of a model or user, cut to `chars`; empty if it is missing."""
    return cut(str(text or ""), chars=chars)


def duration(seconds: float) -> str:
    """Format seconds: `412.3` as `6 min 52 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
