"""Plots of `results.json` as inline SVG.

Every plot takes a width in CSS pixels and is meant to be shown at that size, so that its text is as
large on a phone as on a desktop: the page has a wide and a narrow version.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anchored.escape import escape, shorten
from anchored.formatting import is_number, number, percent
from anchored.report.drawing import (
    CHAR,
    Scale,
    Style,
    ceiling,
    element,
    legend_of,
    line,
    mark,
    rounded,
    style_of,
    svg,
    text_at,
    ticks,
)
from anchored.report.tables import Results, model_label
from anchored.scoring.falls import main_metric

_CHART_WIDTH = 760
_FILL = 0.38  # a higher opacity would hide the text of a block in dark mode
_STRIPS = 5  # most models that stay distinguishable below each other


def entropy_plot(results: Results, width: int) -> str:
    """Plot the entropy of each attribute, one line per model, with the intervals in `by_key`.

    The entropy is within prompts if that is known, else over all of a model's texts. Returns the
    empty string if no model has `by_key`.
    """
    models = [name for name, metrics in results["models"].items() if metrics.get("by_key")]
    keys = list(dict.fromkeys(key for name in models for key in results["models"][name]["by_key"]))
    if not keys:
        return ""
    width = min(width, _CHART_WIDTH)
    legend, top = legend_of(models, results["models"], width)
    pitch, gap, left = 11, 16, _label_width(keys, width)
    block = pitch * len(models) + gap
    entries = (_entropy(results, name, key) for name in models for key in keys)
    ends = (end for entry in entries for end in (entry.get("high"), entry.get("mean")))
    scale = Scale(0, ceiling(max(filter(is_number, ends), default=0)), left, width - 44)
    within = all(results["models"][models[0]]["by_key"][k].get("within_prompts") for k in keys)
    unit = "nats, mean over prompts" if within else "nats"
    height = top + block * len(keys) + 40
    parts = [legend, _grid(scale, top, height - 40), _axis_title(unit, scale, height)]
    for row, key in enumerate(keys):
        y = top + row * block + gap / 2
        parts.append(text_at(left - 10, y + pitch * len(models) / 2 + 4, shorten(key, 16), "end"))
        for place, name in enumerate(models):
            style = style_of(name, results["models"])
            parts.append(
                _lollipop(_entropy(results, name, key), scale, y + pitch * (place + 0.5), style)
            )
    description = "; ".join(_entropy_words(results, name, keys) for name in models)
    return svg(width, height, "Entropy of each attribute, by model", description, parts)


def _entropy(results: Results, model: str, key: str) -> Mapping[str, Any]:
    """Return `mean` and, if known, `low` and `high`."""
    entry = results["models"][model]["by_key"].get(key) or {}
    return entry.get("within_prompts") or {**entry, "mean": entry.get("entropy")}


def _entropy_words(results: Results, model: str, keys: Sequence[str]) -> str:
    values = ", ".join(f"{key} {number(_entropy(results, model, key)['mean'])}" for key in keys)
    return f"{model_label(model)}: {values}"


def _lollipop(entry: Mapping[str, Any], scale: Scale, y: float, style: Style) -> str:
    value = entry["mean"]
    if not is_number(value):
        return ""
    stem = line(scale(0), y, scale(value), y, style.colour, 1.5, opacity=0.45)
    whisker = _whisker(entry, scale, y, style.colour)
    return stem + whisker + mark(style, scale(value), y, 4)


def _whisker(bounds: Mapping[str, Any] | None, scale: Scale, y: float, colour: str) -> str:
    if not bounds or not (is_number(bounds.get("low")) and is_number(bounds.get("high"))):
        return ""
    return line(scale(bounds["low"]), y, scale(bounds["high"]), y, colour, 3.5, opacity=0.5)


def course_plot(results: Results, width: int) -> str:
    """Plot the main diversity figure over three or more sets, in their order, with its intervals.

    Returns the empty string for fewer sets.
    """
    models, metric = results["models"], main_metric(results)
    if len(models) < 3 or metric is None:
        return ""
    width = min(width, _CHART_WIDTH)
    bounds = [model["intervals"].get(metric) for model in models.values()]
    values = [model[metric] for model in models.values()]
    ends = [end for ends in map(_ends, bounds) for end in ends or ()]
    height = 220
    up = Scale(*rounded([0.0, *values, *ends]), height - 30, 28)
    across = Scale(0, len(models) - 1, 40, width - 20)
    names = [shorten(model_label(name), 60) for name in models]
    frame = [text_at(0, 14, metric, muted=True)]
    for tick in ticks(up.low, up.high):
        y = up(tick)
        frame.append(line(40, y, width - 20, y, "var(--rule, #ddd)", 1))
        frame.append(text_at(32, y + 4, f"{tick:g}", "end", muted=True))
    points = [(across(place), up(value)) for place, value in enumerate(values)]
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    path = element("polyline", points=corners, style="fill:none;stroke:var(--muted);stroke-width:1")
    parts = [*frame, path]
    for name, (x, y), found in zip(models, points, map(_ends, bounds), strict=True):
        style = style_of(name, models)
        if found:
            parts.append(line(x, up(found[0]), x, up(found[1]), style.colour, 3.5, opacity=0.5))
        parts.append(mark(style, x, y, 5))
    parts += _course_labels(names, across, height)
    said = "; ".join(f"{n}: {number(v)}" for n, v in zip(names, values, strict=True))
    return svg(width, height, f"{metric} by set", said, parts)


def _course_labels(names: Sequence[str], across: Scale, height: float) -> list[str]:
    """Label the sets below their points by what tells them apart; only the ends if it is tight."""
    columns = zip(*(name.lower() for name in names), strict=False)
    start = sum(1 for _ in itertools.takewhile(lambda letters: len(set(letters)) == 1, columns))
    last = len(names) - 1
    room = int((across.end - across.start) / last / CHAR) - 1
    labels = []
    for place, name in enumerate(names):
        end = {0: "start", last: "end"}.get(place)
        if end and room < 6:
            label = shorten(name, int((across.end - across.start) / CHAR / 2) - 1)
        elif room < 6:
            continue
        else:
            label = shorten(name[start:] or name, room // 2 + 1 if end else room)
        labels.append(text_at(across(place), height - 8, label, end or "middle", muted=True))
    return labels


def top_values_plot(results: Results, width: int) -> str:
    """Plot the most frequent values of each attribute: one bar per model, one block per value.

    A block is as wide as its value's share. Shows base, standard and anchored, or the first models
    if base or standard is missing; returns the empty string if they have no `by_key`.
    """
    shown = _before_and_after(results)
    keys = list(dict.fromkeys(key for name in shown for key in results["models"][name]["by_key"]))
    if not keys:
        return ""
    columns = 2 if width >= 600 else 1
    block_width = (width - 32 * (columns - 1)) / columns
    block_height = 26 + 26 * len(shown) + 18
    legend, top = legend_of(shown, results["models"], width)
    parts = [legend]
    for place, key in enumerate(keys):
        x, y = (
            (place % columns) * (block_width + 32),
            top + (place // columns) * block_height,
        )
        parts.append(text_at(x, y + 18, shorten(key, 40), weight=600))
        for row, name in enumerate(shown):
            shares = top_shares(results["models"][name], key)
            style = style_of(name, results["models"])
            parts.append(_strip(shares, style, x, y + 26 + 26 * row, block_width))
    height = top + block_height * math.ceil(len(keys) / columns)
    description = "; ".join(_top_words(results, name, keys) for name in shown)
    return svg(width, height, "Most frequent values before and after SFT", description, parts)


def _before_and_after(results: Results) -> list[str]:
    with_keys = [name for name, metrics in results["models"].items() if metrics.get("by_key")]
    known = [name for name in ("base", "standard", "anchored") if name in with_keys]
    return known if {"base", "standard"} <= set(known) else with_keys[:_STRIPS]


def top_shares(metrics: Mapping[str, Any], key: str) -> list[tuple[str, float]]:
    """Return the most frequent values of `key` with their share of the samples, largest first."""
    top = (metrics["by_key"].get(key) or {}).get("top") or []
    total = max(metrics.get("n") or 0, sum(count for _, count in top))
    return [(str(value), count / total) for value, count in top]


def _top_words(results: Results, model: str, keys: Sequence[str]) -> str:
    firsts = ((key, top_shares(results["models"][model], key)[:1]) for key in keys)
    said = (f"{key} {shorten(top[0][0], 40)} {percent(top[0][1])}" for key, top in firsts if top)
    return f"{model_label(model)}: {', '.join(said)}"


def _strip(
    shares: Sequence[tuple[str, float]], style: Style, x: float, y: float, width: float
) -> str:
    margin, height = 22, 22
    room = width - margin
    left = x + margin
    parts = [mark(style, x + 7, y + height / 2, 4.5)]
    rest = "fill:var(--rest, #eee)"
    parts.append(element("rect", x=left, y=y, width=room, height=height, rx=2, style=rest))
    for rank, (value, share) in enumerate(shares):
        parts.append(_block(value, share, style, rank, (left, y, share * room, height)))
        left += share * room
    return "".join(parts)


def _block(
    value: str, share: float, style: Style, rank: int, box: tuple[float, float, float, float]
) -> str:
    x, y, width, height = box
    fits = int((width - 10) / CHAR)
    name = shorten(value, 80)
    label = next((t for t in (f"{name} {percent(share)}", name) if len(t) <= fits), "")
    if not label and fits >= 5:
        label = shorten(value, fits)
    rect = element(
        "rect",
        element("title", escape(f"{name}: {percent(share)}")),
        x=x,
        y=y,
        width=max(0.0, width - 1.5),
        height=height,
        rx=2,
        style=f"fill:{style.colour};fill-opacity:{max(0.16, _FILL - 0.05 * rank):.2f}",
    )
    return rect + (text_at(x + 5, y + 15, label) if label else "")


@dataclass(frozen=True, slots=True)
class _Point:
    """A model in the plane: its place, the ends of its intervals, and the places of its seeds.

    `path` holds its places in the order of rising temperature.
    """

    x: float
    y: float
    across: Mapping[str, Any] | None = None
    up: Mapping[str, Any] | None = None
    seeds: tuple[tuple[float, float], ...] = ()
    path: tuple[tuple[float, float], ...] = ()


def scatter_plot(results: Results, width: int) -> str:
    """Plot semantic entropy against adoption: models in the upper right learnt and stayed diverse.

    Shows intervals on both axes and one faint mark per seed, if the results have them. Returns the
    empty string if no model has both numbers.
    """
    axes = _Axes("adoption: share of answers in the taught form", "semantic entropy (nats)")
    points = _points(results, "adoption", "semantic_entropy")
    return _scatter(points, results, width, "Diversity against adoption", axes)


def frontier_plot(results: Results, width: int) -> str:
    """Plot `gap_closed` against `adoption_far`, which shows if the form transfers to new content.

    Returns the empty string if no treatment has both numbers.
    """
    points = {}
    for name, compared in (results.get("comparisons") or {}).items():
        x = results["models"].get(name, {}).get("adoption_far")
        gap = compared.get("gap_closed") or {}
        if is_number(x) and is_number(gap.get("mean")):
            points[name] = _Point(x, gap["mean"], up=gap)
    axes = _Axes("adoption_far: adoption far from SFT's semantics", "gap_closed")
    return _scatter(points, results, width, "Gap closed against adoption far from SFT", axes)


def trade_off_plot(results: Results, width: int, across: str, up: str) -> str:
    """Plot the metric `up` against `across`, with the intervals of both.

    A line joins the places of a model's temperatures, `by_temperature`: its frontier. Returns the
    empty string if no model has both metrics.
    """
    axes = _Axes(across, up, across_is_share=across.startswith("adoption"))
    points = _points(results, across, up)
    title = f"{up.replace('_', ' ')} against {across.replace('_', ' ')}"
    return _scatter(points, results, width, title[0].upper() + title[1:], axes)


def _points(results: Results, across: str, up: str) -> dict[str, _Point]:
    points = {}
    for name, metrics in results["models"].items():
        if place := _place(metrics, across, up):
            bounds = metrics.get("intervals") or {}
            seeds = _places(metrics.get("by_seed"), across, up)
            sweep = sorted(metrics.get("by_temperature") or [], key=lambda one: one["temperature"])
            points[name] = _Point(
                *place,
                bounds.get(across),
                bounds.get(up),
                seeds if len(seeds) > 1 else (),
                _places(sweep, across, up),
            )
    return points


def _places(
    rows: Sequence[Mapping[str, Any]] | None, across: str, up: str
) -> tuple[tuple[float, float], ...]:
    return tuple(at for row in rows or () if (at := _place(row, across, up)))


def _place(metrics: Mapping[str, Any], across: str, up: str) -> tuple[float, float] | None:
    x, y = metrics.get(across), metrics.get(up)
    return (float(x), float(y)) if is_number(x) and is_number(y) else None


@dataclass(frozen=True, slots=True)
class _Axes:
    """Titles of the horizontal and the vertical axis; a share runs from 0 to 1, in per cent."""

    across: str
    up: str
    across_is_share: bool = True


def _scatter(
    points: Mapping[str, _Point], results: Results, width: int, title: str, axes: _Axes
) -> str:
    if not points:
        return ""
    models = results["models"]
    width = min(width, _CHART_WIDTH)
    legend, top = legend_of(list(points), models, width)
    height = (400 if width >= 600 else 320) + round(top)
    ends = [end for point in points.values() for end in (_ends(point.up) or (point.y, point.y))]
    ends += [y for point in points.values() for _, y in point.path]
    across = _across(points, axes, width)
    up = Scale(*rounded([0.0, *ends]), height - 52, top + 26)
    parts = [legend, _frame(across, up, axes), _axis_title(axes.across, across, height)]
    parts.append(text_at(0, top + 12, axes.up, muted=True))
    parts += [_drawn(point, across, up, style_of(name, models)) for name, point in points.items()]
    said = percent if axes.across_is_share else number
    description = "; ".join(
        f"{model_label(name)}: {axes.up} {number(point.y)}, {axes.across} {said(point.x)}"
        for name, point in points.items()
    )
    return svg(width, height, title, description, parts)


def _across(points: Mapping[str, _Point], axes: _Axes, width: int) -> Scale:
    start, end = 46, width - 24
    if axes.across_is_share:
        return Scale(0, 1, start, end)
    ends = [e for point in points.values() for e in (_ends(point.across) or (point.x, point.x))]
    ends += [x for point in points.values() for x, _ in point.path]
    return Scale(*rounded(ends), start, end)


def _drawn(point: _Point, across: Scale, up: Scale, style: Style) -> str:
    parts = [_whisker(point.across, across, up(point.y), style.colour)]
    if high := _ends(point.up):
        x = across(point.x)
        parts.append(line(x, up(high[0]), x, up(high[1]), style.colour, 3.5, opacity=0.5))
    parts += [mark(style, across(x), up(y), 3, opacity=0.35) for x, y in point.seeds]
    parts.append(_frontier([(across(x), up(y)) for x, y in point.path], style))
    return "".join(parts) + mark(style, across(point.x), up(point.y), 6)


def _frontier(path: Sequence[tuple[float, float]], style: Style) -> str:
    if len(path) < 2:
        return ""
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in path)
    drawn = element(
        "polyline", points=corners, style=f"fill:none;stroke:{style.colour};stroke-width:1.5"
    )
    return drawn + "".join(mark(style, x, y, 3) for x, y in path)


def _ends(bounds: Mapping[str, Any] | None) -> tuple[float, float] | None:
    if not bounds or not (is_number(bounds.get("low")) and is_number(bounds.get("high"))):
        return None
    return bounds["low"], bounds["high"]


def _frame(across: Scale, up: Scale, axes: _Axes) -> str:
    parts = []
    for tick in ticks(across.low, across.high):
        x = across(tick)
        label = percent(tick) if axes.across_is_share else f"{tick:g}"
        parts.append(line(x, up.end, x, up.start, "var(--rule, #ddd)", 1))
        parts.append(text_at(x, up.start + 18, label, "middle", muted=True))
    for tick in ticks(up.low, up.high):
        y = up(tick)
        parts.append(line(across.start, y, across.end, y, "var(--rule, #ddd)", 1))
        parts.append(text_at(across.start - 8, y + 4, f"{tick:g}", "end", muted=True))
    return "".join(parts)


def _grid(scale: Scale, top: float, bottom: float) -> str:
    parts = []
    for tick in ticks(scale.low, scale.high):
        x = scale(tick)
        parts.append(line(x, top, x, bottom, "var(--rule, #ddd)", 1))
        parts.append(text_at(x, bottom + 16, f"{tick:g}", "middle", muted=True))
    return "".join(parts)


def _axis_title(title: str, scale: Scale, height: float) -> str:
    return text_at((scale.start + scale.end) / 2, height - 6, title, "middle", muted=True)


def _label_width(labels: Sequence[str], width: int) -> float:
    longest = max(len(shorten(label, 16)) for label in labels)
    return min(longest * CHAR + 14, width / 3)
