"""The memory of a training step, found without spending it.

The model, its loss and its optimizer are run on tensors that have shapes and no contents, and what
lies in memory is counted as it comes and goes. So the figure holds for any architecture, and counts
the copies that a step makes on its way.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, TrainingArguments

from anchored.train.monitor import LossByKind
from anchored.train.muon import muon_for
from anchored.train.projection import projected_loss

Optimizer = Literal["adamw", "sgd", "muon"]


@dataclass(frozen=True)
class Step:
    """What one device holds of a batch, and how.

    Args:
        rows: of one forward pass.
        length: tokens in a row.
        supervised: share of the tokens whose logits are kept.
        autocast: are products taken in bfloat16 and weights kept in float32.
        checkpointing: are activations inside a layer computed again in the backward pass.
        deferred: are logits made and dropped a few rows at a time, see `projection`; else they lie
            there whole, with their copies.
        optimizer: what its states are.
    """

    rows: int
    length: int
    supervised: float = 1.0
    autocast: bool = False
    checkpointing: bool = False
    deferred: bool = False
    optimizer: Optimizer = "adamw"


@dataclass(frozen=True)
class Footprint:
    """Bytes on one device that shares nothing.

    Args:
        weights, gradients, optimizer: of the whole model.
        activations: the most that forward and backward pass hold beside these.
        peak: the most of all together in one step; gradients come as activations go.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int


def footprint(config: PreTrainedConfig, step: Step, dtype: torch.dtype) -> Footprint:
    """Of the second of two steps (the first makes the optimizer's states), weights in `dtype`."""
    with FakeTensorMode(), _Counted() as memory:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        if step.checkpointing:
            model.activation_checkpointing_enable()  # pyright: ignore[reportAttributeAccessIssue]
        memory.keep(model.parameters())
        weights = memory.kept
        for p in model.parameters():
            p.register_post_accumulate_grad_hook(lambda p: memory.keep([p.grad]))
        optimizer = _optimizer(model, step.optimizer)
        _forward_and_backward(model.train(), step)
        gradients = memory.kept - weights
        optimizer.step()
        memory.keep(_states(optimizer))
        states = memory.kept - weights - gradients
        optimizer.zero_grad()
        memory.peak = memory.most_passing = 0
        _forward_and_backward(model, step)
        optimizer.step()
        return Footprint(weights, gradients, states, memory.most_passing, memory.peak)


def _states(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    values = [value for state in optimizer.state.values() for value in state.values()]
    return [value for value in values if isinstance(value, torch.Tensor)]


def _forward_and_backward(model: PreTrainedModel, step: Step) -> None:
    """As the trainer does it, but the kept positions are given by number: a mask has contents."""
    tokens = step.rows * step.length
    ids = torch.zeros(step.rows, step.length, dtype=torch.long)
    kept = torch.zeros(max(1, round(tokens * step.supervised)), dtype=torch.long)
    body: Any = model.base_model
    head: Any = model.get_output_embeddings()
    with torch.autocast("cpu", torch.bfloat16, enabled=step.autocast):
        hidden = body(input_ids=ids, position_ids=ids, use_cache=False).last_hidden_state
        learnt = hidden.flatten(0, 1)[kept]
        del hidden
        if step.deferred:
            value, outputs = projected_loss(learnt, head.weight, kept)[0], learnt.float()
        else:
            value, outputs = _whole_loss(head(learnt), kept)
    del learnt, outputs
    value.backward()


def _whole_loss(logits: torch.Tensor, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and what accelerate gives out of a model that runs under autocast."""
    value = LossByKind()(logits, kept, logits.shape[-1], kept, num_items_in_batch=1)
    return value, logits.float()


def _optimizer(model: PreTrainedModel, kind: Optimizer) -> torch.optim.Optimizer:
    if kind == "muon":
        return muon_for(model, TrainingArguments(output_dir="unused", use_cpu=True), 0.02)
    if kind == "sgd":
        return torch.optim.SGD(model.parameters())
    return torch.optim.AdamW(model.parameters(), fused=True)


class _Counted(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make, while they live.

    `kept` are those that were named to `keep`; all others are passing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bytes: dict[int, int] = {}
        self._kept: set[int] = set()
        self._now = self.kept = self.peak = self.most_passing = 0

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        for value in tree_leaves(found):
            if isinstance(value, torch.Tensor):
                self._add(value.untyped_storage())
        return found

    def keep(self, tensors: Any) -> None:
        for tensor in tensors:
            key = tensor.untyped_storage()._cdata
            if key in self._bytes and key not in self._kept:
                self._kept.add(key)
                self.kept += self._bytes[key]

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._bytes:
            return
        self._bytes[key] = storage.nbytes()
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        self.most_passing = max(self.most_passing, self._now - self.kept)
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        size = self._bytes.pop(key)
        self._now -= size
        if key in self._kept:
            self._kept.remove(key)
            self.kept -= size
