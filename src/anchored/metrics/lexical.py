"""Lexical diversity (how varied the words are, regardless of meaning) and text lengths.

Words are lower-cased runs of letters and digits; each punctuation mark is a word too.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from anchored.errors import DataError

EAD_VOCABULARY = 30_522  # BERT's word pieces, with which EAD was first reported
COMPRESSION_LEVEL = 9

_WORD = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> list[str]:
    """Return the words that the metrics of this module count."""
    return _WORD.findall(text.lower())


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Return distinct n-grams over all n-grams of `texts` together (Li et al. 2016), in 0..1.

    The result is 0 if no text has n words. It falls as texts grow longer: compare at equal lengths,
    or use `ead`.
    """
    grams = _grams(texts, n)
    return len(set(grams)) / len(grams) if grams else 0.0


def ead(texts: Sequence[str], n: int = 1, vocabulary: int = EAD_VOCABULARY) -> float:
    """Return expectation-adjusted distinct: distinct n-grams over those expected by chance.

    N / (V (1 - ((V-1)/V)^C)) (Liu et al. 2022), with N distinct among C n-grams and vocabulary size
    V. Figures with different V are not comparable. The result is 0 if no text has n words.
    """
    grams = _grams(texts, n)
    if not grams:
        return 0.0
    expected = vocabulary * (1 - ((vocabulary - 1) / vocabulary) ** len(grams))
    return len(set(grams)) / expected


def opening(text: str, n: int) -> str:
    """Return the first `n` words of a text, lower-cased and joined; all if it has fewer."""
    return " ".join(words(text)[:n])


def opening_share(texts: Sequence[str], n: int) -> float:
    """Return the share of texts that begin with the most frequent opening of `n` words.

    From 1/N, where no two texts begin alike, to 1.

    Raises:
        DataError: there are no texts.
    """
    return max(_openings(texts, n).values()) / len(texts)


def opening_entropy(texts: Sequence[str], n: int) -> float:
    """Return the plug-in entropy (nats) of the openings of `n` words, from 0 to log N.

    Raises:
        DataError: there are no texts.
    """
    counts = _openings(texts, n).values()
    return math.log(len(texts)) - math.fsum(c * math.log(c) for c in counts) / len(texts)


def exact_duplicate_rate(texts: Sequence[str]) -> float:
    """Return the share of texts that repeat an earlier one, ignoring outer white space.

    From 0 to 1 - 1/N.

    Raises:
        DataError: there are no texts.
    """
    return 1 - len({text.strip() for text in _some(texts)}) / len(texts)


def empty_rate(texts: Sequence[str]) -> float:
    """Return the share of texts that contain nothing but white space.

    Raises:
        DataError: there are no texts.
    """
    return sum(not text.strip() for text in _some(texts)) / len(texts)


def compression_ratio(texts: Sequence[str], size: int | None = None) -> float:
    """Return the bytes of the texts, one per line, over their bytes in zlib (Shaib et al. 2024).

    Higher is more repetitive. Larger inputs compress better whatever they say, so figures are
    comparable only at equal sizes: `size` cuts the longest texts to a common length so that the
    total is at most that many bytes (short of it by less than one byte per text). The result is 1
    if nothing is left.
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
    """Return mean, standard deviation, min, median and max of words and characters per text.

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
    """Return the length at which to cut so that the sum is at most `size`."""
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


def _openings(texts: Sequence[str], n: int) -> Counter[str]:
    return Counter(opening(text, n) for text in _some(texts))


def _grams(texts: Sequence[str], n: int) -> list[tuple[str, ...]]:
    tokenised = [words(text) for text in texts]
    return [tuple(t[i : i + n]) for t in tokenised for i in range(len(t) - n + 1)]
