"""Self-BLEU with sacrebleu's tokeniser and formula: how much each text repeats the others.

Published figures differ because tokenisers, smoothing and the number of references differ; the
`signature` states all three. Asking sacrebleu to score every text against all others takes time
quadratic in their number. This module keeps the two highest counts of each n-gram instead, which
gives the same result in one pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.helpers import extract_all_word_ngrams

from anchored.errors import ConfigError, DataError

TOKENIZERS = ("13a", "intl", "char", "zh", "none")
ORDER = 4

Grams = Counter[tuple[str, ...]]
# Highest count of an n-gram in any text, the text that has it, and the highest among the others.
Ranked = dict[tuple[str, ...], tuple[int, int, int]]


def self_bleu(texts: Sequence[str], tokenize: str = "13a") -> float:
    """Return the mean sentence BLEU of each text against all others (Zhu et al. 2018), in 0..1.

    High is repetitive. A text without words has no BLEU: it counts 1 if another text has no words
    either, as copies do, else 0.

    Raises:
        DataError: there are fewer than two texts.
        ConfigError: the tokeniser is unknown.
    """
    if len(texts) < 2:
        raise DataError(f"self-BLEU: needs at least two texts, found {len(texts)}")
    metric = _metric(tokenize)
    extracted = [
        extract_all_word_ngrams(metric.tokenizer(text.rstrip()), 1, ORDER) for text in texts
    ]
    lengths = Counter(length for _, length in extracted)
    ranked = _ranked([grams for grams, _ in extracted])
    scores = (
        _sentence(i, grams, length, ranked, lengths) for i, (grams, length) in enumerate(extracted)
    )
    return sum(scores) / len(texts)


def signature(references: int, tokenize: str = "13a") -> str:
    """Return sacrebleu's own signature of the figure, with its version.

    Raises:
        ConfigError: the tokeniser is unknown.
    """
    metric = _metric(tokenize)
    # sacrebleu takes the number of references from the last call
    metric.sentence_score("a", ["a"] * references)
    return str(metric.get_signature())


@cache
def _metric(tokenize: str) -> BLEU:
    if tokenize not in TOKENIZERS:
        known = ", ".join(TOKENIZERS)
        raise ConfigError(f"self-BLEU: tokeniser {tokenize!r} is unknown; use one of {known}")
    return BLEU(tokenize=tokenize, effective_order=True)


def _ranked(grams: Sequence[Grams]) -> Ranked:
    ranked: Ranked = {}
    for i, counts in enumerate(grams):
        for gram, count in counts.items():
            most, holder, next_most = ranked.get(gram, (0, -1, 0))
            if count > most:
                ranked[gram] = (count, i, most)
            elif count > next_most:
                ranked[gram] = (most, holder, count)
    return ranked


def _sentence(i: int, grams: Grams, length: int, ranked: Ranked, lengths: Counter[int]) -> float:
    if not length:
        return float(lengths[0] > 1)
    correct, total = [0] * ORDER, [0] * ORDER
    for gram, count in grams.items():
        most, holder, next_most = ranked[gram]
        total[len(gram) - 1] += count
        correct[len(gram) - 1] += min(count, next_most if holder == i else most)
    others = (other for other, times in lengths.items() if other != length or times > 1)
    reference = min(others, key=lambda other: (abs(other - length), other))
    bleu = BLEU.compute_bleu(
        correct, total, length, reference, smooth_method="exp", effective_order=True
    )
    return bleu.score / 100
