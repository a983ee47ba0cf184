"""Diversity in an embedding space: pairwise and nearest dissimilarity, and the Vendi score.

Shapes: N texts, D dimensions. Vectors are normalised here; a zero vector has no direction and is
refused.
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
    """Texts to vectors; `name` states backend, model, version and how much of a text is read."""

    name: str

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """One row a text [N, D], the same whatever the other texts are."""
        ...


def unit(vectors: ArrayLike) -> FloatArray:
    """Rows scaled to length 1 [N, D], in double precision.

    Raises:
        DataError: not a matrix, or a row is zero or not finite.
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
    """Mean of 1 - cos over all pairs i < j, cosines not clipped; 0 (all alike) to 1 + 1/(N-1).

    Computed as (N^2 - |sum of unit rows|^2) / (N (N-1)), in O(N D).

    Raises:
        DataError: fewer than two rows, or a row without direction.
    """
    rows = unit(vectors)
    n = len(rows)
    if n < 2:
        raise DataError(f"dissimilarity: needs two texts or more, found {n}")
    total = rows.sum(axis=0)
    return max(0.0, float(n * n - total @ total) / (n * (n - 1)))


def mean_dissimilarity(groups: Sequence[ArrayLike]) -> float:
    """`dissimilarity` within the samples of each prompt, averaged over prompts (paper).

    Raises:
        DataError: there are no groups, or one has fewer than two rows.
    """
    if not groups:
        raise DataError("dissimilarity: no prompts to average over")
    return sum(dissimilarity(group) for group in groups) / len(groups)


def vendi(vectors: ArrayLike, q: float = 1.0) -> float:
    """Vendi score of order `q`: exp of the Renyi entropy of the eigenvalues of the cosines over N.

    The effective number of distinct texts, 1 to N (Friedman and Dieng 2023; Pasarkar and Dieng
    2024 for q). The eigenvalues come from the smaller of the two Gram matrices; those below
    rounding error count as zero, which matters for q < 1. Infinite `q` is 1 / the largest.

    Raises:
        DataError: no rows, a row without direction, or a negative `q`.
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
    """Unit vectors on the two axes along which they vary most (PCA): a map of the texts.

    Returns:
        Coordinates [N, 2], centred, in the units of the vectors (between unit vectors the squared
        distance is 2 (1 - cos)), and each axis' share of all variance [2]. An axis points to where
        its farthest text is, so that a map comes out the same everywhere; an axis along which
        nothing varies is 0.

    Raises:
        DataError: no rows, or a row without direction.
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
    """Mean over texts of 1 - cos to the most similar other one; 0 where each has a copy.

    In O(N^2 D) time but O(N D) memory: similarities are made `BLOCK` rows at a time.

    Raises:
        DataError: fewer than two rows, or a row without direction.
    """
    rows = unit(vectors)
    n = len(rows)
    if n < 2:
        raise DataError(f"nearest distance: needs two texts or more, found {n}")
    total = 0.0
    for start in range(0, n, BLOCK):
        similar = rows[start : start + BLOCK] @ rows.T
        similar[np.arange(len(similar)), np.arange(start, start + len(similar))] = -np.inf
        total += float((1 - similar.max(axis=1)).sum())
    return max(0.0, total / n)
