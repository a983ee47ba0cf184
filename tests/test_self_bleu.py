from __future__ import annotations

import random

import pytest
from sacrebleu.metrics.bleu import BLEU

from anchored.errors import ConfigError, DataError
from anchored.metrics.self_bleu import self_bleu, signature


def by_sacrebleu(texts: list[str], tokenize: str = "13a") -> float:
    metric = BLEU(tokenize=tokenize, effective_order=True)
    scores = [
        metric.sentence_score(text, texts[:i] + texts[i + 1 :]).score
        for i, text in enumerate(texts)
    ]
    return sum(scores) / len(texts) / 100


@pytest.mark.parametrize("tokenize", ["13a", "char", "none"])
def test_equals_sacrebleus_sentence_scores_against_all_others(tokenize: str) -> None:
    rng = random.Random(0)
    for _ in range(40):
        texts = [
            " ".join(
                rng.choices(["the", "sea,", "fox.", "7", "naïve", "Fox"], k=rng.randint(1, 25))
            )
            for _ in range(rng.randint(2, 9))
        ]
        expected = by_sacrebleu(texts, tokenize)
        assert self_bleu(texts, tokenize) == pytest.approx(expected, abs=1e-9)


def test_copies_score_one_however_short_and_strangers_zero() -> None:
    assert self_bleu(["Durian"] * 5) == pytest.approx(1.0)
    assert self_bleu(["one two", "three four", "five six"]) == 0.0


def test_empty_texts_are_copies_of_each_other_where_sacrebleu_gives_zero() -> None:
    assert by_sacrebleu(["", "", ""]) == 0.0
    assert self_bleu(["", "", ""]) == 1.0
    assert self_bleu(["", "a fox", "the sea"]) == 0.0


def test_signature_states_references_tokeniser_smoothing_and_version() -> None:
    from sacrebleu import __version__

    expected = f"nrefs:9|case:mixed|eff:yes|tok:char|smooth:exp|version:{__version__}"
    assert signature(9, "char") == expected


def test_one_text_and_unknown_tokenisers_are_refused() -> None:
    with pytest.raises(DataError, match="at least two texts, found 1"):
        self_bleu(["a"])
    with pytest.raises(ConfigError, match="tokeniser 'words' is unknown; use one of 13a, intl"):
        self_bleu(["a", "b"], "words")
