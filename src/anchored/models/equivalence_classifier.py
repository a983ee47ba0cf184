"""NoveltyBench v1.0's classifier of equivalent texts, as a backend of `Equivalence`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anchored.errors import ConfigError
from anchored.metrics.equivalence import SHORT, ComparedText, greedy, short_rule

V1_CLASSIFIER = "yimingzhang/deberta-v3-large-generation-similarity"
V1_TOKENIZER = "microsoft/deberta-v3-large"
V1_THRESHOLD = 0.102
V1_TOKENS = 128


class Classifier:
    """The v1.0 classifier: a cross-encoder's probability that two texts say the same.

    Each text is cut to its first `tokens` tokens, as in the model's training and in the published
    figures; the rest is ignored. Texts of up to five words are compared by `short_rule`.

    Args:
        source: folder or hub id of a sequence classifier with two labels, the second "same".
        threshold: probability above which two texts are the same.
        tokens: tokens to read of each text.
        batch_size: pairs per batch; the result does not depend on it.

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
        split = [ComparedText.of(text) for text in texts]

        def matches(i: int, heads: Sequence[int]) -> Iterable[bool]:
            for start in range(0, len(heads), self.batch_size):
                some = heads[start : start + self.batch_size]
                rules = [short_rule(split[head], split[i]) for head in some]
                asked = [head for head, rule in zip(some, rules, strict=True) if rule is None]
                found = self.probabilities([(texts[head], texts[i]) for head in asked])
                known = iter(found > self.threshold)
                for rule in rules:
                    yield bool(next(known)) if rule is None else rule

        return greedy([text.strip() for text in texts], matches)

    def probabilities(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Return the probability [pairs] that the two texts of each pair say the same."""
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
        """Encode `[CLS] first [SEP]` and `second [SEP]`, each text cut on its own."""
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
