"""Drawing tools for plots: styles of models, scales, and the elements of inline SVG.

Text stays text, colours are CSS variables of the page with a fallback, and nothing is loaded.
Colours are close to Okabe and Ito's, which colour-blind readers can tell apart; each model also has
its own marker.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from anchored.escape import escape, shorten
from anchored.report.tables import model_label

FONT = 13
CHAR = 0.6 * FONT
_ORDER = ("base", "annotated_base", "standard", "anchored", "anchored_replay", "tagged")
_FALLBACKS = (
    "#6b7280",
    "#6b7280",
    "#d55e00",
    "#0072b2",
    "#009e73",
    "#b5659a",
    "#b07a00",
    "#3a8fc0",
)
_MARKERS = ("ring", "diamond_ring", "square", "circle", "triangle", "diamond", "cross", "down")
_OTHERS = (0, 2, 3, 4, 5, 6, 7, 1)  # for the user's names; the first one is the reference


@dataclass(frozen=True, slots=True)
class Style:
    """A model's CSS colour (a variable of the page with a fallback) and its marker."""

    colour: str
    marker: str


def style_of(model: str, models: Iterable[str]) -> Style:
    """Return the style of `model` among all `models` of a report; up to 64 models differ.

    The demo's names have the same style in every report. Other names take the remaining styles, in
    order.
    """
    names = list(models)
    if model in _ORDER:
        return _style(_ORDER.index(model), 0)
    free = [place for place in _OTHERS if not (place < len(_ORDER) and _ORDER[place] in names)]
    rank = [name for name in names if name not in _ORDER].index(model)
    return _style(free[rank % len(free)], rank // len(free))


def _style(place: int, again: int) -> Style:
    marker = _MARKERS[(place + again) % len(_MARKERS)]
    return Style(f"var(--m{place}, {_FALLBACKS[place]})", marker)


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear scale from `low`..`high` to `start`..`end`; values outside are clipped."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the coordinate of `value`."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def ceiling(peak: float) -> float:
    """Return the end of an axis: the first tick a little above `peak`."""
    step = tick_step(peak)
    return step * math.ceil(peak * 1.02 / step) if peak > 0 else 1.0


def rounded(values: Sequence[float]) -> tuple[float, float]:
    """Return two ticks that enclose all of `values`; the second is above the largest."""
    step = tick_step(max(values) - min(values))
    return math.floor(min(values) / step) * step, (math.floor(max(values) / step) + 1) * step


def tick_step(span: float) -> float:
    """Return the smallest round step such that at most six steps cover `span`."""
    steps = (size * base for size in (0.01, 0.1, 1, 10, 100) for base in (1, 2, 2.5, 5))
    return next((step for step in steps if span / step <= 6), 1000.0)


def ticks(low: float, high: float) -> list[float]:
    """Return at most seven round numbers from `low`, which must be one, to `high`."""
    step = tick_step(high - low)
    return [round(low + step * i, 10) for i in range(round((high - low) / step) + 1)]


def legend_of(shown: Sequence[str], models: Iterable[str], width: int) -> tuple[str, float]:
    """Draw a legend of the models shown, wrapped to `width`; return it with its height."""
    x, y = 7.0, 12.0
    parts = []
    for name in shown:
        label = shorten(model_label(name), int((width - 34) / CHAR))
        need = 34 + len(label) * CHAR
        if x > 7 and x + need > width:
            x, y = 7.0, y + 20
        parts.append(mark(style_of(name, models), x, y, 4.5))
        parts.append(text_at(x + 11, y + 4.5, label))
        x += need
    return "".join(parts), y + 16


def mark(style: Style, x: float, y: float, r: float, opacity: float = 1.0) -> str:
    """Draw a model's marker at (x, y), with a radius of about `r`."""
    hollow = style.marker.endswith("ring")
    paint = f"stroke:{style.colour};stroke-width:1.8;opacity:{opacity:g};fill:"
    paint += "var(--paper, #fff)" if hollow else style.colour
    if style.marker in {"ring", "circle"}:
        return element("circle", cx=x, cy=y, r=r, style=paint)
    corners = {
        "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
        "triangle": ((0, -1.25), (1.15, 0.9), (-1.15, 0.9)),
        "down": ((0, 1.25), (1.15, -0.9), (-1.15, -0.9)),
        "cross": ((-1.2, -0.4), (1.2, -0.4), (1.2, 0.4), (-1.2, 0.4)),
    }[style.marker.removesuffix("_ring")]
    points = " ".join(f"{x + r * dx:.1f},{y + r * dy:.1f}" for dx, dy in corners)
    return element("polygon", points=points, style=paint)


def marker(style: Style, size: float, radius: float) -> str:
    """Draw a model's marker as a separate picture, `size` CSS pixels wide and high."""
    half = size / 2
    return element(
        "svg",
        mark(style, 0, 0, radius),
        viewBox=f"{-half:g} {-half:g} {size:g} {size:g}",
        width=size,
        height=size,
        aria_hidden="true",
    )


def line(
    x1: float, y1: float, x2: float, y2: float, colour: str, width: float, opacity: float = 1.0
) -> str:
    """Draw a straight line."""
    style = f"stroke:{colour};stroke-width:{width:g};stroke-opacity:{opacity:g}"
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, style=style)


def text_at(
    x: float,
    y: float,
    text: str,
    anchor: str = "start",
    muted: bool = False,
    weight: int = 400,
) -> str:
    """Draw plain text at (x, y), escaped; `anchor` is start, middle or end."""
    colour = "var(--muted, #666)" if muted else "var(--ink, #222)"
    style = f"fill:{colour}" + (f";font-weight:{weight}" if weight != 400 else "")
    return element("text", escape(text), x=x, y=y, text_anchor=anchor, style=style)


def svg(width: float, height: float, title: str, description: str, parts: Iterable[str]) -> str:
    """Return a whole picture of `parts`, with the text that screen readers read instead."""
    name = f"{title.lower().replace(' ', '-').replace(',', '')}-{width:g}"
    head = element("title", escape(title), id=name)
    head += element("desc", escape(description), id=f"{name}-desc")
    return element(
        "svg",
        head,
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_labelledby=name,
        aria_describedby=f"{name}-desc",
        style=f"width:100%;max-width:{width:g}px;height:auto;font:{FONT}px system-ui,sans-serif",
    )


def element(name: str, *children: str, **attributes: str | float) -> str:
    """Return an SVG element around markup; underscores in attribute names become hyphens."""
    written = "".join(
        f' {key.replace("_", "-")}="{value if isinstance(value, str) else f"{value:.6g}"}"'
        for key, value in attributes.items()
    )
    return f"<{name}{written}>{''.join(children)}</{name}>"
