"""Log-likelihoods of given continuations under a causal language model, in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from anchored.benchmark.prompting import Row


@torch.inference_mode()
def log_likelihoods(
    model: PreTrainedModel,
    rows: Sequence[Row],
    batch_size: int,
    width: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[tuple[float, bool]]:
    """Summed log-probability (nats) of each target, and whether greedy decoding would write it.

    Batches are padded on the right, where a causal model does not look, and logits are computed
    from the first position of any target on. An empty target has log-probability 0.

    Args:
        model: in evaluation mode.
        rows: contexts of at least one token.
        batch_size: rows scored together; the result does not depend on it.
        width: entries of the vocabulary that count; a foreign model's tokenizer was given control
            tokens beyond them, which its probabilities must leave out.
        progress: called with the number of rows done since its last call.
    """
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i].context) + len(rows[i].target))
    found: dict[int, tuple[float, bool]] = {}
    for first in range(0, len(rows), batch_size):
        batch = by_length[first : first + batch_size]
        found |= zip(batch, _scored(model, [rows[i] for i in batch], width), strict=True)
        progress(len(batch))
    return [found[i] for i in range(len(rows))]


def _scored(model: PreTrainedModel, rows: Sequence[Row], width: int) -> list[tuple[float, bool]]:
    sequences = [(row.context + row.target)[:-1] or row.context for row in rows]
    longest = max(map(len, sequences))
    first = min(len(row.context) for row in rows) - 1
    ids = torch.tensor([s + [0] * (longest - len(s)) for s in sequences], device=model.device)
    mask = torch.tensor(
        [[1] * len(s) + [0] * (longest - len(s)) for s in sequences], device=model.device
    )
    logits: Any = model(
        input_ids=ids,
        attention_mask=mask,
        use_cache=False,
        logits_to_keep=torch.arange(first, longest, device=model.device),
    ).logits
    starts = [len(row.context) - 1 - first for row in rows]
    return [
        _of_target(scores[start : start + len(row.target), :width], row.target)
        for scores, start, row in zip(logits, starts, rows, strict=True)
    ]


def _of_target(logits: torch.Tensor, target: Sequence[int]) -> tuple[float, bool]:
    """Logits (T, V) at the places before each of T target tokens."""
    ids = torch.tensor(target, dtype=torch.long, device=logits.device)
    scores = logits.float().log_softmax(-1)
    chosen = scores.gather(-1, ids[:, None])[:, 0]
    return float(chosen.double().sum()), bool((scores.argmax(-1) == ids).all())
