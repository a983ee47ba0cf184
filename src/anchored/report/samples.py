"""Prompt by prompt: a map of the texts, and the texts side by side. No script: links and folds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt

from anchored.escape import escape, shorten
from anchored.formatting import number, percent
from anchored.report.drawing import marker, style_of
from anchored.report.page import Section, prose, scrolling, tags
from anchored.report.tables import model_label
from anchored.scoring.shown import Shown, ShownPrompt, ShownText

_ASPECT = 1.6  # width over height of a map, as in page.css
_MARGIN = 1.14  # of the map around its outermost points
_SAME_PLACE = 3  # decimals to which two places must agree to be one
_BESIDE = 13  # pixels between markers of several models in one place
_TIP_CHARS = 260


def samples(shown: Shown, models: Iterable[str], chars: int) -> Section:
    """The section, each text cut to so many characters; empty where none may be shown."""
    names = list(models)
    prompts = "".join(
        _prompt(one, number, names, chars) for number, one in enumerate(shown.prompts, 1)
    )
    intro = (
        f"{len(shown.prompts)} of {shown.of_prompts} prompts and {shown.texts} of "
        f"{shown.of_texts} texts each, evenly spaced, not picked. Choose a prompt. On its map near "
        "texts say similar things: point at a marker, or reach it with the Tab key, to read its "
        "text; follow it to the text below. Filled tags are the annotation that the model wrote "
        "before its text; dotted ones were read off the text."
    )
    return Section("Texts", intro, prompts if chars else "")


def _prompt(one: ShownPrompt, place: int, models: Sequence[str], chars: int) -> str:
    title = shorten(one.prompt, 160) or "(no prompt)"
    columns = "".join(_column(one, place, model, models, chars) for model in one.texts)
    whole = f'<p class="asked" dir="auto">{prose(one.prompt, chars)}</p>'
    return (
        f'<details class="prompt" name="prompt"{" open" if place == 1 else ""}>'
        f"<summary><h3><b>{place}</b> {escape(title)}</h3></summary>"
        f"{whole if title.endswith('…') else ''}{_map(one, place, models)}"
        f"{scrolling('Texts side by side', columns, 'columns')}</details>"
    )


@dataclass(frozen=True, slots=True)
class _Point:
    """Texts of one model at one place of the map.

    `shift` is how far beside it the marker stands, in CSS pixels, where other models have it too.
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


def _map(one: ShownPrompt, place: int, models: Sequence[str]) -> str:
    points = _points(one)
    frame = _Frame.around(points)
    links = "".join(_link(point, place, frame, models) for point in points)
    legend = "".join(f"<li>{_named(model, models)}</li>" for model in one.texts)
    first, second = (percent(share) for share in one.variance)
    label = escape(f"Map of the texts for {shorten(one.prompt, 60) or 'no prompt'}")
    return (
        f'<figure class="map" aria-label="{label}"><ul class="legend">{legend}</ul>'
        f'<div class="plane"><p class="tip hint">Point at a marker to read its text.</p>{links}'
        f"</div><figcaption>Embeddings of all texts of the prompt on their first two principal "
        f"axes: the one across holds {first} of their variance, the one up {second}; what the "
        f"others hold does not show. A marker grows with the number of texts in its place; "
        f"models with the same place stand side by side."
        f"</figcaption></figure>"
    )


@dataclass(frozen=True, slots=True)
class _Frame:
    """The middle of a map, and half of its width; a length across is as long as the same one up."""

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
        """Per cent from the left and from the top."""
        across = (at[0] - self.x) / self.half
        up = (at[1] - self.y) / self.half * _ASPECT
        return 50 + 50 * across, 50 - 50 * up


def _link(point: _Point, place: int, frame: _Frame, models: Sequence[str]) -> str:
    left, top = frame.place(point.at)
    count = len(point.texts)
    radius = min(4 * sqrt(count), 14)
    first = point.texts[0]
    text = shorten(first.text[: 4 * _TIP_CHARS], _TIP_CHARS) or "(empty)"
    target = _target(place, models.index(point.model), first)
    picture = marker(style_of(point.model, models), 2 * radius + 8, radius)
    return (
        f'<a href="#{target}" aria-label="{escape(f"{point.name}: {text[:90]}")}">'
        f'<span class="point" style="left:{left:.2f}%;top:{top:.2f}%;'
        f'margin-left:{point.shift:g}px;z-index:{max(1, 99 - count)}">{picture}</span>'
        f'<span class="tip" dir="auto"><b>{escape(point.name)}</b> {escape(text)}'
        f"</span></a>"
    )


def _target(place: int, model: int, text: ShownText) -> str:
    return f"text-{place}-{model + 1}-{text.number}"


def _named(model: str, models: Sequence[str]) -> str:
    return f"{marker(style_of(model, models), 16, 5)} {escape(model_label(model))}"


def _column(one: ShownPrompt, place: int, model: str, models: Sequence[str], chars: int) -> str:
    target = models.index(model)
    answers = "".join(
        f"<li>{_answer(text, _target(place, target, text), chars)}</li>"
        for text in one.texts[model]
    )
    colour = style_of(model, models).colour
    return (
        f'<div class="column" style="--c:{colour}"><h4>{_named(model, models)}</h4>'
        f"<ul>{answers}</ul></div>"
    )


def _answer(text: ShownText, target: str, chars: int) -> str:
    flags = [f"<b>{text.number}</b>"]
    if text.same_as != text.number:
        flags.append(f"says the same as {text.same_as}")
    elif text.score is not None:
        flags.append(f"score {number(text.score, 1)}")
    found = text.written or text.read
    chips = tags(str(found).split("\n"), read=not text.written) if found else ""
    return (
        f'<article class="answer" id="{target}" tabindex="0" aria-label="Text {text.number}">'
        f'<p class="flags">{" · ".join(flags)}</p>{chips}'
        f'<p class="told" dir="auto">{prose(text.text, chars) or "(empty)"}</p></article>'
    )
