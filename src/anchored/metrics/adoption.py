"""Measure adoption on real text: do answers look like SFT's, or like the base model's text?

SFT answers differ from base continuations in form *and* in subject, but a diverse model must not
narrow its subjects. So the classifier sees no subjects: it keeps function words, punctuation, line
breaks and word shapes, and replaces every other word with a placeholder. English only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline

from anchored.errors import DataError

MINIMUM = 20
BINS = 10
_PIECE = re.compile(r"\n+|\w+|[^\w\s]")


def form(text: str) -> list[str]:
    """Return the pieces of `text` that show how it is written, not what it is about.

    Function words are kept in lower case. Other words become `Xx`, `XX` or `x` by their
    capitalisation, numbers become `0`, a line break becomes `|` and a blank line `||`.
    """
    return [_shape(piece) for piece in _PIECE.findall(text)]


def _shape(piece: str) -> str:
    if piece[0] == "\n":
        return "|" if len(piece) == 1 else "||"
    if piece.lower() in ENGLISH_STOP_WORDS or not piece[0].isalnum():
        return piece.lower()
    if piece[0].isdigit():
        return "0"
    if piece.islower():
        return "x"
    return "XX" if piece.isupper() and len(piece) > 1 else "Xx"


@dataclass(frozen=True, slots=True)
class Quality:
    """The classifier's quality, measured on `n` held-out texts.

    `calibration_error` is the mean gap between probability and outcome in ten bins (0 is perfect).
    `brier` is the mean squared error of the probabilities (0.25 is a coin toss).
    """

    accuracy: float
    auc: float
    brier: float
    calibration_error: float
    n: int


class AdoptionClassifier:
    """Logistic regression on the n-grams (1 to 4) of `form`; `quality` is from held-out texts."""

    def __init__(self, model: Pipeline, quality: Quality) -> None:
        self._model = model
        self.quality = quality

    @classmethod
    def train(
        cls, sft: Sequence[str], base: Sequence[str], held_out: float = 0.25, seed: int = 0
    ) -> AdoptionClassifier:
        """Train the classifier on SFT answers and base continuations of the same prompts.

        Repeated texts count once, so that no text is both trained on and tested on. The two
        classes have equal weight whatever their sizes.

        Raises:
            DataError: either class has fewer than `MINIMUM` distinct texts.
        """
        sides = [sorted(set(texts)) for texts in (base, sft)]
        if min(map(len, sides)) < MINIMUM:
            raise DataError(
                f"adoption: {len(sides[1])} distinct SFT answers and {len(sides[0])} distinct base "
                f"continuations; at least {MINIMUM} of each are needed"
            )
        texts = [text for side in sides for text in side]
        labels = np.repeat([0, 1], [len(side) for side in sides])
        fitted, tested = train_test_split(
            np.arange(len(texts)), test_size=held_out, stratify=labels, random_state=seed
        )
        analyzer: Any = _grams  # the stubs know only names
        model = make_pipeline(
            TfidfVectorizer(analyzer=analyzer, sublinear_tf=True, min_df=2),
            LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000),
        )
        model.fit([texts[i] for i in fitted], labels[fitted])
        probabilities = model.predict_proba([texts[i] for i in tested])[:, 1]
        return cls(model, _quality(probabilities, labels[tested]))

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the probability that each text is an SFT answer."""
        return self._model.predict_proba(list(texts))[:, 1]

    def adopted(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Flag the texts that are more likely SFT's than the base's; `share` is their mean."""
        return self.probabilities(texts) > 0.5

    def share(self, texts: Sequence[str]) -> float:
        """Return the `adoption` of these answers.

        Raises:
            DataError: there are no texts.
        """
        if not texts:
            raise DataError("adoption: there are no answers to judge")
        return float(self.adopted(texts).mean())


def _grams(text: str) -> list[str]:
    pieces = form(text)
    return [" ".join(pieces[i : i + n]) for n in range(1, 5) for i in range(len(pieces) - n + 1)]


def _quality(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> Quality:
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=probabilities - labels, minlength=BINS)
    return Quality(
        accuracy=float(((probabilities > 0.5) == labels).mean()),
        auc=float(roc_auc_score(labels, probabilities)),
        brier=float(brier_score_loss(labels, probabilities)),
        calibration_error=float(np.abs(gaps).sum() / len(labels)),
        n=len(labels),
    )
