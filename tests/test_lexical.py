from __future__ import annotations

import random

import pytest

from anchored.evaluate.lexical import distinct_n, ead, words


def brute_force(texts: list[str], n: int) -> tuple[int, int]:
    seen, total = set(), 0
    for text in texts:
        tokens = text.split()
        for start in range(len(tokens)):
            if start + n <= len(tokens):
                seen.add(" ".join(tokens[start : start + n]))
                total += 1
    return len(seen), total


def random_texts(rng: random.Random) -> list[str]:
    lengths = [rng.randint(0, 30) for _ in range(rng.randint(1, 20))]
    return [" ".join(rng.choices(["the", "sea", "fox", "7", "naïve"], k=n)) for n in lengths]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_distinct_n_and_ead_equal_brute_force(n: int) -> None:
    rng = random.Random(n)
    for _ in range(30):
        texts = random_texts(rng)
        seen, total = brute_force(texts, n)
        if not total:
            continue
        assert distinct_n(texts, n) == pytest.approx(seen / total, abs=1e-12)
        v = 50
        expected = sum(((v - 1) / v) ** i for i in range(total))  # distinct among `total` draws
        assert ead(texts, n, vocabulary=v) == pytest.approx(seen / expected, abs=1e-9)


def test_words_are_lower_cased_and_punctuation_stands_alone() -> None:
    assert words("Mara's  boat, 東京!") == ["mara", "'", "s", "boat", ",", "東京", "!"]


def test_grams_do_not_cross_texts() -> None:
    assert distinct_n(["a b", "c d", "a b"], 2) == pytest.approx(2 / 3)


def test_texts_too_short_give_zero() -> None:
    assert distinct_n(["", "one"], 2) == 0.0
    assert ead([""]) == 0.0


def test_ead_of_random_words_does_not_fall_with_length_as_distinct_does() -> None:
    rng = random.Random(0)
    short = [" ".join(str(rng.randrange(500)) for _ in range(200))]
    long = [" ".join(str(rng.randrange(500)) for _ in range(2000))]
    assert distinct_n(long, 1) < 0.35 * distinct_n(short, 1)
    assert ead(long, vocabulary=500) == pytest.approx(ead(short, vocabulary=500), rel=0.05)
