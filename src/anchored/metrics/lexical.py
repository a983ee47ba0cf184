"""Lexical diversity (how varied the words are, regardless of meaning) and text lengths.

Words are lower-cased runs of letters and digits; each punctuation mark is a word too. Where spaces
do not separate words (Chinese, Japanese, Thai, Lao, Khmer, Burmese), ICU's dictionaries do.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import regex

from anchored.errors import DataError

EAD_VOCABULARY = 30_522  # BERT's word pieces, with which EAD was first reported
COMPRESSION_LEVEL = 9

_WORD = re.compile(r"\w+|[^\w\s]")

# Most texts have no character of these blocks, and `_WORD` alone is right for them. `re` finds that
# out 30 times as fast as `regex`, which knows scripts.
_MAYBE_ICU = re.compile(
    "[\u0300-\u036f\u0483-\u0489\u0590-\u1aff\u1dc0-\u1dff\u200c\u200d\u2cef-\u2cf1\u2de0-\u2dff"
    "\u2e80-\ua4cf\ua66f-\ua6ff\ua800-\uabff\uf900-\ufaff\ufb1e\uff66-\uff9f\U00010000-\U0003ffff]"
)
_PIECE = regex.compile(r"[\w\p{M}\u200c\u200d]+|[^\w\s]")
_UNSPACED = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
)
# Letters with a mark of their own, which `\w` would tear off, are for ICU too.
_MARKED = regex.compile(r"\p{L}(?:(?![\ufe00-\ufe0f])[\p{Mn}\p{Mc}]|[\u200c\u200d]\p{L})")


def is_unspaced(text: str) -> bool:
    """Return True if the text has letters of a script that does not separate words by spaces."""
    return bool(_MAYBE_ICU.search(text) and _UNSPACED.search(text))


def words(text: str) -> list[str]:
    """Return the words that the metrics of this module count."""
    lower = text.lower()
    if not _MAYBE_ICU.search(lower):
        return _WORD.findall(lower)
    return [lower[start:end] for start, end in word_spans(lower)]


def word_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each word, in order, whatever the script."""
    if not _MAYBE_ICU.search(text):
        yield from (found.span() for found in _WORD.finditer(text))
        return
    from icu4py.breakers import WordBreaker  # 42 MB that most texts do not need

    for piece in _PIECE.finditer(text):
        start = piece.start()
        if _UNSPACED.search(piece[0]) or _MARKED.search(piece[0]):
            for word in WordBreaker(piece[0], "root"):
                yield start, start + len(word)
                start += len(word)
        else:
            yield from (
                (start + found.start(), start + found.end()) for found in _WORD.finditer(piece[0])
            )


def first_words(text: str, n: int) -> str:
    """Return the text up to the end of its `n`-th word; all of it if it has no more than n words.

    Punctuation marks count, as in `words`.
    """
    ends = [end for _, end in islice(word_spans(text), n + 1)]
    return text if len(ends) <= n else text[: ends[n - 1] if n else 0]


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
