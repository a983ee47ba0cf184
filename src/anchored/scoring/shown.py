"""What a report shows of the texts: some prompts, some texts of each, and where they lie.

Neither is picked: both are evenly spaced over what was scored, so that a page stays readable with a
thousand prompts. The map of a prompt is drawn from all of its texts, shown or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anchored.annotation import Annotation
from anchored.data.generations import Generations, spread
from anchored.metrics.embedding import principal_axes
from anchored.scoring.measure import Measured

MAX_TEXTS = 600
PROMPTS_WANTED = 6  # before more texts of each are


@dataclass(frozen=True, slots=True)
class ShownText:
    """One text: its place among its prompt's texts, and what was found in it.

    Attributes:
        number: from 1, in the order of the file.
        text: whole.
        written: the annotation that the model wrote before it, None where it wrote none.
        read: the attributes read off it; empty where none were.
        same_as: the number of the first text of its prompt that says the same; its own if it is.
        score: the file's own quality of it, None where it has none; what is scored is the first
            text of those that say the same.
        at: its place on the map, on the two axes of `ShownPrompt.variance`.
    """

    number: int
    text: str
    written: Annotation | None
    read: Annotation
    same_as: int
    score: float | None
    at: tuple[float, float]


@dataclass(frozen=True, slots=True)
class ShownPrompt:
    """A prompt, its texts by model, and the share of variance that each axis of its map holds."""

    prompt: str
    texts: Mapping[str, tuple[ShownText, ...]]
    variance: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Shown:
    """The prompts shown, and how many there are; texts of each a model, and how many there are."""

    prompts: tuple[ShownPrompt, ...]
    of_prompts: int
    texts: int
    of_texts: int


def choose(sets: Sequence[Generations], measured: Mapping[str, Measured]) -> Shown:
    """At most `MAX_TEXTS` texts of these sets, evenly spaced over prompts and over each's texts.

    Args:
        sets: with the same prompts in the same order, and equally many texts of each.
        measured: by the sets' names.
    """
    prompts, k = len(sets[0].prompts), len(sets[0].texts[0])
    wanted = min(prompts, PROMPTS_WANTED)
    texts = max(1, min(k, MAX_TEXTS // (len(sets) * wanted)))
    places = spread(prompts, max(1, MAX_TEXTS // (len(sets) * texts)))
    return Shown(
        tuple(_prompt(sets, measured, p, spread(k, texts)) for p in places), prompts, texts, k
    )


def _prompt(
    sets: Sequence[Generations], measured: Mapping[str, Measured], p: int, chosen: Sequence[int]
) -> ShownPrompt:
    vectors = [measured[found.name].vectors[p] for found in sets]
    places, shares = principal_axes(np.concatenate(vectors))
    parts = np.split(places, np.cumsum([len(part) for part in vectors])[:-1])
    texts = {
        found.name: tuple(_text(found, measured[found.name], p, i, part[i]) for i in chosen)
        for found, part in zip(sets, parts, strict=True)
    }
    return ShownPrompt(sets[0].prompts[p], texts, (float(shares[0]), float(shares[1])))


def _text(
    found: Generations, measured: Measured, p: int, i: int, at: NDArray[np.float64]
) -> ShownText:
    partition = measured.partitions[p] or range(len(found.texts[p]))
    scores = found.scores[p]
    return ShownText(
        number=i + 1,
        text=found.texts[p][i],
        written=found.annotation(p, i),
        read=measured.readings[p][i] if measured.readings[p] else Annotation(),
        same_as=list(partition).index(partition[i]) + 1,
        score=scores[i] if scores else None,
        at=(float(at[0]), float(at[1])),
    )
