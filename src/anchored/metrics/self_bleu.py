"""Self-BLEU by sacrebleu's tokeniser and formula: how much each text repeats the others.

Published figures differ because tokenisers, smoothing and the number of references do: the
`signature` states all three. Asking sacrebleu for every text against all others takes time with the
square of their number; here each n-gram's two highest counts are kept, which gives the same in one
pass.
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
# Highest count of an n-gram in any text, which text has it, and the highest among the others.
Ranked = dict[tuple[str, ...], tuple[int, int, int]]


def self_bleu(texts: Sequence[str], tokenize: str = "13a") -> float:
    """Mean over texts of its sentence BLEU against all others (Zhu et al. 2018), in 0..1.

    High is repetitive. Texts without a word have no BLEU: one counts 1 if another is like it, as
    copies do, else 0.

    Raises:
        DataError: fewer than two texts.
        ConfigError: no such tokeniser.
    """
    if len(texts) < 2:
        raise DataError(f"self-BLEU: needs two texts or more, found {len(texts)}")
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
    """What sacrebleu itself calls the figure, with its version.

    Raises:
        ConfigError: no such tokeniser.
    """
    metric = _metric(tokenize)
    metric.sentence_score("a", ["a"] * references)  # it knows the number from its last use
    return str(metric.get_signature())


@cache
def _metric(tokenize: str) -> BLEU:
    if tokenize not in TOKENIZERS:
        known = ", ".join(TOKENIZERS)
        raise ConfigError(f"self-BLEU: no tokeniser {tokenize!r}; use one of {known}")
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
