"""Choose the prompts and texts that a report shows, and place them on a map.

Nothing is hand-picked: prompts and texts are evenly spaced over what was scored, so that a page
stays readable with a thousand prompts. Beside them are the prompts that fell most and least. A
prompt's map is computed from all of its texts, shown or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anchored.annotation import Annotation
from anchored.data.generations import Generations, spread
from anchored.metrics.embedding import principal_axes
from anchored.scoring.falls import falls
from anchored.scoring.measure import Measured

MAX_TEXTS = 600
COMPARISONS_SHOWN = 3  # number of comparisons whose worst, median and best prompts are shown
PROMPTS_WANTED = 6  # show this many prompts before showing more texts of each


@dataclass(frozen=True, slots=True)
class ShownText:
    """One text, its number among its prompt's texts, and what was read from it.

    Attributes:
        number: from 1, in the order of the file.
        text: the whole text.
        written: the annotation that the model wrote before it; None if it wrote none.
        read: the attributes read from it; empty if none were read.
        same_as: number of the first equivalent text of its prompt; its own number if it is first.
        score: the quality score in the file, if any; only the first of equivalent texts has one.
        at: its coordinates on the map, on the two axes of `ShownPrompt.variance`.
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
    """A prompt, its texts by model, and the share of variance on each axis of its map."""

    prompt: str
    texts: Mapping[str, tuple[ShownText, ...]]
    variance: tuple[float, float]


@dataclass(frozen=True, slots=True)
class ShownFall:
    """The worst, median or best prompt of a comparison, with the texts of the sets compared."""

    name: str
    other: str | None
    kind: str
    shown: ShownPrompt


@dataclass(frozen=True, slots=True)
class Shown:
    """The prompts shown of `of_prompts`, with `texts` of `of_texts` texts per prompt and model.

    `fallen` has the prompts of the comparisons in which most diversity was lost.
    """

    prompts: tuple[ShownPrompt, ...]
    of_prompts: int
    texts: int
    of_texts: int
    fallen: tuple[ShownFall, ...] = ()


def choose(sets: Sequence[Generations], measured: Mapping[str, Measured]) -> Shown:
    """Choose at most `MAX_TEXTS` texts, evenly spaced over prompts and over each prompt's texts.

    Args:
        sets: sets with the same prompts in the same order, and equally many texts per prompt.
        measured: figures by the sets' names.
    """
    prompts, k = len(sets[0].prompts), len(sets[0].texts[0])
    wanted = min(prompts, PROMPTS_WANTED)
    texts = max(1, min(k, MAX_TEXTS // (len(sets) * wanted)))
    places = spread(prompts, max(1, MAX_TEXTS // (len(sets) * texts)))
    return Shown(
        tuple(_prompt(sets, measured, p, spread(k, texts)) for p in places), prompts, texts, k
    )


def fallen(
    sets: Sequence[Generations], measured: Mapping[str, Measured], results: Mapping[str, Any]
) -> Iterator[ShownFall]:
    """Yield the worst, median and best prompt of the comparisons with the largest falls."""
    by_name = {found.name: found for found in sets}
    for one in falls(results)[:COMPARISONS_SHOWN]:
        pair = [by_name[name] for name in (one.other, one.name) if name]
        chosen = spread(len(sets[0].texts[0]), MAX_TEXTS // (6 * COMPARISONS_SHOWN))
        for kind, fall in one.picks.items():
            yield ShownFall(one.name, one.other, kind, _prompt(pair, measured, fall.place, chosen))


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
