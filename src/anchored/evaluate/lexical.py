"""Lexical diversity: how varied the words are, whatever they mean.

Words are runs of letters and digits, lower-cased; a punctuation mark is a word of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

EAD_VOCABULARY = 30_522  # the word pieces of BERT, in which EAD was first reported

_WORD = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> list[str]:
    """The words that the metrics here count."""
    return _WORD.findall(text.lower())


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams over all n-grams of `texts` together (Li et al. 2016), in 0..1.

    0 where no text has n words. Falls as texts grow longer: compare at equal lengths, or use `ead`.
    """
    grams = _grams(texts, n)
    return len(set(grams)) / len(grams) if grams else 0.0


def ead(texts: Sequence[str], n: int = 1, vocabulary: int = EAD_VOCABULARY) -> float:
    """Expectation-adjusted distinct: distinct n-grams over those expected of as many random draws.

    N / (V (1 - ((V-1)/V)^C)) (Liu et al. 2022), with N distinct among C n-grams and V the
    vocabulary's size; figures with different V do not compare. 0 where no text has n words.
    """
    grams = _grams(texts, n)
    if not grams:
        return 0.0
    expected = vocabulary * (1 - ((vocabulary - 1) / vocabulary) ** len(grams))
    return len(set(grams)) / expected


def _grams(texts: Sequence[str], n: int) -> list[tuple[str, ...]]:
    tokenised = [words(text) for text in texts]
    return [tuple(t[i : i + n]) for t in tokenised for i in range(len(t) - n + 1)]
