"""The memory of a training step, measured without using that memory.

The model, its loss and its optimizer run on tensors with shapes but no contents, and the bytes are
counted as tensors are created and freed. So the figure is right for any architecture and includes
temporary copies.
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
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    TrainingArguments,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from anchored.models.lora import LoraSettings, attach, without_adapter
from anchored.step.attention import attention_by_lengths
from anchored.step.losses import CROSS_ENTROPY, LossByKind
from anchored.step.muon import muon_for
from anchored.step.projection import projected_loss
from anchored.tokenizer import CONTROL_TOKENS

Optimizer = Literal["adamw", "sgd", "muon"]
_BY_ROW, _NO_MASK = "anchored_by_row", "anchored_no_mask"
# Four bits per weight, eight per scale of 64 weights, 32 per scale of 256 of these scales (Dettmers
# et al., QLoRA, 2023, section 3).
_NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8


@dataclass(frozen=True)
class Step:
    """One device's part of a training step.

    Args:
        rows: rows of one forward pass.
        length: tokens per row.
        supervised: share of the tokens whose logits are kept.
        autocast: True if products are computed in bfloat16 and weights kept in float32.
        checkpointing: True if activations inside a layer are recomputed in the backward pass.
        loss: name of the loss in `LOSSES`; only cross-entropy can be deferred.
        deferred: True if logits are computed and dropped a few rows at a time, see `projection`;
            otherwise all of them, with their copies, are in memory.
        optimizer: the optimizer, which determines the states.
        device: device type; an accelerator processes more rows of logits at a time.
        attention: name of the implementation in `transformers`. Under `sdpa`, each layer keeps a
            mask of the rows on an accelerator, while a CPU attends within documents.
        lora: the adapter that is trained instead of the weights.
        four_bits: True if the weights below the adapter are held in four bits.
    """

    rows: int
    length: int
    supervised: float = 1.0
    autocast: bool = False
    checkpointing: bool = False
    deferred: bool = False
    loss: str = CROSS_ENTROPY
    optimizer: Optimizer = "adamw"
    device: str = "cpu"
    attention: str = "sdpa"
    lora: LoraSettings | None = None
    four_bits: bool = False

    @property
    def simulated_attention(self) -> str:
        """An implementation with the same memory use; all kernels without a mask are alike."""
        if self.attention == "eager" or (self.attention == "sdpa" and self.device != "cpu"):
            return self.attention
        return _BY_ROW if self.device == "cpu" else _NO_MASK


@dataclass(frozen=True)
class Footprint:
    """The bytes on one device without sharding.

    Args:
        weights, gradients, optimizer: bytes of the whole model.
        activations: maximum bytes that forward and backward pass hold in addition.
        peak: maximum of all together in one step; gradients arrive while activations are freed.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int


def footprint(config: PreTrainedConfig, step: Step, dtype: torch.dtype) -> Footprint:
    """Measure the second of two steps (the first creates optimizer states), weights in `dtype`."""
    model = _model(config, step, dtype)
    with FakeTensorMode(), _Counted() as memory:
        _move_to_cpu(model)
        memory.keep(model.parameters())
        weights = memory.kept
        for p in filter(_is_trained, model.parameters()):
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
        saved = _saved_by_four_bits(model) if step.four_bits else 0
        return Footprint(
            weights - saved, gradients, states, memory.most_passing, memory.peak - saved
        )


def adapted(model: PreTrainedModel, settings: LoraSettings, four_bits: bool = False) -> Any:
    """Attach the adapter that training would attach, without needing a tokenizer."""
    return attach(model, settings, range(len(CONTROL_TOKENS)), quantized=four_bits)


def _model(config: PreTrainedConfig, step: Step, dtype: torch.dtype) -> Any:
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            config,
            dtype=dtype,
            attn_implementation=step.simulated_attention,
            trust_remote_code=False,
        )
        if step.checkpointing:
            model.activation_checkpointing_enable()
        return adapted(model, step.lora, step.four_bits) if step.lora else model


def _move_to_cpu(model: torch.nn.Module) -> None:
    """Move `model` from the meta device; unlike `to_empty`, this keeps tied weights tied."""
    moved: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    if id(tensor) not in moved:
                        moved[id(tensor)] = _on_cpu(tensor)
                    tensors[name] = moved[id(tensor)]  # pyright: ignore


def _on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
    if not isinstance(tensor, torch.nn.Parameter):
        return empty
    return torch.nn.Parameter(empty, requires_grad=tensor.requires_grad)


def _is_trained(parameter: torch.nn.Parameter) -> bool:
    return parameter.requires_grad


def _saved_by_four_bits(model: Any) -> int:
    """Return the bytes saved by NF4 with nested scales, in all linear layers but the projection."""
    inner: Any = without_adapter(model)
    head = set(inner.get_output_embeddings().modules())
    linear = [m for m in inner.modules() if type(m) is torch.nn.Linear and m not in head]
    frozen = [m.weight for m in linear if not m.weight.requires_grad]
    return int(sum(w.numel() * (w.itemsize - _NF4_BYTES) for w in frozen))


def _states(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    values = [value for state in optimizer.state.values() for value in state.values()]
    return [value for value in values if isinstance(value, torch.Tensor)]


def _forward_and_backward(model: Any, step: Step) -> None:
    """Run a step as the trainer does, but with positions by number, because masks have contents."""
    model = without_adapter(model)
    tokens = step.rows * step.length
    ids = torch.zeros(step.rows, step.length, dtype=torch.long)
    kept = torch.zeros(max(1, round(tokens * step.supervised)), dtype=torch.long)
    body: Any = model.base_model
    head: Any = model.get_output_embeddings()
    with torch.autocast("cpu", torch.bfloat16, enabled=step.autocast):
        hidden = body(input_ids=ids, position_ids=ids, use_cache=False).last_hidden_state
        learnt = hidden.flatten(0, 1)[kept]
        del hidden
        if step.deferred and type(head) is torch.nn.Linear:  # an adapter may have wrapped it
            value = projected_loss(learnt, head.weight, kept, device=step.device)[0]
            outputs = learnt.float()
        else:
            value, outputs = _whole_loss(head(learnt), kept, step.loss)
    del learnt, outputs
    value.backward()


def _whole_loss(
    logits: torch.Tensor, kept: torch.Tensor, loss: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss, and the float32 copy that accelerate makes of a model's autocast output."""
    value = LossByKind(name=loss)(logits, kept, logits.shape[-1], kept, num_items_in_batch=1)
    return value, logits.float()


def _optimizer(model: PreTrainedModel, kind: Optimizer) -> torch.optim.Optimizer:
    if kind == "muon":
        return muon_for(model, TrainingArguments(output_dir="unused", use_cpu=True), 0.02)
    trained = filter(_is_trained, model.parameters())
    if kind == "sgd":
        return torch.optim.SGD(trained)
    return torch.optim.AdamW(trained, fused=True)


def _attention_by_row(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Compute `document_attention` as if each row were one document."""
    rows, _, length, _ = query.shape
    return attention_by_lengths(module, query, key, value, [length] * rows, **settings)


def _no_mask(*arguments: Any, **settings: Any) -> None:
    return None


for _name, _function in ((_BY_ROW, _attention_by_row), (_NO_MASK, sdpa_attention_forward)):
    AttentionInterface.register(_name, _function)
    AttentionMaskInterface.register(_name, _no_mask)


class _Counted(TorchDispatchMode):
    """A mode that counts the bytes of all live tensors created by operations.

    `kept` counts the tensors passed to `keep`; all others are passing.
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
