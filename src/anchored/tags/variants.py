"""Values of one key that may be one: spellings, slips of the pen, near meanings.

It is a proposal to be read before it is applied: `Marta` and `Marla` may be two people.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from anchored.annotation import fold
from anchored.data.canonical import CanonicalMap
from anchored.models.static_vectors import load_static_model

Why = Literal["spelling", "slip", "meaning"]
MAX_VALUES = 5_000  # of a key, the most frequent: pairs grow with the square
NEAR_MEANING = 0.75
SLIP_MIN_LETTERS = 5
SLIP_RATIO = 5
_ARTICLE = re.compile(r"^(?:the|an|a) (?=.)")
_NO_WORD = re.compile(r"[^\w\s]")
_TELLING = re.compile(r"\d+|\b(?:mr|mrs|ms|miss|dr|lord|lady|king|queen|prince|princess)\b")


@dataclass(frozen=True, slots=True)
class Variant:
    """A value, how often it occurs, and why it may be the same as a more frequent one."""

    value: str
    count: int
    why: Why


@dataclass(frozen=True, slots=True)
class Group:
    """A value to keep and the rarer ones that may be the same."""

    canonical: str
    count: int
    variants: tuple[Variant, ...]


def variant_groups(
    counts: Mapping[str, int], near_meaning: float = NEAR_MEANING
) -> tuple[Group, ...]:
    """Groups of values that may be one, those first that would move most tags.

    Values are taken from the most frequent down; each joins the most frequent kept value that it is
    near to, or is kept itself, so that nothing is joined over a third. Two values are near by

    - spelling: equal without case, accents, punctuation, a leading article, a plural's s (but not
      a name's: Lucas is no Luca);
    - slip: one letter more, less, other or swapped, not the first, in at least `SLIP_MIN_LETTERS`
      letters, and `SLIP_RATIO` times rarer;
    - meaning: cosine of their static vectors at least `near_meaning`, names (capitals) left out.

    Values that differ in a number or a form of address are never near.

    Args:
        counts: how often each value of one key occurs; the `MAX_VALUES` most frequent count.
        near_meaning: above 1 leaves that rule out.
    """
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MAX_VALUES]
    near = _Near([value for value, _ in ranked], near_meaning)
    joined: dict[int, list[Variant]] = {}
    for at, (value, count) in enumerate(ranked):
        for to, why in near.candidates(at):
            if to in joined and (why != "slip" or ranked[to][1] >= SLIP_RATIO * count):
                joined[to].append(Variant(value, count, why))
                break
        else:
            joined[at] = []
    groups = [Group(*ranked[at], tuple(variants)) for at, variants in joined.items() if variants]
    return tuple(sorted(groups, key=lambda g: -sum(v.count for v in g.variants)))


def canonical_map(groups: Mapping[str, Sequence[Group]]) -> CanonicalMap:
    """The proposal as a map that can be written, edited and applied."""
    return CanonicalMap(
        keys={
            key: {group.canonical: tuple(v.value for v in group.variants) for group in of_key}
            for key, of_key in groups.items()
            if of_key
        }
    )


def spelling(value: str) -> str:
    """What stays of a value that is only spelt otherwise."""
    plain = unicodedata.normalize("NFKD", fold(value))
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    words = _ARTICLE.sub("", " ".join(_NO_WORD.sub(" ", plain).split())).split()
    return " ".join(map(_singular, words) if value == value.lower() else words) or value


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def one_edit(first: str, second: str) -> bool:
    """Are two words one letter more, less, other or two neighbours swapped apart (or equal)."""
    if len(first) > len(second):
        first, second = second, first
    at = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), len(first)
    )
    if len(first) < len(second):
        return first[at:] == second[at + 1 :]
    return first[at + 1 :] == second[at + 1 :] or (
        first[at + 2 :] == second[at + 2 :] and first[at : at + 2] == second[at : at + 2][::-1]
    )


class _Near:
    """For each value the more frequent ones that it is near to, surest reason first."""

    def __init__(self, values: Sequence[str], near_meaning: float) -> None:
        self._spelt = list(map(spelling, values))
        self._told = [tuple(_TELLING.findall(fold(value))) for value in values]
        self._same = _index((spelt,) for spelt in self._spelt)
        self._cut = _index(map(_shortened, self._spelt))
        self._meaning = dict(_near_pairs(values, near_meaning)) if near_meaning <= 1 else {}

    def candidates(self, at: int) -> Iterator[tuple[int, Why]]:
        """Places before `at`, of values that are near."""
        spelt = self._spelt[at]
        slips = {to for cut in _shortened(spelt) for to in self._cut[cut]}
        by_reason: tuple[tuple[Why, Iterable[int]], ...] = (
            ("spelling", self._same[spelt]),
            ("slip", sorted(to for to in slips if self._slip(self._spelt[to], spelt))),
            ("meaning", self._meaning.get(at, ())),
        )
        for why, places in by_reason:
            for to in places:
                if to < at and self._told[to] == self._told[at]:
                    yield to, why

    @staticmethod
    def _slip(first: str, second: str) -> bool:
        return first[0] == second[0] and one_edit(first, second)


def _index(keys_of: Iterable[Iterable[str]]) -> dict[str, list[int]]:
    index: dict[str, list[int]] = defaultdict(list)
    for at, keys in enumerate(keys_of):
        for key in keys:
            index[key].append(at)
    return index


def _shortened(word: str) -> set[str]:
    """A long enough word, and it less one letter: two words one edit apart share one of these."""
    if len(word) < SLIP_MIN_LETTERS:
        return set()
    return {word, *(word[:i] + word[i + 1 :] for i in range(len(word)))}


def _near_pairs(values: Sequence[str], least: float) -> Iterator[tuple[int, list[int]]]:
    """For each value the more frequent ones of near meaning, nearest first."""
    places = [at for at, value in enumerate(values) if value == value.lower()]
    if not places:
        return
    texts = [fold(values[at]) for at in places]
    vectors = np.asarray(load_static_model().encode(texts, use_multiprocessing=False), np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    for row, at in enumerate(places):
        cosines = vectors[:row] @ vectors[row]
        near = np.flatnonzero(cosines >= least)
        if near.size:
            yield at, [places[to] for to in near[np.argsort(-cosines[near], kind="stable")]]
