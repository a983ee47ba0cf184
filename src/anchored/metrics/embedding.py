"""Diversity in an embedding space: pairwise and nearest dissimilarity, and the Vendi score.

Shapes: N texts, D dimensions. This module normalises the vectors; it rejects a zero vector, which
has no direction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anchored.errors import DataError

FloatArray = NDArray[np.float64]
BLOCK = 256  # rows of similarities held at once


class Embedder(Protocol):
    """A text embedder; `name` states backend, model, version and how much of a text it reads."""

    name: str

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Return one vector per text [N, D]; it must not depend on the other texts."""
        ...


def unit(vectors: ArrayLike) -> FloatArray:
    """Return the rows scaled to length 1 [N, D], in double precision.

    Raises:
        DataError: `vectors` is not a matrix, or a row is zero or not finite.
    """
    rows = np.asarray(vectors, dtype=np.float64)
    if rows.ndim != 2:
        raise DataError(f"embeddings: expected a matrix [N, D], found shape {rows.shape}")
    norms = np.linalg.norm(rows, axis=1)
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if bad.size:
        raise DataError(
            f"embeddings: row {bad[0]} is zero or not finite; drop or replace that text"
        )
    return rows / norms[:, None]


def dissimilarity(vectors: ArrayLike) -> float:
    """Return the mean of 1 - cos over all pairs i < j, from 0 (all alike) to 1 + 1/(N-1).

    Cosines are not clipped. Computed as (N^2 - |sum of unit rows|^2) / (N (N-1)), in O(N D).

    Raises:
        DataError: there are fewer than two rows, or a row is zero or not finite.
    """
    rows = unit(vectors)
    n = len(rows)
    if n < 2:
        raise DataError(f"dissimilarity: needs at least two texts, found {n}")
    total = rows.sum(axis=0)
    return max(0.0, float(n * n - total @ total) / (n * (n - 1)))


def mean_dissimilarity(groups: Sequence[ArrayLike]) -> float:
    """Return the `dissimilarity` within each prompt's samples, averaged over prompts (paper).

    Raises:
        DataError: there are no groups, or one has fewer than two rows.
    """
    if not groups:
        raise DataError("dissimilarity: no prompts to average over")
    return sum(dissimilarity(group) for group in groups) / len(groups)


def vendi(vectors: ArrayLike, q: float = 1.0) -> float:
    """Return the Vendi score of order `q`: the effective number of distinct texts, 1 to N.

    It is exp of the Renyi entropy of the eigenvalues of the cosine matrix over N (Friedman and
    Dieng 2023; Pasarkar and Dieng 2024 for q). The eigenvalues come from the smaller of the two
    Gram matrices. Those below rounding error count as zero, which matters for q < 1. For infinite
    `q` the score is 1 / the largest eigenvalue.

    Raises:
        DataError: there are no rows, a row is zero or not finite, or `q` is negative.
    """
    if not q >= 0:
        raise DataError(f"vendi: q is {q}; use a number from 0 to infinity")
    rows = unit(vectors)
    if not len(rows):
        raise DataError("vendi: there are no texts")
    small = rows if len(rows) <= rows.shape[1] else rows.T
    eigenvalues = np.linalg.eigvalsh(small @ small.T / len(rows))
    rounding = eigenvalues[-1] * max(rows.shape) * np.finfo(np.float64).eps
    p = eigenvalues[eigenvalues > rounding]
    if math.isinf(q):
        return float(1 / p[-1])
    if q == 1:
        return float(np.exp(-(p * np.log(p)).sum()))
    return float((p**q).sum() ** (1 / (1 - q)))


def principal_axes(vectors: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Project unit vectors on the two axes along which they vary most (PCA): a map of the texts.

    Returns:
        Centred coordinates [N, 2] in the units of the vectors (between unit vectors the squared
        distance is 2 (1 - cos)), and each axis' share of the total variance [2]. An axis points
        towards its farthest text, so that a map comes out the same on every machine; an axis along
        which nothing varies is 0.

    Raises:
        DataError: there are no rows, or a row is zero or not finite.
    """
    rows = unit(vectors)
    if not len(rows):
        raise DataError("principal axes: there are no texts")
    centred = rows - rows.mean(axis=0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    seen = singular > np.finfo(np.float64).eps * max(rows.shape)
    axes = np.zeros((len(rows), 2))
    kept = min(2, int(seen.sum()))
    axes[:, :kept] = left[:, :kept] * singular[:kept]
    farthest = axes[np.abs(axes).argmax(axis=0), [0, 1]]
    shares = np.zeros(2)
    shares[:kept] = singular[:kept] ** 2 / max((singular**2).sum(), np.finfo(np.float64).tiny)
    return axes * np.where(farthest < 0, -1.0, 1.0), shares


def nearest_distance(vectors: ArrayLike) -> float:
    """Return the mean over texts of 1 - cos to the most similar other text; 0 if each has a copy.

    Takes O(N^2 D) time but only O(N D) memory: similarities are computed `BLOCK` rows at a time.

    Raises:
        DataError: there are fewer than two rows, or a row is zero or not finite.
    """
    rows = unit(vectors)
    n = len(rows)
    if n < 2:
        raise DataError(f"nearest distance: needs at least two texts, found {n}")
    total = 0.0
    for start in range(0, n, BLOCK):
        similar = rows[start : start + BLOCK] @ rows.T
        similar[np.arange(len(similar)), np.arange(start, start + len(similar))] = -np.inf
        total += float((1 - similar.max(axis=1)).sum())
    return max(0.0, total / n)
