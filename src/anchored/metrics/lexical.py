"""Lexical diversity: how varied the words are, whatever they mean; and how long texts are.

Words are runs of letters and digits, lower-cased; a punctuation mark is a word of its own.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np

from anchored.errors import DataError

EAD_VOCABULARY = 30_522  # the word pieces of BERT, in which EAD was first reported
COMPRESSION_LEVEL = 9

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


def exact_duplicate_rate(texts: Sequence[str]) -> float:
    """Share of texts that repeat an earlier one, outer white space aside: 0 to 1 - 1/N.

    Raises:
        DataError: there are no texts.
    """
    return 1 - len({text.strip() for text in _some(texts)}) / len(texts)


def empty_rate(texts: Sequence[str]) -> float:
    """Share of texts that hold nothing but white space.

    Raises:
        DataError: there are no texts.
    """
    return sum(not text.strip() for text in _some(texts)) / len(texts)


def compression_ratio(texts: Sequence[str], size: int | None = None) -> float:
    """Bytes of the texts, one a line, over their bytes after one pass of zlib (Shaib et al. 2024).

    More is more repetitive. Larger inputs compress better whatever they say, so figures compare
    only at equal sizes: `size` cuts the longest texts, all at one length, until the sum of all is
    at most that many bytes (and fewer by less than one a text). 1 where nothing is left.
    """
    raw = [text.encode() for text in texts]
    if size is not None:
        longest = _water_level([len(text) for text in raw], size)
        raw = [text[:longest] for text in raw]
    if not any(raw):
        return 1.0
    joined = b"\n".join(raw)
    return len(joined) / len(zlib.compress(joined, COMPRESSION_LEVEL))


def length_statistics(texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """Mean, standard deviation, least, median and most `words` and `characters` a text.

    Raises:
        DataError: there are no texts.
    """
    counts = {
        "words": [len(words(text)) for text in _some(texts)],
        "characters": [len(text) for text in texts],
    }
    return {unit: _summary(lengths) for unit, lengths in counts.items()}


def _summary(lengths: Sequence[int]) -> dict[str, float]:
    return {
        "mean": float(np.mean(lengths)),
        "sd": float(np.std(lengths)),
        "min": float(min(lengths)),
        "median": float(np.median(lengths)),
        "max": float(max(lengths)),
    }


def _water_level(lengths: Sequence[int], size: int) -> int:
    """The length at which to cut so that the sum is at most `size`."""
    rest = size
    for done, length in enumerate(sorted(lengths)):
        share = rest // (len(lengths) - done)
        if length > share:
            return share
        rest -= length
    return max(lengths, default=0)


def _some(texts: Sequence[str]) -> Sequence[str]:
    if not texts:
        raise DataError("lexical metrics: there are no texts")
    return texts


def _grams(texts: Sequence[str], n: int) -> list[tuple[str, ...]]:
    tokenised = [words(text) for text in texts]
    return [tuple(t[i : i + n]) for t in tokenised for i in range(len(t) - n + 1)]
