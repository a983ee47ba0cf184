"""The page that reports share: one file that reads everywhere, with no script, loading nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from anchored.escape import cut, escape, shorten
from anchored.files import atomic_write
from anchored.report.tables import Cell, Results

MAX_BYTES = 3_000_000
_WIDE, _NARROW = 1024, 344
# No script at all, so that none of a model's can run.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_TAGS = 40


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a report: plain-text title and introduction, and a body of markup."""

    title: str
    intro: str
    body: str

    @property
    def anchor(self) -> str:
        """What links within the page call it."""
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())

    def html(self) -> str:
        """The markup, under a heading."""
        return (
            f'<section id="{self.anchor}" aria-labelledby="{self.anchor}-title">'
            f'<h2 id="{self.anchor}-title">{escape(self.title)}</h2>'
            f'<p class="intro">{escape(self.intro)}</p>{self.body}</section>'
        )


def report(title: str, header: str, sections: Iterable[Section]) -> str:
    """A whole report: its header, links to its sections, and those that have a body."""
    shown = [section for section in sections if section.body]
    links = "".join(f'<li><a href="#{s.anchor}">{escape(s.title)}</a></li>' for s in shown)
    contents = f'<nav class="contents" aria-label="Contents"><ul>{links}</ul></nav>'
    return page(title, "".join(s.html() for s in shown), f"<header>{header}</header>{contents}")


def page(title: str, body: str, before: str = "") -> str:
    """A whole HTML document in the report's style.

    `title` is plain text, `body` the markup of its main part, `before` what stands above that.
    """
    css = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{css}</style>\n</head>\n"
        f'<body>\n<div class="page">\n{before}\n<main>\n{body}\n</main>\n'
        "<footer>Written by anchored.</footer>\n</div>\n</body>\n</html>\n"
    )


def write_largest(pages: Iterable[str], path: Path) -> None:
    """Write the first of `pages` that is below `MAX_BYTES`, or else the last.

    Raises:
        OSError: `path` cannot be written.
    """
    found = ""
    for found in pages:
        if len(found.encode()) < MAX_BYTES:
            break
    atomic_write(path, found)


def figure(title: str, plot: Callable[[int], str], text: str) -> str:
    """A plot, made for a wide and for a narrow page, with its caption; nothing for an empty one."""
    wide, narrow = plot(_WIDE), plot(_NARROW)
    if not wide:
        return ""
    return (
        f'<figure><h3>{escape(title)}</h3><div class="wide">{wide}</div>'
        f'<div class="narrow">{narrow}</div><figcaption>{escape(text)}</figcaption></figure>'
    )


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table: its heading and cells as plain text, and the colour of what it is about."""

    heading: str
    cells: Sequence[Cell]
    colour: str = ""

    def html(self) -> str:
        """The markup."""
        paint = f' style="--c:{self.colour}"' if self.colour else ""
        cells = "".join(map(_cell, self.cells))
        return f'<tr{paint}><th scope="row">{_breakable(self.heading)}</th>{cells}</tr>'


def _breakable(name: str) -> str:
    """A name that may break after its underscores and slashes, so that columns can be narrow."""
    return re.sub("([_/])", r"\1<wbr>", escape(name))


def _cell(cell: Cell) -> str:
    value = escape(cell.value)
    if cell.exact is not None:
        value = f'<data value="{cell.exact!r}">{value}</data>'
    bounds = f"<small>{escape(cell.interval)}</small>" if cell.interval else ""
    return f"<td>{value}{bounds}</td>"


def table(label: str, head: Iterable[str], rows: Iterable[Row], kind: str = "comparison") -> str:
    """A table that scrolls by itself where the page is narrow; `label` says what it is, aloud."""
    names = "".join(f'<th scope="col">{_breakable(name)}</th>' for name in head)
    body = "".join(row.html() for row in rows)
    return scrolling(
        label,
        f'<table class="{kind}"><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>',
    )


def scrolling(label: str, markup: str, kind: str = "scroll") -> str:
    """`markup` in a box of its own that keys can scroll."""
    return (
        f'<div class="{kind}" tabindex="0" role="region" aria-label="{escape(label)}">'
        f"{markup}</div>"
    )


def definitions(pairs: Iterable[tuple[str, Any]]) -> str:
    """A definition list of plain-text names and values."""
    rows = (f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in pairs)
    return f"<dl>{''.join(rows)}</dl>"


def folded(summary: str, markup: str) -> str:
    """`markup` behind a line of plain text."""
    return f"<details><summary>{escape(summary)}</summary>{markup}</details>"


def configuration(results: Results) -> str:
    """The configuration of these results, as YAML, behind a line."""
    text = yaml.safe_dump(results.get("config") or {}, sort_keys=False, allow_unicode=True)
    return folded("Configuration", f"<pre>{prose(text, 60_000)}</pre>")


def prose(text: Any, chars: int = 4_000) -> str:
    """Text of a model or user, cut and escaped; nothing for what is missing."""
    return escape(cut(str(text or ""), chars=chars))


def tags(lines: Sequence[str], read: bool) -> str:
    """`key: value` lines as chips; `read` says that they were read off a text, not written."""
    if not lines:
        return ""
    kind, label = ("tags read", "Read off the text") if read else ("tags", "Annotation")
    chips = "".join(map(_chip, lines[:_TAGS]))
    return f'<ul class="{kind}" aria-label="{label}" title="{label}">{chips}</ul>'


def _chip(line: str) -> str:
    key, separator, value = line.partition(": ")
    if not separator:
        key, value = "", line
    return f"<li><i>{escape(shorten(key, 32))}</i> {escape(shorten(value, 80))}</li> "


def duration(seconds: float) -> str:
    """`412.3` as `6 min 52 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
