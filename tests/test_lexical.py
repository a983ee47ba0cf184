from __future__ import annotations

import math
import random
import re
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchored.errors import DataError
from anchored.metrics.lexical import (
    compression_ratio,
    distinct_n,
    ead,
    empty_rate,
    exact_duplicate_rate,
    first_words,
    length_statistics,
    opening_entropy,
    opening_share,
    word_spans,
    words,
)


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


SEGMENTED = {
    "zh": ("我最喜欢的水果是苹果，", "我 最 喜欢 的 水果 是 苹果 ，"),
    "ja": ("祖父は古本屋で時計を修理している。", "祖父 は 古本屋 で 時計 を 修理 し て いる 。"),
    "th": ("ผลไม้โปรดของฉันคือแอปเปิล", "ผล ไม้ โปรด ของ ฉัน คือ แอปเปิล"),
    "hi": ("मुझे सेब बहुत पसंद हैं।", "मुझे सेब बहुत पसंद हैं ।"),
    "km": ("ខ្ញុំចូលចិត្តផ្លែប៉ោម", "ខ្ញុំ ចូលចិត្ត ផ្លែ ប៉ោម"),
    "he": ("מֹשֶׁה אמר", "מֹשֶׁה אמר"),
    "ko": ("한국어 문장입니다.", "한국어 문장입니다 ."),
    "beside Latin": ("GPT-4は2023年に。", "gpt - 4 は 2023 年 に 。"),
    "beyond the basic plane": ("😀𠮷野家 x", "😀 𠮷 野家 x"),
}


@pytest.mark.parametrize("language", SEGMENTED)
def test_words_are_found_in_scripts_without_spaces_and_marks_stay_on_their_letters(
    language: str,
) -> None:
    text, expected = SEGMENTED[language]
    assert words(text) == expected.split()
    assert [text[a:b].lower() for a, b in word_spans(text)] == expected.split()


@given(st.text(st.characters(max_codepoint=0x2FF)) | st.text("aé’1️⃣❤😀Жж \n_-"))
def test_text_of_a_script_with_spaces_is_split_as_by_the_plain_expression(text: str) -> None:
    lower = text.lower()
    if "\u0307" not in lower:  # a dotted capital I gives a mark of its own
        assert words(text) == re.findall(r"\w+|[^\w\s]", lower)


def test_first_words_cuts_after_the_nth_word_in_every_script() -> None:
    assert first_words("One, two  three.\n", 3) == "One, two"
    assert first_words("One, two  three.\n", 5) == "One, two  three.\n"
    assert first_words("One", 0) == ""
    assert first_words("我最喜欢的水果是苹果，因为它甜。", 3) == "我最喜欢"
    assert first_words("ผลไม้โปรดของฉันคือแอปเปิล", 3) == "ผลไม้โปรด"
    assert first_words("मुझे सेब बहुत पसंद हैं।", 2) == "मुझे सेब"


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


def test_duplicates_are_texts_that_repeat_an_earlier_one_but_for_outer_space() -> None:
    assert exact_duplicate_rate(["Orion", "Orion ", "orion", "Vega", "\nOrion"]) == 2 / 5
    assert exact_duplicate_rate(["a"] * 4) == 3 / 4


def test_empty_rate_counts_texts_of_white_space_alone() -> None:
    assert empty_rate(["", " \n", "a", "."]) == 0.5


def test_compression_ratio_is_one_pass_over_the_lines() -> None:
    texts = ["the fox and the sea", "naïve foxes", "the fox and the sea"]
    raw = "\n".join(texts).encode()
    assert compression_ratio(texts) == len(raw) / len(zlib.compress(raw, 9))
    assert compression_ratio(["the fox and the sea " * 5] * 9) > 10


@given(st.lists(st.text(max_size=40), min_size=1, max_size=12), st.integers(0, 200))
def test_compression_cuts_the_longest_texts_at_one_length_and_to_the_size(
    texts: list[str], size: int
) -> None:
    raw = [text.encode() for text in texts]
    total = sum(map(len, raw))
    fitting = [c for c in range(max(map(len, raw)) + 1) if sum(min(len(x), c) for x in raw) <= size]
    cut = [x[: max(fitting)] for x in raw]
    joined = b"\n".join(cut)
    expected = len(joined) / len(zlib.compress(joined, 9)) if any(cut) else 1.0
    assert compression_ratio(texts, size) == expected
    assert sum(map(len, cut)) > min(size, total) - len(texts)


def test_more_of_the_same_compresses_better_unless_cut_to_one_size() -> None:
    rng = random.Random(0)
    short, long = ([" ".join(rng.choices("abcdefgh", k=n)) for _ in range(8)] for n in (30, 300))
    size = sum(map(len, short))
    assert compression_ratio(long) > 1.2 * compression_ratio(short)
    assert compression_ratio(long, size) == pytest.approx(compression_ratio(short, size), rel=0.05)


def test_length_statistics_are_of_words_and_characters() -> None:
    found = length_statistics(["one two, three", ""])
    assert found["words"] == {"mean": 2.0, "sd": 2.0, "min": 0.0, "median": 2.0, "max": 4.0}
    assert found["characters"] == {"mean": 7.0, "sd": 7.0, "min": 0.0, "median": 7.0, "max": 14.0}


@pytest.mark.parametrize("metric", [exact_duplicate_rate, empty_rate, length_statistics])
def test_no_texts_are_refused(metric) -> None:
    with pytest.raises(DataError, match="there are no texts"):
        metric([])


def test_openings_by_hand() -> None:
    texts = ["Sure! Here is a tale.", "sure! here is another", "Sure! Here", "", " "]
    assert opening_share(texts, 4) == 2 / 5  # "sure ! here is", and the two empty texts
    assert opening_share(texts, 8) == 2 / 5
    expected = -(2 * 2 / 5 * math.log(2 / 5) + 1 / 5 * math.log(1 / 5))
    assert opening_entropy(texts, 4) == pytest.approx(expected, abs=1e-12)
    assert opening_entropy(["a"] * 3, 4) == 0
    with pytest.raises(DataError, match="no texts"):
        opening_share([], 4)


@pytest.mark.parametrize("n", [4, 8])
def test_openings_equal_brute_force(n: int) -> None:
    rng = random.Random(n)
    for _ in range(200):
        texts = random_texts(rng)
        heads = [" ".join(text.split()[:n]) for text in texts]
        shares = [heads.count(head) / len(texts) for head in heads]
        assert opening_share(texts, n) == max(shares)
        entropy = -sum(math.log(share) for share in shares) / len(texts)
        assert opening_entropy(texts, n) == pytest.approx(entropy, abs=1e-12)
