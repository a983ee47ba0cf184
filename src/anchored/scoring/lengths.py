"""Length as a confounder: a note where texts differ in length, and texts cut to equal lengths.

Every figure of diversity moves with length alone, and not all in the same direction: see
docs/which-metric.md for how far.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from anchored.data.generations import Generations
from anchored.judge.judging import JudgedPartition
from anchored.metrics import lexical
from anchored.metrics.equivalence import Exact
from anchored.scoring.attributes import JudgedAttributes
from anchored.scoring.measure import Measured, Readers, common_sizes, on_common_prompts

NAMED = 4  # sets that a note names
TOLERATED = 4 / 3  # ratio of mean lengths above which a note appears


@dataclass(frozen=True)
class Cut:
    """Sets whose texts are cut to their first words, and their figures.

    Attributes:
        words: number of words to which texts are cut.
        sets: the sets with cut texts.
        measured: figures by the sets' names.
        notes: what is left out.
    """

    words: int
    sets: Sequence[Generations]
    measured: Mapping[str, Measured]
    notes: Sequence[str]


def first_words(text: str, n: int) -> str:
    """Return the text up to the end of its n-th word; punctuation marks count, as in `words`."""
    ends = [found.end() for found in re.finditer(r"\w+|[^\w\s]", text)]
    return text if len(ends) <= n else text[: ends[n - 1]]


def measure_cut(
    sets: Sequence[Generations], readers: Readers, words: int, step: Callable[[], None]
) -> Cut:
    """Measure the first `words` words of every text, with the backends that can read them.

    A judge's answers, a file's own partition and the scores of quality are of whole texts, and so
    figures that need them are left out.
    """
    cut = [
        replace(
            found,
            texts=tuple(tuple(first_words(t, words) for t in own) for own in found.texts),
        )
        for found in sets
    ]
    whole_only = readers.equivalence is None or isinstance(readers.equivalence, JudgedPartition)
    judged = isinstance(readers.attributes, JudgedAttributes)
    able = replace(
        readers,
        equivalence=Exact() if whole_only else readers.equivalence,
        attributes=None if judged else readers.attributes,
        quality=None,
        answers=None,
    )
    sizes = common_sizes(cut)
    measured, notes = on_common_prompts({one.name: able.measure(one, sizes, step) for one in cut})
    left_out = ["distinct_k"] if whole_only else []
    for one in measured.values():
        for name in left_out:
            one.values.pop(name, None)
    if judged:
        left_out.append("semantic_entropy")
    said = f"{' and '.join(left_out)}: known for whole texts only, not for their first words."
    return Cut(words, cut, measured, [*notes, *([said] if left_out else []), *_shorter(cut, words)])


def _shorter(sets: Sequence[Generations], words: int) -> Iterator[str]:
    """Note the sets that have texts below the common length."""
    for found in sets:
        lengths = [len(lexical.words(text)) for own in found.texts for text in own]
        if short := sum(length < words for length in lengths):
            yield (
                f"{found.name}: {short} of its {len(lengths)} texts have fewer than {words} words "
                "and stay shorter."
            )


def length_notes(
    models: Mapping[str, Mapping[str, Any]], way: str = "Add --truncate-words {} for equal lengths."
) -> list[str]:
    """Return a note if the mean lengths of the sets differ by more than a third, else nothing.

    Args:
        models: the sets, each with its `lengths`.
        way: how to compare at equal length, a template for the number of words.
    """
    means = {name: one["lengths"]["words"]["mean"] for name, one in models.items()}
    longest, shortest = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    if means[longest] <= TOLERATED * means[shortest]:
        return []
    median = int(np.floor(models[shortest]["lengths"]["words"]["median"]))
    return [
        f"Lengths differ: {means[longest]:.3g} words per text for {longest}, "
        f"{means[shortest]:.3g} for {shortest}. Length alone moves every figure: longer texts "
        "raise distinct_k, semantic_entropy and distinct_2, and lower dissimilarity, vendi, "
        f"distinct_1 and self_bleu. {way.format(max(median, 1))}"
    ]


def truncation_notes(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a note on the sets in which texts were cut at the token limit."""
    shares = {name: one["truncation_rate"] for name, one in models.items()}
    cut = [f"{100 * share:.3g}% of {name}'s" for name, share in shares.items() if share]
    if not cut:
        return []
    if len(cut) > NAMED:
        cut = [*cut[:NAMED], f"some of {len(cut) - NAMED} other sets'"]
    return [
        f"Cut at the token limit: {', '.join(cut)} texts. What they would have gone on to say is "
        "not measured, and cut texts are all of one length; sample with a higher limit."
    ]
