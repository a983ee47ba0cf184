"""Plots as inline SVG: text stays text, colours follow the page's theme, nothing is loaded.

Every plot takes a width in CSS pixels and is meant to be shown at that size, so that its text is as
large on a phone as on a desk: the page carries a wide and a narrow version. Colours are close to
Okabe and Ito's, which colour-blind readers can tell apart; a model also has its own marker.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anchored.report.escape import escape, shorten
from anchored.report.tables import Results, is_number, model_label, number, percent

FONT = 13
_CHAR = 0.6 * FONT
_CHART_WIDTH = 760
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


_SPARE = len(_MARKERS) - len(_ORDER)


@dataclass(frozen=True, slots=True)
class Style:
    """How a model is drawn: a CSS colour (a variable of the page with a fallback) and a marker."""

    colour: str
    marker: str


def style_of(model: str, models: Iterable[str]) -> Style:
    """The style of `model`: known names keep theirs in every plot, others take the spare ones."""
    others = [name for name in models if name not in _ORDER]
    place = _ORDER.index(model) if model in _ORDER else len(_ORDER) + others.index(model) % _SPARE
    return Style(f"var(--m{place}, {_FALLBACKS[place]})", _MARKERS[place])


def entropy_plot(results: Results, width: int) -> str:
    """Entropy of each attribute, a line a model, with intervals where `by_key` has `low`, `high`.

    Returns the empty string where no model has `by_key`.
    """
    models = [name for name, metrics in results["models"].items() if metrics.get("by_key")]
    keys = list(dict.fromkeys(key for name in models for key in results["models"][name]["by_key"]))
    if not keys:
        return ""
    width = min(width, _CHART_WIDTH)
    legend, top = _legend(models, width)
    pitch, gap, left = 11, 16, _label_width(keys, width)
    block = pitch * len(models) + gap
    peaks = (_entropy(results, name, key) for name in models for key in keys)
    scale = _Scale(0, _ceiling(max(peaks, default=0)), left, width - 44)
    height = top + block * len(keys) + 40
    parts = [legend, _grid(scale, top, height - 40), _axis_title("nats", scale, height)]
    for row, key in enumerate(keys):
        y = top + row * block + gap / 2
        parts.append(_text(left - 10, y + pitch * len(models) / 2 + 4, shorten(key, 16), "end"))
        for line, name in enumerate(models):
            entry = results["models"][name]["by_key"].get(key) or {}
            parts.append(_lollipop(entry, scale, y + pitch * (line + 0.5), style_of(name, models)))
    description = "; ".join(_entropy_words(results, name, keys) for name in models)
    return _svg(width, height, "Entropy of each attribute, by model", description, parts)


def _entropy(results: Results, model: str, key: str) -> float:
    value = (results["models"][model]["by_key"].get(key) or {}).get("entropy")
    return value if is_number(value) else 0.0


def _entropy_words(results: Results, model: str, keys: Sequence[str]) -> str:
    values = ", ".join(f"{key} {number(_entropy(results, model, key))}" for key in keys)
    return f"{model_label(model)}: {values}"


def _lollipop(entry: Mapping[str, Any], scale: _Scale, y: float, style: Style) -> str:
    value = entry.get("entropy")
    if not is_number(value):
        return ""
    stem = _line(scale(0), y, scale(value), y, style.colour, 1.5, opacity=0.45)
    whisker = _whisker(entry, scale, y, style.colour)
    return stem + whisker + _marker(style, scale(value), y, 4)


def _whisker(bounds: Mapping[str, Any] | None, scale: _Scale, y: float, colour: str) -> str:
    if not bounds or not (is_number(bounds.get("low")) and is_number(bounds.get("high"))):
        return ""
    return _line(scale(bounds["low"]), y, scale(bounds["high"]), y, colour, 3.5, opacity=0.5)


def top_values_plot(results: Results, width: int) -> str:
    """The most frequent values of each attribute: a bar a model, a block a value, its share wide.

    Shows base, standard and anchored; returns the empty string where they carry no `by_key`.
    """
    shown = [
        name
        for name in ("base", "standard", "anchored")
        if results["models"].get(name, {}).get("by_key")
    ]
    keys = list(dict.fromkeys(key for name in shown for key in results["models"][name]["by_key"]))
    if not keys:
        return ""
    columns = 2 if width >= 600 else 1
    block_width = (width - 32 * (columns - 1)) / columns
    block_height = 26 + 26 * len(shown) + 18
    parts = []
    for place, key in enumerate(keys):
        x, y = (
            (place % columns) * (block_width + 32),
            (place // columns) * block_height,
        )
        parts.append(_text(x, y + 18, shorten(key, 40), weight=600))
        for row, name in enumerate(shown):
            shares = top_shares(results["models"][name], key)
            style = style_of(name, shown)
            parts.append(_strip(name, shares, style, x, y + 26 + 26 * row, block_width))
    height = block_height * math.ceil(len(keys) / columns)
    description = "; ".join(_top_words(results, name, keys) for name in shown)
    return _svg(width, height, "Most frequent values before and after SFT", description, parts)


def top_shares(metrics: Mapping[str, Any], key: str) -> list[tuple[str, float]]:
    """The most frequent values of `key` with their share of the samples, the largest first."""
    top = (metrics["by_key"].get(key) or {}).get("top") or []
    total = max(metrics.get("n") or 0, sum(count for _, count in top))
    return [(str(value), count / total) for value, count in top]


def _top_words(results: Results, model: str, keys: Sequence[str]) -> str:
    firsts = ((key, top_shares(results["models"][model], key)[:1]) for key in keys)
    said = (f"{key} {shorten(top[0][0], 40)} {percent(top[0][1])}" for key, top in firsts if top)
    return f"{model_label(model)}: {', '.join(said)}"


def _strip(
    model: str,
    shares: Sequence[tuple[str, float]],
    style: Style,
    x: float,
    y: float,
    width: float,
) -> str:
    label_width, height = 74, 22
    room = width - label_width
    left = x + label_width
    label = model.split("_")[0]
    parts = [_text(x, y + 15, label, muted=True)]
    rest = "fill:var(--rest, #eee)"
    parts.append(_element("rect", x=left, y=y, width=room, height=height, rx=2, style=rest))
    for rank, (value, share) in enumerate(shares):
        parts.append(_block(value, share, style, rank, (left, y, share * room, height)))
        left += share * room
    return "".join(parts)


def _block(
    value: str, share: float, style: Style, rank: int, box: tuple[float, float, float, float]
) -> str:
    x, y, width, height = box
    fits = int((width - 10) / _CHAR)
    name = shorten(value, 80)
    label = next((t for t in (f"{name} {percent(share)}", name) if len(t) <= fits), "")
    if not label and fits >= 5:
        label = shorten(value, fits)
    rect = _element(
        "rect",
        _element("title", escape(f"{name}: {percent(share)}")),
        x=x,
        y=y,
        width=max(0.0, width - 1.5),
        height=height,
        rx=2,
        style=f"fill:{style.colour};fill-opacity:{max(0.16, 0.46 - 0.06 * rank):.2f}",
    )
    return rect + (_text(x + 5, y + 15, label) if label else "")


@dataclass(frozen=True, slots=True)
class _Point:
    """A model in the plane: its place, the ends of its intervals, fainter places of its seeds."""

    x: float
    y: float
    across: Mapping[str, Any] | None = None
    up: Mapping[str, Any] | None = None
    seeds: tuple[tuple[float, float], ...] = ()


def scatter_plot(results: Results, width: int) -> str:
    """Semantic entropy against adoption: the upper right corner has learnt and kept its range.

    Intervals on both axes and a faint mark a seed where the results have them. Returns the empty
    string where no model has both numbers.
    """
    points = {}
    for name, metrics in results["models"].items():
        if place := _place(metrics):
            bounds = metrics.get("intervals") or {}
            seeds = [at for seed in metrics.get("by_seed") or [] if (at := _place(seed))]
            points[name] = _Point(
                *place,
                bounds.get("adoption"),
                bounds.get("semantic_entropy"),
                tuple(seeds) if len(seeds) > 1 else (),
            )
    labels = ("adoption: share of answers in the taught form", "semantic entropy (nats)")
    return _scatter(points, width, "Diversity against adoption", labels)


def frontier_plot(results: Results, width: int) -> str:
    """`gap_closed` against `adoption_far`: is the taught form carried to what SFT never held.

    Returns the empty string where no treatment has both numbers.
    """
    points = {}
    for name, compared in (results.get("comparisons") or {}).items():
        x = results["models"].get(name, {}).get("adoption_far")
        gap = compared.get("gap_closed") or {}
        if is_number(x) and is_number(gap.get("mean")):
            points[name] = _Point(x, gap["mean"], up=gap)
    labels = ("adoption_far: adoption far from SFT's semantics", "gap_closed")
    return _scatter(points, width, "Gap closed against adoption far from SFT", labels)


def _place(metrics: Mapping[str, Any]) -> tuple[float, float] | None:
    x, y = metrics.get("adoption"), metrics.get("semantic_entropy")
    return (float(x), float(y)) if is_number(x) and is_number(y) else None


def _scatter(points: Mapping[str, _Point], width: int, title: str, labels: tuple[str, str]) -> str:
    """Points by model over shares from 0 to 1; `labels` of the axis across and the one up."""
    if not points:
        return ""
    width = min(width, _CHART_WIDTH)
    legend, top = _legend(list(points), width)
    height = (400 if width >= 600 else 320) + round(top)
    ends = [end for point in points.values() for end in (_ends(point.up) or (point.y, point.y))]
    across = _Scale(0, 1, 46, width - 24)
    up = _Scale(min(0.0, *ends), _ceiling(max(ends)), height - 52, top + 26)
    parts = [legend, _frame(across, up), _axis_title(labels[0], across, height)]
    parts.append(_text(0, top + 12, labels[1], muted=True))
    parts += [_drawn(point, across, up, style_of(name, points)) for name, point in points.items()]
    description = "; ".join(
        f"{model_label(name)}: {labels[1]} {number(point.y)}, {labels[0]} {percent(point.x)}"
        for name, point in points.items()
    )
    return _svg(width, height, title, description, parts)


def _drawn(point: _Point, across: _Scale, up: _Scale, style: Style) -> str:
    parts = [_whisker(point.across, across, up(point.y), style.colour)]
    if high := _ends(point.up):
        x = across(point.x)
        parts.append(_line(x, up(high[0]), x, up(high[1]), style.colour, 3.5, opacity=0.5))
    parts += [_marker(style, across(x), up(y), 3, opacity=0.35) for x, y in point.seeds]
    return "".join(parts) + _marker(style, across(point.x), up(point.y), 6)


def _ends(bounds: Mapping[str, Any] | None) -> tuple[float, float] | None:
    if not bounds or not (is_number(bounds.get("low")) and is_number(bounds.get("high"))):
        return None
    return bounds["low"], bounds["high"]


def _frame(across: _Scale, up: _Scale) -> str:
    parts = []
    for tick in _ticks(0, 1):
        x = across(tick)
        parts.append(_line(x, up.end, x, up.start, "var(--rule, #ddd)", 1))
        parts.append(_text(x, up.start + 18, percent(tick), "middle", muted=True))
    for tick in _ticks(up.low, up.high):
        y = up(tick)
        parts.append(_line(across.start, y, across.end, y, "var(--rule, #ddd)", 1))
        parts.append(_text(across.start - 8, y + 4, f"{tick:g}", "end", muted=True))
    return "".join(parts)


@dataclass(frozen=True, slots=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def _ceiling(peak: float) -> float:
    """The end of an axis: a little above `peak`, at a tick."""
    step = _step(peak)
    return step * math.ceil(peak * 1.02 / step) if peak > 0 else 1.0


def _step(span: float) -> float:
    return next((step for step in (0.25, 0.5, 1, 2, 5) if span / step <= 6), 10.0)


def _ticks(low: float, high: float) -> list[float]:
    step = _step(high - low)
    return [low + step * i for i in range(round((high - low) / step) + 1)]


def _grid(scale: _Scale, top: float, bottom: float) -> str:
    parts = []
    for tick in _ticks(scale.low, scale.high):
        x = scale(tick)
        parts.append(_line(x, top, x, bottom, "var(--rule, #ddd)", 1))
        parts.append(_text(x, bottom + 16, f"{tick:g}", "middle", muted=True))
    return "".join(parts)


def _axis_title(title: str, scale: _Scale, height: float) -> str:
    return _text((scale.start + scale.end) / 2, height - 6, title, "middle", muted=True)


def _label_width(labels: Sequence[str], width: int) -> float:
    longest = max(len(shorten(label, 16)) for label in labels)
    return min(longest * _CHAR + 14, width / 3)


def _legend(models: Sequence[str], width: int) -> tuple[str, float]:
    """Marker and name of each model, wrapped to `width`; with the height it takes."""
    x, y = 7.0, 12.0
    parts = []
    for name in models:
        label = model_label(name)
        need = 34 + len(label) * _CHAR
        if x > 7 and x + need > width:
            x, y = 7.0, y + 20
        parts.append(_marker(style_of(name, models), x, y, 4.5))
        parts.append(_text(x + 11, y + 4.5, label))
        x += need
    return "".join(parts), y + 16


def _marker(style: Style, x: float, y: float, r: float, opacity: float = 1.0) -> str:
    hollow = style.marker.endswith("ring")
    paint = f"stroke:{style.colour};stroke-width:1.8;opacity:{opacity:g};fill:"
    paint += "var(--paper, #fff)" if hollow else style.colour
    if style.marker in {"ring", "circle"}:
        return _element("circle", cx=x, cy=y, r=r, style=paint)
    corners = {
        "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
        "triangle": ((0, -1.25), (1.15, 0.9), (-1.15, 0.9)),
        "down": ((0, 1.25), (1.15, -0.9), (-1.15, -0.9)),
        "cross": ((-1.2, -0.4), (1.2, -0.4), (1.2, 0.4), (-1.2, 0.4)),
    }[style.marker.removesuffix("_ring")]
    points = " ".join(f"{x + r * dx:.1f},{y + r * dy:.1f}" for dx, dy in corners)
    return _element("polygon", points=points, style=paint)


def _line(
    x1: float, y1: float, x2: float, y2: float, colour: str, width: float, opacity: float = 1.0
) -> str:
    style = f"stroke:{colour};stroke-width:{width:g};stroke-opacity:{opacity:g}"
    return _element("line", x1=x1, y1=y1, x2=x2, y2=y2, style=style)


def _text(
    x: float,
    y: float,
    text: str,
    anchor: str = "start",
    muted: bool = False,
    weight: int = 400,
) -> str:
    colour = "var(--muted, #666)" if muted else "var(--ink, #222)"
    style = f"fill:{colour}" + (f";font-weight:{weight}" if weight != 400 else "")
    return _element("text", escape(text), x=x, y=y, text_anchor=anchor, style=style)


def _svg(width: float, height: float, title: str, description: str, parts: Iterable[str]) -> str:
    name = f"{title.lower().replace(' ', '-').replace(',', '')}-{width:g}"
    head = _element("title", escape(title), id=name)
    head += _element("desc", escape(description), id=f"{name}-desc")
    return _element(
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


def _element(name: str, *children: str, **attributes: str | float) -> str:
    """One SVG element around markup; underscores in attribute names become hyphens."""
    written = "".join(
        f' {key.replace("_", "-")}="{value if isinstance(value, str) else f"{value:.6g}"}"'
        for key, value in attributes.items()
    )
    return f"<{name}{written}>{''.join(children)}</{name}>"
