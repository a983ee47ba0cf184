"""Which of a prompt's texts say the same: backends that partition them into classes.

As in NoveltyBench's v1.0 the partition is greedy: a text joins the first class whose *first* member
it matches, else it begins a class. Partitions by different backends do not compare: `name` goes
beside every figure.
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
    """A backend; `name` states it with its version and threshold."""

    name: str

    def partition(self, texts: Sequence[str]) -> list[int]:
        """A class number a text, numbered in the order of their first members."""
        ...


def greedy(n: int, matches: Matches) -> list[int]:
    """Class numbers of `n` texts.

    Args:
        n: number of texts.
        matches: given a text's place and the places of the classes' first members, whether it
            matches each; it is read up to the first match.
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
    """Equal but for outer white space."""

    name = "exact"

    def partition(self, texts: Sequence[str]) -> list[int]:
        """See `Equivalence`."""
        seen: dict[str, int] = {}
        return [seen.setdefault(text.strip(), len(seen)) for text in texts]


class WordOverlap:
    """Common words over the words of the longer text, at least `threshold`.

    Texts of up to five words go by `short_rule`, as in v1.0. The default agrees best with its
    classifier on longer ones (docs/results/noveltybench.md).
    """

    def __init__(self, threshold: float = OVERLAP) -> None:
        self.threshold = threshold
        self.name = f"word overlap >= {threshold:g}, {SHORT_OVERLAP:g} up to {SHORT} words"

    def partition(self, texts: Sequence[str]) -> list[int]:
        """See `Equivalence`."""
        split = [text.lower().split() for text in texts]
        known = [(frozenset(words), len(words)) for words in split]  # made once: N^2 comparisons

        def same(head: int, i: int) -> bool:
            (first, n), (second, m) = known[head], known[i]
            needed = SHORT_OVERLAP if max(n, m) <= SHORT else self.threshold
            return _share(first, second, max(n, m)) >= needed

        return greedy(len(texts), lambda i, heads: (same(head, i) for head in heads))


def overlap(first: Sequence[str], second: Sequence[str]) -> float:
    """Distinct common words over the number of words of the longer text; 1 where both are empty."""
    return _share(frozenset(first), frozenset(second), max(len(first), len(second)))


def _share(first: frozenset[str], second: frozenset[str], longer: int) -> float:
    return len(first & second) / longer if longer else 1.0


class EmbeddingThreshold:
    """Cosine of the embeddings, at least `threshold`."""

    def __init__(self, embedder: Embedder, threshold: float) -> None:
        self.embedder = embedder
        self.threshold = threshold
        self.name = f"cosine >= {threshold:g} by {embedder.name}"

    def partition(self, texts: Sequence[str]) -> list[int]:
        """See `Equivalence`."""
        return self.partition_vectors(self.embedder.embed(texts))

    def partition_vectors(self, vectors: ArrayLike) -> list[int]:
        """The same from the embedder's vectors [N, D] of the texts."""
        rows = unit(vectors)
        return greedy(
            len(rows), lambda i, heads: rows[list(heads)] @ rows[i] >= self.threshold if i else ()
        )


def short_rule(first: Sequence[str], second: Sequence[str]) -> bool | None:
    """v1.0's rule: where both have at most five words, do half of them agree? Else None."""
    if max(len(first), len(second)) > SHORT:
        return None
    return overlap(first, second) >= SHORT_OVERLAP
