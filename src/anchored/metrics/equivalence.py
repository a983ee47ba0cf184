"""Partition a prompt's texts into classes of equivalent texts.

As in NoveltyBench's v1.0, the partition is greedy: a text joins the first class whose *first*
member it matches, or else starts a new class. Partitions by different backends are not comparable,
so each backend's `name` is reported beside every figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from numpy.typing import ArrayLike

from anchored.metrics.embedding import Embedder, unit

SHORT = 5  # words, up to which v1.0 counts words instead of asking its classifier
SHORT_OVERLAP = 0.5
OVERLAP = 0.24

Matches = Callable[[int, Sequence[int]], Iterable[bool]]


class Equivalence(Protocol):
    """An equivalence backend; `name` states the backend with its version and threshold."""

    name: str

    def partition(self, texts: Sequence[str]) -> list[int]:
        """Return one class number per text; classes are numbered by their first members' order."""
        ...


def greedy(n: int, matches: Matches) -> list[int]:
    """Return the class numbers of `n` texts.

    Args:
        n: number of texts.
        matches: given a text's index and the indices of the classes' first members, yields whether
            the text matches each; read only up to the first match.
    """
    heads: list[int] = []
    labels = []
    for i in range(n):
        label = next((c for c, same in enumerate(matches(i, heads)) if same), len(heads))
        if label == len(heads):
            heads.append(i)
        labels.append(label)
    return labels


class Exact:
    """Texts match if they are equal apart from leading and trailing white space."""

    name = "exact"

    def partition(self, texts: Sequence[str]) -> list[int]:
        """See `Equivalence`."""
        seen: dict[str, int] = {}
        return [seen.setdefault(text.strip(), len(seen)) for text in texts]


class WordOverlap:
    """Texts match if their common words are at least `threshold` of the longer text's words.

    Texts of up to five words are compared by `short_rule`, as in v1.0. On longer texts the default
    agrees best with v1.0's classifier (docs/results/noveltybench.md).
    """

    def __init__(self, threshold: float = OVERLAP) -> None:
        self.threshold = threshold
        self.name = f"word overlap >= {threshold:g}, {SHORT_OVERLAP:g} up to {SHORT} words"

    def partition(self, texts: Sequence[str]) -> list[int]:
        """See `Equivalence`."""
        split = [text.lower().split() for text in texts]
        known = [(frozenset(words), len(words)) for words in split]  # once, for N^2 comparisons

        def same(head: int, i: int) -> bool:
            (first, n), (second, m) = known[head], known[i]
            needed = SHORT_OVERLAP if max(n, m) <= SHORT else self.threshold
            return _share(first, second, max(n, m)) >= needed

        return greedy(len(texts), lambda i, heads: (same(head, i) for head in heads))


def overlap(first: Sequence[str], second: Sequence[str]) -> float:
    """Return distinct common words over the longer text's word count; 1 if both are empty."""
    return _share(frozenset(first), frozenset(second), max(len(first), len(second)))


def _share(first: frozenset[str], second: frozenset[str], longer: int) -> float:
    return len(first & second) / longer if longer else 1.0


class EmbeddingThreshold:
    """Texts match if the cosine of their embeddings is at least `threshold`."""

    def __init__(self, embedder: Embedder, threshold: float) -> None:
        self.embedder = embedder
        self.threshold = threshold
        self.name = f"cosine >= {threshold:g} by {embedder.name}"

    def partition(self, texts: Sequence[str]) -> list[int]:
        """See `Equivalence`."""
        return self.partition_vectors(self.embedder.embed(texts))

    def partition_vectors(self, vectors: ArrayLike) -> list[int]:
        """Partition texts by their vectors [N, D] from the embedder."""
        rows = unit(vectors)
        return greedy(
            len(rows), lambda i, heads: rows[list(heads)] @ rows[i] >= self.threshold if i else ()
        )


def short_rule(first: Sequence[str], second: Sequence[str]) -> bool | None:
    """Return whether two texts of at most five words share half of them; None for longer texts.

    This is v1.0's rule for short texts.
    """
    if max(len(first), len(second)) > SHORT:
        return None
    return overlap(first, second) >= SHORT_OVERLAP
