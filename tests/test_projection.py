"""Projection and loss in one: the stock loss and gradients, with few logits held at once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, linear
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from anchored.step import projection
from anchored.step.losses import LossByKind
from anchored.step.projection import DeferredProjection, defer_projection, projected_loss

N, H, V = 11, 6, 50


@pytest.fixture
def chunks_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "_CHUNK", {"cpu": 3 * V + 1})


def parts(n: int = N) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden, weight = torch.randn(n, H), torch.randn(V, H)
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(0, V, (n,))


def model(**fields: Any) -> PreTrainedModel:
    sizes = {
        "vocab_size": V,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(**{"model_type": "olmo2", **sizes, **fields})
    return AutoModelForCausalLM.from_config(config).train()


def test_losses_and_gradients_are_those_of_cross_entropy(chunks_of_three: None):
    hidden, weight, targets = parts()
    total, losses = projected_loss(hidden, weight, targets)
    (total / 7).backward()
    ours = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    expected = cross_entropy(linear(hidden, weight), targets, reduction="none")
    (expected.sum() / 7).backward()
    assert_close((total, losses), (expected.sum(), expected), atol=1e-5, rtol=0)
    assert_close(ours, (hidden.grad, weight.grad), atol=1e-6, rtol=0)


def test_under_autocast_it_rounds_no_more_than_the_stock_loss(chunks_of_three: None):
    """Both are held against float32, because their roundings differ."""
    hidden, weight, targets = parts(64)
    exact = torch.autograd.grad(cross_entropy(linear(hidden, weight), targets), weight)[0]
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = projected_loss(hidden, weight, targets)
        stock = cross_entropy(linear(hidden, weight).float(), targets)
    assert_close(total / 64, stock, atol=1e-5, rtol=0)
    (ours,), (theirs,) = (torch.autograd.grad(x, weight) for x in (total / 64, stock))
    assert ours.dtype == torch.float32
    assert (ours - exact).norm() < 1.1 * (theirs - exact).norm()


def test_a_frozen_projection_gets_no_gradient_and_passes_it_on(chunks_of_three: None):
    hidden, weight, targets = parts()
    expected = torch.autograd.grad(projected_loss(hidden, weight, targets)[0], hidden)
    frozen = weight.detach()
    total, _ = projected_loss(hidden, frozen, targets)
    assert_close(torch.autograd.grad(total, hidden), expected, atol=0, rtol=0)
    assert frozen.grad is None


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation gave."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for found in result if isinstance(result, tuple | list) else [result]:
            if isinstance(found, torch.Tensor):
                self.size = max(self.size, found.numel())
        return result


def test_no_more_logits_are_held_than_a_chunk(chunks_of_three: None):
    hidden, weight, targets = parts(1000)
    with LargestTensor() as largest:
        projected_loss(hidden, weight, targets)[0].backward()
    assert largest.size == 1000 * H  # the gradient of `hidden`; all logits would be 1000 * V


def test_a_batch_without_a_target_has_loss_and_gradients_of_zero():
    hidden, weight, targets = parts(0)
    total, losses = projected_loss(hidden, weight, targets)
    total.backward()
    assert total == 0 and losses.shape == (0,)
    assert weight.grad is not None and not weight.grad.any()


def test_a_model_that_leaves_projecting_to_the_loss_learns_the_same():
    net: Any = model(tie_word_embeddings=True)
    twin: Any = copy.deepcopy(net)
    deferred = defer_projection(net)
    assert deferred is not None and deferred.defers
    net.loss_function, twin.loss_function = LossByKind(deferred), LossByKind()
    ids = torch.randint(3, V, (2, 9))
    keep = torch.rand(2, 9) < 0.5
    batch = {"input_ids": ids, "logits_to_keep": keep, "labels": ids[keep]}
    for each in (net, twin):
        each(**batch, shift_labels=ids[keep], num_items_in_batch=5, use_cache=False).loss.backward()
    gradients = [{name: p.grad for name, p in each.named_parameters()} for each in (net, twin)]
    assert_close(gradients[0], gradients[1], atol=1e-6, rtol=0)
    assert net.lm_head.weight is net.model.embed_tokens.weight
    assert net.state_dict().keys() == twin.state_dict().keys()


def test_soft_targets_of_the_base_model_are_learnt_the_same():
    hidden, weight, targets = parts()
    deferred = DeferredProjection.of(torch.nn.Linear(H, V, bias=False))
    deferred.weight = torch.nn.Parameter(weight.detach())
    found = torch.arange(N) % 2 == 0
    soft: Any = {"in_annotation": found, "base_logits": torch.randn(int(found.sum()), V)}
    ours = LossByKind(deferred)(hidden, targets, V, targets, 4, **soft)
    stock = LossByKind()(linear(hidden, weight), targets, V, targets, 4, **soft)
    assert_close(ours, stock, atol=1e-6, rtol=0)


def test_logits_are_there_whenever_the_model_is_not_learning():
    net: Any = model()
    ids = torch.randint(3, V, (1, 4))
    with torch.no_grad():
        before = net(input_ids=ids).logits
        defer_projection(net)
        assert_close(net(input_ids=ids).logits, before, atol=0, rtol=0)
    assert_close(net.eval()(input_ids=ids).logits, before, atol=0, rtol=0)


def test_the_model_is_asked_without_the_attention_kernel_of_an_accelerator():
    net: Any = model()
    net.config._attn_implementation = "flash_attention_2"
    assert defer_projection(net) is not None
    assert net.config._attn_implementation == "flash_attention_2"


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "granite", "logits_scaling": 4.0},
        {"model_type": "cohere", "logit_scale": 0.5},
        {"model_type": "gemma2", "final_logit_softcapping": 1.0, "head_dim": 16},
        {"model_type": "phi"},
    ],
    ids=["divided", "multiplied", "capped", "with-a-bias"],
)
def test_a_model_whose_logits_are_no_plain_product_is_left_as_it_is(fields: dict[str, Any]):
    net: Any = model(**fields)
    assert defer_projection(net) is None
    assert type(net.get_output_embeddings()) is torch.nn.Linear and net.training
