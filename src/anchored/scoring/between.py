"""Similarity between the answers of different sets to the same prompt: `--between`.

The mean cosine over all pairs of an answer of one set and an answer of the other, averaged over
prompts: Jiang et al. 2025 (arXiv 2510.22954) call high values between models an "artificial
hivemind". Beside it stands the same figure within each set, over pairs of different answers. If
two sets are as similar to each other as each is to itself, they give the same answers.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anchored.metrics.embedding import dissimilarity, unit
from anchored.metrics.statistics import mean_interval
from anchored.scoring.backends import ReadersConfig
from anchored.scoring.measure import Measured

FloatArray = NDArray[np.float64]


def between(measured: Mapping[str, Measured], config: ReadersConfig) -> dict[str, Any]:
    """Return the mean cosine within each set and between each two sets.

    Returns:
        `within.<name>` and a list `pairs` of `{sets: [first, second], ...}`, each with `mean`,
        `low`, `high` (None with one prompt) and the values `by_prompt`, in the order of the
        prompts.
    """
    return {
        "within": {
            name: _summary([1 - dissimilarity(own) for own in one.vectors], config)
            for name, one in measured.items()
        },
        "pairs": [
            {
                "sets": [first, second],
                **_summary(
                    [
                        similarity(a, b)
                        for a, b in zip(
                            measured[first].vectors, measured[second].vectors, strict=True
                        )
                    ],
                    config,
                ),
            }
            for first, second in itertools.combinations(measured, 2)
        ],
    }


def similarity(first: FloatArray, second: FloatArray) -> float:
    """Return the mean cosine over all pairs of a row of `first` [K, D] and of `second` [L, D].

    Raises:
        DataError: a row is zero or not finite.
    """
    return float(unit(first).mean(axis=0) @ unit(second).mean(axis=0))


def _summary(values: Sequence[float], config: ReadersConfig) -> dict[str, Any]:
    by_prompt = [float(value) for value in values]
    if len(by_prompt) == 1:
        return {"mean": by_prompt[0], "low": None, "high": None, "by_prompt": by_prompt}
    found = mean_interval(by_prompt, config.resamples, config.seed)
    return {"mean": found.mean, "low": found.low, "high": found.high, "by_prompt": by_prompt}
