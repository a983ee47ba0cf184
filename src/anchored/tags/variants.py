"""Finds values of one key that may be variants: other spellings, typing errors, similar meanings.

The result is a proposal for review: `Marta` and `Marla` may be two people.
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
MAX_VALUES = 5_000  # most frequent values of a key; the number of pairs grows quadratically
NEAR_MEANING = 0.75
SLIP_MIN_LETTERS = 5
SLIP_RATIO = 5
_ARTICLE = re.compile(r"^(?:the|an|a) (?=.)")
_NO_WORD = re.compile(r"[^\w\s]")
_TELLING = re.compile(r"\d+|\b(?:mr|mrs|ms|miss|dr|lord|lady|king|queen|prince|princess)\b")


@dataclass(frozen=True, slots=True)
class Variant:
    """A value, its count, and why it may be a variant of a more frequent value."""

    value: str
    count: int
    why: Why


@dataclass(frozen=True, slots=True)
class Group:
    """A value to keep and its rarer variants."""

    canonical: str
    count: int
    variants: tuple[Variant, ...]


def variant_groups(
    counts: Mapping[str, int], near_meaning: float = NEAR_MEANING
) -> tuple[Group, ...]:
    """Return groups of variants, largest effect on the tags first.

    Values are processed in order of frequency. Each joins the most frequent kept value that it is
    near to, or is kept itself, so that no value joins another through a third one. Two values are
    near by

    - spelling: they are equal without case, accents, punctuation, a leading article and a plural s
      (but names keep their s: Lucas is not Luca);
    - slip: one letter is inserted, deleted, replaced or swapped, but not the first letter; the
      words have at least `SLIP_MIN_LETTERS` letters, and one is `SLIP_RATIO` times rarer;
    - meaning: the cosine of their static vectors is at least `near_meaning`; not for names, which
      are capitalised.

    Values that differ in a number or a form of address are never near.

    Args:
        counts: the count of each value of one key; only the `MAX_VALUES` most frequent are used.
        near_meaning: least cosine; above 1, meanings are not compared.
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
    """Return the proposal as a map that can be written, edited and applied."""
    return CanonicalMap(
        keys={
            key: {group.canonical: tuple(v.value for v in group.variants) for group in of_key}
            for key, of_key in groups.items()
            if of_key
        }
    )


def spelling(value: str) -> str:
    """Return a value's normal form, which all its spellings share."""
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
    """Return True if at most one insertion, deletion, replacement or swap separates two words."""
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
    """The more frequent values that each value is near to, most certain reason first."""

    def __init__(self, values: Sequence[str], near_meaning: float) -> None:
        self._spelt = list(map(spelling, values))
        self._told = [tuple(_TELLING.findall(fold(value))) for value in values]
        self._same = _index((spelt,) for spelt in self._spelt)
        self._cut = _index(map(_shortened, self._spelt))
        self._meaning = dict(_near_pairs(values, near_meaning)) if near_meaning <= 1 else {}

    def candidates(self, at: int) -> Iterator[tuple[int, Why]]:
        """Yield the indices below `at` of values that are near, with the reason."""
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
    """Return a long word and its one-letter deletions; words one edit apart share one of these."""
    if len(word) < SLIP_MIN_LETTERS:
        return set()
    return {word, *(word[:i] + word[i + 1 :] for i in range(len(word)))}


def _near_pairs(values: Sequence[str], least: float) -> Iterator[tuple[int, list[int]]]:
    """Yield for each value the more frequent values of similar meaning, nearest first."""
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
