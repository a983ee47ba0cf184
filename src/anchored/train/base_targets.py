"""Replay against the base model's own distribution (ours, not in the paper).

A replayed annotation is one draw from R, the distribution of annotations; learning the draws pulls
R towards the few that were made. So the target at each position is the base model's whole
distribution: the gradient of this cross-entropy is that of KL(base || model), which is zero as long
as R has not moved.

Shapes: B rows, T tokens, N tokens with loss, M of them in annotations, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import PreTrainedModel

from anchored.segments import Kind
from anchored.tokenizer import ControlIds


class BaseTargets:
    """A frozen copy of the model before SFT, run before each training step.

    It holds the weights a second time, and costs a forward pass over the rows (in a flat batch, the
    documents) with loss on their annotation.

    Args:
        model: the pretrained model; its `loss_function` must accept what `__call__` adds.
        control: ids of control tokens; `open` and `close` belong to an annotation.
        autocast: context for the copy's forward pass, which runs before the model enters its own.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        control: ControlIds,
        autocast: Callable[..., AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._base: Any = copy.deepcopy(model).eval().requires_grad_(False)
        self._ends, self._autocast = (control.open, control.close), autocast
        model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(
        self, model: torch.nn.Module, args: tuple[Any, ...], batch: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Add `in_annotation` (N,) and `base_logits` (M, V) to a batch of `DataCollator`."""
        if not model.training or "target_kinds" not in batch:
            return None
        kinds, labels = batch["target_kinds"], batch["shift_labels"]
        found = (kinds == Kind.TAG_KEY) | (kinds == Kind.TAG_VALUE)
        for control in self._ends:
            found |= labels == control
        if not found.any():
            return None
        return args, {**batch, "in_annotation": found, "base_logits": self._logits(batch, found)}

    @torch.no_grad()
    def _logits(self, batch: dict[str, Any], found: torch.Tensor) -> torch.Tensor:
        places = torch.zeros_like(batch["logits_to_keep"])  # (B, T)
        places[batch["logits_to_keep"]] = found
        asked = _holders(places, batch["position_ids"])
        with self._autocast():
            logits = self._base.to(found.device)(
                input_ids=asked(batch["input_ids"]),
                position_ids=asked(batch["position_ids"]),
                logits_to_keep=asked(places),
                use_cache=False,
            ).logits
        return logits.view(int(found.sum()), -1)


def _holders(
    places: torch.Tensor, position_ids: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a selector of the rows of (B, T) that hold `places`; of a single row, of documents."""
    if len(places) > 1:
        rows = places.any(dim=1)
        return lambda values: values[rows]
    document = (position_ids == 0).cumsum(dim=1)
    tokens = torch.isin(document, document[places])
    return lambda values: values[tokens].unsqueeze(0)
