"""Partition a prompt's texts into classes of equivalent texts.

As in NoveltyBench's v1.0, the partition is greedy: a text joins the first class whose *first*
member it matches, or else starts a new class. Equal texts share a class under every backend,
whatever its measure or threshold. Partitions by different backends are not comparable, so each
backend's `name` is reported beside every figure.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from numpy.typing import ArrayLike

from anchored.metrics.embedding import Embedder, unit
from anchored.metrics.lexical import is_unspaced, words

SHORT = 5  # words, up to which v1.0 counts words instead of asking its classifier
SHORT_OVERLAP = 0.5
OVERLAP = 0.46

Matches = Callable[[int, Sequence[int]], Iterable[bool]]


class Equivalence(Protocol):
    """An equivalence backend; `name` states the backend with its version and threshold."""

    name: str

    def partition(self, texts: Sequence[str]) -> list[int]:
        """Return one class number per text; classes are numbered by their first members' order."""
        ...


def greedy(texts: Sequence[Hashable], matches: Matches) -> list[int]:
    """Return the class number of each text.

    Args:
        texts: what is compared; equal ones share a class without asking `matches`.
        matches: given a text's index and the indices of the classes' first members, yields whether
            the text matches each; read only up to the first match.
    """
    heads: list[int] = []
    classes: dict[Hashable, int] = {}
    for i, text in enumerate(texts):
        if text not in classes:
            found = (c for c, same in enumerate(matches(i, heads)) if same)
            classes[text] = next(found, len(heads))
            if classes[text] == len(heads):
                heads.append(i)
    return [classes[text] for text in texts]


class Exact:
    """Texts match if they are equal apart from leading and trailing white space."""

    name = "exact"

    def partition(self, texts: Sequence[str]) -> list[int]:
        """See `Equivalence`."""
        return greedy([text.strip() for text in texts], lambda i, heads: ())


@dataclass(frozen=True, slots=True)
class ComparedText:
    """The words of one text: those of v1.0, and the distinct words of `lexical.words`.

    v1.0 splits at white space, which would make one word of a Chinese or Thai text.
    """

    v1_words: tuple[str, ...]
    distinct: frozenset[str]

    @classmethod
    def of(cls, text: str) -> Self:
        """Split a text."""
        found = words(text)
        v1_words = found if is_unspaced(text) else text.lower().split()
        return cls(tuple(v1_words), frozenset(found))


class WordOverlap:
    """Texts match if their common words are at least `threshold` of the words of the richer text.

    Only distinct words count, so a text shares all of its words with itself however often it
    repeats them, and the threshold means the same at every length. Texts of up to five words are
    compared by `short_rule`, as in v1.0. How the default was chosen: docs/results/noveltybench.md.
    """

    def __init__(self, threshold: float = OVERLAP) -> None:
        self.threshold = threshold
        self.name = f"distinct word overlap >= {threshold:g}, {SHORT_OVERLAP:g} up to {SHORT} words"

    def partition(self, texts: Sequence[str]) -> list[int]:
        """See `Equivalence`."""
        compared = [ComparedText.of(text) for text in texts]  # once, for N^2 comparisons

        def same(head: int, i: int) -> bool:
            by_rule = short_rule(compared[head], compared[i])
            if by_rule is not None:
                return by_rule
            return overlap(compared[head].distinct, compared[i].distinct) >= self.threshold

        keys = [text.v1_words for text in compared]
        return greedy(keys, lambda i, heads: (same(head, i) for head in heads))


def overlap(first: frozenset[str], second: frozenset[str]) -> float:
    """Return the common words over those of the text that has more, 0..1; 1 if both are empty."""
    more = max(len(first), len(second))
    return len(first & second) / more if more else 1.0


def short_rule(first: ComparedText, second: ComparedText) -> bool | None:
    """Return whether two texts of at most five words share half of them; None for longer texts.

    This is v1.0's rule for short texts: 2 |distinct common words| >= the longer text's word count.
    """
    longer = max(len(first.v1_words), len(second.v1_words))
    if longer > SHORT:
        return None
    common = len(set(first.v1_words) & set(second.v1_words))
    return common >= SHORT_OVERLAP * longer


class EmbeddingThreshold:
    """Texts match if the cosine of their embeddings is at least `threshold`."""

    def __init__(self, embedder: Embedder, threshold: float) -> None:
        self.embedder = embedder
        self.threshold = threshold
        self.name = f"cosine >= {threshold:g} by {embedder.name}"

    def partition(self, texts: Sequence[str]) -> list[int]:
        """See `Equivalence`."""
        return self.partition_vectors(texts, self.embedder.embed(texts))

    def partition_vectors(self, texts: Sequence[str], vectors: ArrayLike) -> list[int]:
        """Partition texts by their vectors [N, D] from the embedder."""
        rows = unit(vectors)
        return greedy(
            [text.strip() for text in texts],
            lambda i, heads: rows[list(heads)] @ rows[i] >= self.threshold if i else (),
        )
