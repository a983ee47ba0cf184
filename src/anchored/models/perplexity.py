"""Quality by a reference model: the perplexity of each text given its prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from anchored.errors import DataError
from anchored.models.checkpoints import load_whole, quiet_transformers
from anchored.tokenizer import AnchoredTokenizer


@dataclass(frozen=True, slots=True)
class TextLoss:
    """The summed negative log-likelihood (nats) of a text and its number of tokens."""

    nats: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """The exponential of the mean loss per token."""
        return math.exp(self.nats / self.tokens)


class ReferenceModel:
    """A causal language model that scores texts; report its `name` with every figure.

    Perplexities under different references or tokenizers are not comparable.
    """

    def __init__(self, name: str, model: PreTrainedModel, tokenizer: AnchoredTokenizer) -> None:
        self.name = name
        self.model = model.eval()
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, source: str, device: str = "cpu") -> ReferenceModel:
        """Load the model in a folder or hub id, in single precision.

        Raises:
            ConfigError: it cannot be loaded, has pickled weights, or is not a whole model.
        """
        with quiet_transformers():
            model: Any = load_whole(source, dtype=torch.float32)
        return cls(source, model.to(device), AnchoredTokenizer.load(source))

    def losses(
        self, texts: Sequence[str], prompts: Sequence[str], batch_size: int = 8
    ) -> list[TextLoss]:
        """Return the loss of each text after the start token and its prompt, which do not count.

        Prompt and text are encoded separately. Batches are padded on the right, where a causal
        model does not look, so the result does not depend on `batch_size`.

        Raises:
            DataError: the numbers of texts and prompts differ, a text has no tokens, or a text with
                its prompt is longer than the model's context.
        """
        if len(texts) != len(prompts):
            raise DataError(f"perplexity: {len(texts)} texts but {len(prompts)} prompts")
        rows = zip(self._encode(prompts, [self._start]), self._encode(texts), strict=True)
        return self.losses_of_ids(list(rows), batch_size)

    def losses_of_ids(
        self, rows: Sequence[tuple[Sequence[int], Sequence[int]]], batch_size: int = 8
    ) -> list[TextLoss]:
        """Return the losses of encoded rows: context, including the start token, and text.

        Raises:
            DataError: a text without tokens, or a row longer than the model's context.
        """
        for number, (context, target) in enumerate(rows):
            self._check(number, len(context), len(target))
        by_length = sorted(range(len(rows)), key=lambda i: sum(map(len, rows[i])))
        losses: dict[int, TextLoss] = {}
        for first in range(0, len(rows), batch_size):
            batch = by_length[first : first + batch_size]
            losses |= zip(batch, self._score([rows[i] for i in batch]), strict=True)
        return [losses[i] for i in range(len(rows))]

    @property
    def _start(self) -> int:
        return self.tokenizer.control.bos

    def _encode(self, texts: Sequence[str], before: Sequence[int] = ()) -> list[list[int]]:
        return [[*before, *ids] for ids in self.tokenizer.encode_batch(texts)]

    def _check(self, number: int, context: int, target: int) -> None:
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if not target:
            raise DataError(f"perplexity: text {number} is empty; leave it out")
        if limit and context + target > limit:
            raise DataError(
                f"perplexity: text {number} and its prompt have {context + target} tokens; "
                f"{self.name} reads {limit}; shorten it or choose another reference"
            )

    @torch.inference_mode()
    def _score(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[TextLoss]:
        longest = max(len(context) + len(target) for context, target in rows)
        ids = torch.full((len(rows), longest), self.tokenizer.control.pad)
        mask = torch.zeros_like(ids)
        for i, (context, target) in enumerate(rows):
            ids[i, : len(context) + len(target)] = torch.tensor([*context, *target])
            mask[i, : len(context) + len(target)] = 1
        device = self.model.device
        logits = self.model(
            input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
        ).logits
        losses = []
        for row, (context, target) in zip(logits, rows, strict=True):
            scores = row[len(context) - 1 : len(context) + len(target) - 1].float()
            nats = torch.nn.functional.cross_entropy(
                scores, torch.tensor(target, device=device), reduction="none"
            )
            losses.append(TextLoss(float(nats.double().sum()), len(target)))
        return losses


def pooled_perplexity(losses: Sequence[TextLoss]) -> float:
    """Return the exponential of the mean loss over all tokens of all texts.

    Raises:
        DataError: there are no texts.
    """
    if not losses:
        raise DataError("perplexity: there are no texts")
    return math.exp(math.fsum(x.nats for x in losses) / sum(x.tokens for x in losses))
