"""Prepare what `templates/prompt.html.j2` shows of each prompt: its texts and a map of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from markupsafe import Markup

from anchored.escape import shorten
from anchored.formatting import number
from anchored.report.drawing import marker, style_of
from anchored.report.tables import model_label
from anchored.scoring.shown import Shown, ShownPrompt, ShownText

_ASPECT = 1.6  # width over height of a map, as in page.css
_MARGIN = 1.14  # size of the map relative to the extent of its points
_SAME_PLACE = 3  # decimals to which coordinates must agree to count as one place
_BESIDE = 13  # pixels between markers of several models in one place
_TIP_CHARS = 260


def samples(shown: Shown, models: Iterable[str]) -> list[dict[str, Any]]:
    """Return the template's data for each prompt."""
    names = list(models)
    return [_prompt(one, place, names) for place, one in enumerate(shown.prompts, 1)]


def columns(one: ShownPrompt, prefix: str, models: Iterable[str]) -> list[dict[str, Any]]:
    """Return the template's data for the texts of one prompt, without a map."""
    names = list(models)
    return [_column(one, prefix, model, names) for model in one.texts]


def _prompt(one: ShownPrompt, place: int, models: Sequence[str]) -> dict[str, Any]:
    points = _points(one)
    frame = _Frame.around(points)
    return {
        "text": one.prompt,
        "variance": one.variance,
        "points": [_link(point, place, frame, models) for point in points],
        "columns": [_column(one, place, model, models) for model in one.texts],
    }


@dataclass(frozen=True, slots=True)
class _Point:
    """The texts of one model at one place of the map.

    `shift` moves the marker aside, in CSS pixels, if other models are at the same place.
    """

    model: str
    texts: tuple[ShownText, ...]
    shift: float

    @property
    def at(self) -> tuple[float, float]:
        return self.texts[0].at

    @property
    def name(self) -> str:
        numbers = ", ".join(str(text.number) for text in self.texts[:8])
        more = len(self.texts) - 8
        return f"{model_label(self.model)} · {numbers}{f' and {more} more' if more > 0 else ''}"


def _points(one: ShownPrompt) -> list[_Point]:
    found: dict[tuple[float, float], dict[str, list[ShownText]]] = {}
    for model, texts in one.texts.items():
        for text in texts:
            place = round(text.at[0], _SAME_PLACE), round(text.at[1], _SAME_PLACE)
            found.setdefault(place, {}).setdefault(model, []).append(text)
    points = [
        _Point(model, tuple(texts), _BESIDE * (i - (len(models) - 1) / 2))
        for models in found.values()
        for i, (model, texts) in enumerate(models.items())
    ]
    order = list(one.texts)
    return sorted(points, key=lambda point: (order.index(point.model), point.texts[0].number))


@dataclass(frozen=True, slots=True)
class _Frame:
    """The centre and half the width of a map; both axes have the same scale."""

    x: float
    y: float
    half: float

    @classmethod
    def around(cls, points: Sequence[_Point]) -> _Frame:
        xs, ys = zip(*(point.at for point in points), strict=True)
        x, y = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
        half = max(max(xs) - x, (max(ys) - y) * _ASPECT) * _MARGIN
        return cls(x, y, half or 1.0)

    def place(self, at: tuple[float, float]) -> tuple[float, float]:
        """Return the position in per cent from the left and from the top."""
        across = (at[0] - self.x) / self.half
        up = (at[1] - self.y) / self.half * _ASPECT
        return 50 + 50 * across, 50 - 50 * up


def _link(point: _Point, place: int, frame: _Frame, models: Sequence[str]) -> dict[str, Any]:
    left, top = frame.place(point.at)
    count = len(point.texts)
    radius = min(4 * sqrt(count), 14)
    first = point.texts[0]
    return {
        "target": _target(place, models.index(point.model), first),
        "name": point.name,
        "text": shorten(first.text[: 4 * _TIP_CHARS], _TIP_CHARS) or "(empty)",
        "left": left,
        "top": top,
        "shift": point.shift,
        "layer": max(1, 99 - count),  # small markers stay clickable, on top of large ones
        "marker": Markup(marker(style_of(point.model, models), 2 * radius + 8, radius)),
    }


def _target(place: int | str, model: int, text: ShownText) -> str:
    return f"text-{place}-{model + 1}-{text.number}"


def _column(
    one: ShownPrompt, place: int | str, model: str, models: Sequence[str]
) -> dict[str, Any]:
    style, index = style_of(model, models), models.index(model)
    return {
        "marker": Markup(marker(style, 16, 5)),
        "label": model_label(model),
        "colour": style.colour,
        "answers": [_answer(text, _target(place, index, text)) for text in one.texts[model]],
    }


def _answer(text: ShownText, target: str) -> dict[str, Any]:
    said = ""
    if text.same_as != text.number:
        said = f"says the same as {text.same_as}"
    elif text.score is not None:
        said = f"score {number(text.score, 1)}"
    found = text.written or text.read
    return {
        "target": target,
        "number": text.number,
        "said": said,
        "tags": str(found).split("\n") if found else [],
        "read": not text.written,
        "text": text.text,
    }
