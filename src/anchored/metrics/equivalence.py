"""Which of a prompt's texts say the same: backends that partition them into classes.

As in NoveltyBench's v1.0 the partition is greedy: a text joins the first class whose *first* member
it matches, else it begins a class. Partitions by different backends do not compare: `name` goes
beside every figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from anchored.errors import ConfigError
from anchored.metrics.embedding import unit
from anchored.models.embedders import Embedder

SHORT = 5  # words, up to which v1.0 counts words instead of asking its classifier
SHORT_OVERLAP = 0.5
OVERLAP = 0.24
V1_CLASSIFIER = "yimingzhang/deberta-v3-large-generation-similarity"
V1_TOKENIZER = "microsoft/deberta-v3-large"
V1_THRESHOLD = 0.102
V1_TOKENS = 128

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


class Classifier:
    """v1.0's classifier: a cross-encoder's probability that two texts say the same.

    Each text is cut to its first `tokens` tokens, as the model was trained and the published
    figures made: what follows is not seen. Texts of up to five words go by `short_rule`.

    Args:
        source: folder or hub id of a sequence classifier with two labels, the second "same".
        threshold: probability above which texts are the same.
        tokens: read of each text.
        batch_size: pairs at once; the result does not depend on it.

    Raises:
        ConfigError: the model or its tokenizer cannot be loaded.
    """

    def __init__(
        self,
        source: str = V1_CLASSIFIER,
        threshold: float = V1_THRESHOLD,
        tokens: int = V1_TOKENS,
        batch_size: int = 16,
    ) -> None:
        self.threshold, self.tokens, self.batch_size = threshold, tokens, batch_size
        self._model, self._tokenizer = _load(source)
        label = Path(source).resolve().name if Path(source).is_dir() else source
        revision = getattr(self._model.config, "_commit_hash", None)
        self.name = (
            f"{label}{f'@{revision}' if revision else ''} p > {threshold:g}, "
            f"first {tokens} tokens, word overlap up to {SHORT} words"
        )

    def partition(self, texts: Sequence[str]) -> list[int]:
        """See `Equivalence`."""
        split = [text.lower().split() for text in texts]

        def matches(i: int, heads: Sequence[int]) -> Iterable[bool]:
            for start in range(0, len(heads), self.batch_size):
                some = heads[start : start + self.batch_size]
                rules = [short_rule(split[head], split[i]) for head in some]
                asked = [head for head, rule in zip(some, rules, strict=True) if rule is None]
                found = self.probabilities([(texts[head], texts[i]) for head in asked])
                known = iter(found > self.threshold)
                for rule in rules:
                    yield bool(next(known)) if rule is None else rule

        return greedy(len(texts), matches)

    def probabilities(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """That the two texts of each pair say the same [pairs]."""
        import torch

        if not pairs:
            return np.zeros(0)
        ids = [self._pair(*pair) for pair in pairs]
        longest = max(len(first) + len(second) for first, second in ids)
        tensors = torch.zeros(3, len(ids), longest, dtype=torch.long)  # ids, token types, mask
        tensors[0] = self._tokenizer.pad_token_id
        for row, (first, second) in enumerate(ids):
            end = len(first) + len(second)
            tensors[0, row, :end] = torch.tensor([*first, *second])
            tensors[1, row, len(first) : end] = 1
            tensors[2, row, :end] = 1
        ids_, types, mask = tensors.to(self._model.device)
        with torch.inference_mode():
            logits = self._model(input_ids=ids_, token_type_ids=types, attention_mask=mask).logits
        return logits.float().softmax(-1)[:, 1].cpu().numpy()

    def _pair(self, first: str, second: str) -> tuple[list[int], list[int]]:
        """`[CLS] first [SEP]` and `second [SEP]`, each text cut by itself."""
        encoded = [
            self._tokenizer.encode(
                text, truncation=True, max_length=self.tokens, add_special_tokens=False
            )
            for text in (first, second)
        ]
        start, end = self._tokenizer.cls_token_id, self._tokenizer.sep_token_id
        return [start, *encoded[0], end], [*encoded[1], end]


def _load(source: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from anchored.models.checkpoints import check_safe, quiet_transformers

    check_safe(f"equivalence classifier {source!r}", source)
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(
                V1_TOKENIZER if source == V1_CLASSIFIER else source, trust_remote_code=False
            )
            model: Any = AutoModelForSequenceClassification.from_pretrained(
                source, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"equivalence classifier {source!r}: {reason}") from None
    if model.config.num_labels != 2:
        raise ConfigError(
            f"equivalence classifier {source!r}: has {model.config.num_labels} labels; "
            "it needs two, different and same"
        )
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer
