"""Informativeness: how much of a text's content its tags predict.

A text is represented by its embedding y [D], its tags by features x. The features of a key are
indicators of its `MAX_INDICATORS` most frequent values (if they occur at least `MIN_COUNT` times),
an indicator of whether the key is present, and the first `COMPONENTS` principal components of the
sum of its values' static vectors, which capture rare values by their meaning. A ridge regression
from x to y is evaluated by cross-validation with `FOLDS` folds. Its penalty is chosen on the
training folds by generalised cross-validation (Golub, Heath and Wahba 1979). No row is in two
folds, because the chunks of one document share both tags and content.

`r2` = 1 - sum |y - y_hat|^2 / sum |y - mean|^2 over the held-out texts; the training folds give
mean and y_hat. A value of 0 is no better than the mean; negative values are possible.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anchored.annotation import Annotation
from anchored.metrics.embedding import Embedder
from anchored.models.static_vectors import load_static_model
from anchored.tags.observations import Part

FOLDS = 5
MIN_COUNT = 5
MAX_INDICATORS = 50
COMPONENTS = 16
PERMUTATIONS = 3
_PENALTIES = 10.0 ** np.arange(-2, 5)

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Informativeness:
    """Share of the held-out variance of the texts' embeddings that the tags explain.

    Attributes:
        texts: number of texts.
        r2: share explained by all keys.
        by_chance: the same with the annotations permuted among the texts; mean of `PERMUTATIONS`.
        by_key: share explained by each key alone.
        embedder: name of the embedder; figures from different embedders are not comparable.
    """

    texts: int
    r2: float
    by_chance: float
    by_key: Mapping[str, float]
    embedder: str

    def data(self) -> dict[str, Any]:
        """Return the figures as JSON data."""
        return asdict(self)


def informativeness(parts: Sequence[Part], embedder: Embedder, seed: int = 0) -> Informativeness:
    """Measure informativeness on annotated texts; the module's docstring defines it.

    Args:
        parts: texts of at least `FOLDS` rows; a missing annotation counts as an empty one.
        embedder: the embedder of the texts.
        seed: seed of the folds and permutations.
    """
    rng = np.random.default_rng(seed)
    vectors = np.asarray(embedder.embed([part.text for part in parts]), np.float64)
    features = tag_features([part.annotation or Annotation() for part in parts])
    folds = row_folds([part.row for part in parts], rng)
    everything = np.column_stack([*features.values()]) if features else np.zeros((len(parts), 0))
    dealt = [rng.permutation(len(parts)) for _ in range(PERMUTATIONS)]
    return Informativeness(
        texts=len(parts),
        r2=explained(everything, vectors, folds),
        by_chance=float(np.mean([explained(everything[p], vectors, folds) for p in dealt])),
        by_key={key: explained(x, vectors, folds) for key, x in features.items()},
        embedder=embedder.name,
    )


def row_folds(rows: Sequence[str], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the fold of each part [N]: one fold per row, and equally many rows per fold."""
    distinct = {row: place for place, row in enumerate(dict.fromkeys(rows))}
    fold_of = rng.permutation(len(distinct)) % FOLDS
    return fold_of[[distinct[row] for row in rows]]


def tag_features(annotations: Sequence[Annotation]) -> dict[str, Floats]:
    """Return the columns [N, F] of each key, as the module's docstring defines them."""
    keys = dict.fromkeys(key for annotation in annotations for key in annotation.keys)
    return {key: _key_features([a.values(key) for a in annotations]) for key in keys}


def _key_features(values: Sequence[tuple[str, ...]]) -> Floats:
    counts = Counter(value for found in values for value in set(found))
    common = [v for v, count in counts.most_common(MAX_INDICATORS) if count >= MIN_COUNT]
    place = {value: i for i, value in enumerate(common)}
    columns = np.zeros((len(values), len(common) + 1))
    for row, found in zip(columns, values, strict=True):
        row[-1] = bool(found)
        row[[place[value] for value in found if value in place]] = 1
    return np.column_stack([columns, _components(values, list(counts))])


def _components(values: Sequence[tuple[str, ...]], distinct: Sequence[str]) -> Floats:
    """Return the principal components [N, COMPONENTS] of each text's summed value vectors."""
    vectors = np.asarray(
        load_static_model().encode(list(distinct), use_multiprocessing=False), np.float64
    )
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    place = {value: i for i, value in enumerate(distinct)}
    sums = np.zeros((len(values), vectors.shape[1]))
    for row, found in zip(sums, values, strict=True):
        row += vectors[[place[value] for value in found]].sum(0)
    sums -= sums.mean(0)
    _, axes = np.linalg.eigh(sums.T @ sums)
    return sums @ axes[:, ::-1][:, :COMPONENTS]


def explained(x: Floats, y: Floats, folds: NDArray[np.int64]) -> float:
    """Return the cross-validated R^2 of y [N, D] from x [N, F], over all dimensions together."""
    left, spread = 0.0, 0.0
    for fold in np.unique(folds):
        seen, held = folds != fold, folds == fold
        mean = y[seen].mean(0)
        left += ((y[held] - mean - _predict(x[seen], y[seen] - mean, x[held])) ** 2).sum()
        spread += ((y[held] - mean) ** 2).sum()
    return float(1 - left / spread)


def _predict(x: Floats, y: Floats, new: Floats) -> Floats:
    """Predict `new` by ridge regression with the penalty of the lowest GCV score."""
    # One eigendecomposition serves all penalties and all dimensions of y. sklearn's RidgeCV
    # predicts the same, but takes 2.8 s where this takes 0.55 s (2,000 texts, 300 features).
    centre, scale = x.mean(0), np.maximum(x.std(0), 1e-9)
    used = x.std(0) > 1e-9
    x, new = ((m - centre)[:, used] / scale[used] for m in (x, new))
    spectrum, axes = np.linalg.eigh(x.T @ x)
    spectrum = np.maximum(spectrum, 0)
    loads = axes.T @ (x.T @ y)
    size = (loads**2).sum(1)

    def score(penalty: float) -> float:
        shrunk = 1 / (spectrum + penalty)
        residual = (y**2).sum() - (size * shrunk * (2 - spectrum * shrunk)).sum()
        return residual / (len(x) - (spectrum * shrunk).sum()) ** 2

    penalty = min(_PENALTIES, key=score)
    return new @ (axes @ (loads / (spectrum + penalty)[:, None]))
