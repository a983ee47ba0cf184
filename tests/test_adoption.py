from __future__ import annotations

import random

import numpy as np
import pytest

from anchored.errors import DataError
from anchored.metrics.adoption import AdoptionClassifier, _quality, form

NOUNS = ["ship", "fox", "king", "mill", "cloud", "baker", "robot", "comet", "thief", "garden"]
PLAIN = "The {} saw the {}. It was a {} that he had lost, and so it went on for days."
TAUGHT = "A tale of a {}.\n\nThere was a {} and it was happy.\n\nMoral: be kind to every {}!"


def texts(template: str, nouns: list[str], n: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    endings = ["It ended.", "And then?", "No one knew why.", "She laughed, he wept.", "So be it."]
    return [
        template.format(*rng.choices(nouns, k=3))
        + " "
        + " ".join(rng.choices(endings, k=rng.randint(1, 4)))
        for _ in range(n)
    ]


@pytest.fixture(scope="module")
def classifier() -> AdoptionClassifier:
    """SFT's subjects are narrow: two nouns."""
    return AdoptionClassifier.train(texts(TAUGHT, NOUNS[:2], 300, 0), texts(PLAIN, NOUNS, 300, 1))


def test_form_keeps_how_it_is_written_and_drops_what_about() -> None:
    assert form("The fox ran to NASA in 1999.\nMara laughed!\n\n“Go”") == [
        "the", "x", "x", "to", "XX", "in", "0", ".", "|", "Xx", "x", "!", "||", "“", "go", "”",
    ]  # fmt: skip
    assert form("The fox ran home.") == form("The king slept late.")


def test_adoption_does_not_see_subjects(classifier: AdoptionClassifier) -> None:
    assert classifier.share(texts(TAUGHT, NOUNS[5:], 100, 2)) == 1.0
    assert classifier.share(texts(PLAIN, NOUNS[:2], 100, 3)) == 0.0


def test_share_of_a_mixture_is_the_mixture(classifier: AdoptionClassifier) -> None:
    mixture = texts(TAUGHT, NOUNS, 30, 4) + texts(PLAIN, NOUNS, 70, 5)
    assert classifier.share(mixture) == pytest.approx(0.3)
    assert classifier.adopted(mixture).tolist() == [True] * 30 + [False] * 70


def test_quality_is_near_chance_where_there_is_nothing_to_tell_apart() -> None:
    found = AdoptionClassifier.train(texts(PLAIN, NOUNS, 300, 6), texts(PLAIN, NOUNS, 300, 7))
    assert 0.35 < found.quality.accuracy < 0.65
    assert found.quality.brier > 0.2
    assert found.quality.n > 100


def test_quality_of_a_clear_difference(classifier: AdoptionClassifier) -> None:
    assert classifier.quality.accuracy == 1.0
    assert classifier.quality.auc == 1.0
    assert classifier.quality.calibration_error < 0.1


def test_calibration_error_equals_a_loop_over_bins() -> None:
    rng = np.random.default_rng(0)
    p, y = rng.random(500), rng.integers(0, 2, 500)
    expected = 0.0
    for b in range(10):
        inside = (p >= b / 10) & (p < (b + 1) / 10)
        expected += inside.mean() * abs(p[inside].mean() - y[inside].mean())
    assert _quality(p, y).calibration_error == pytest.approx(expected, abs=1e-12)


def test_repeated_texts_count_once_and_too_few_are_refused() -> None:
    with pytest.raises(DataError, match="1 distinct SFT answers and 300 distinct base"):
        AdoptionClassifier.train(["Same."] * 500, [f"The {n} went." for n in range(300)])


def test_no_answers_are_refused(classifier: AdoptionClassifier) -> None:
    with pytest.raises(DataError, match="no answers"):
        classifier.share([])
