"""Muon's orthogonal updates, and its AdamW half beside torch's own."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import TrainingArguments

from anchored.models.build import ModelConfig, build_model
from anchored.step.muon import MuonAdamW, muon_for, orthogonalise
from anchored.tokenizer import AnchoredTokenizer


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 16, 48), (2, 48, 16)])
def test_orthogonalise_brings_singular_values_near_one(shape: tuple[int, int, int]):
    torch.manual_seed(0)
    u, s, vh = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    spread = torch.logspace(0, -2, s.shape[-1])  # the smallest a 100th of the largest
    values = torch.linalg.svdvals(orthogonalise(u @ torch.diag_embed(spread.expand_as(s)) @ vh))
    assert values.min().item() >= 0.6
    assert values.max().item() <= 1.3


def test_orthogonalise_keeps_the_singular_vectors():
    torch.manual_seed(0)
    matrix = torch.randn(8, 16)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    rotated = u.mT @ orthogonalise(matrix[None])[0] @ vh.mT
    assert_close(rotated, torch.diag(rotated.diagonal()), atol=1e-5, rtol=0)


def test_orthogonalise_does_not_depend_on_the_scale_and_survives_zero():
    torch.manual_seed(0)
    matrix = torch.randn(1, 6, 6)
    assert_close(orthogonalise(1e3 * matrix), orthogonalise(matrix), atol=1e-5, rtol=0)
    assert orthogonalise(torch.zeros(1, 6, 6)).abs().max() == 0


def test_the_adamw_half_equals_torch_adamw():
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(5, 3)), torch.nn.Parameter(torch.randn(7))]
    theirs = copy.deepcopy(ours)
    settings = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8}
    optimizer = MuonAdamW([], ours, muon_lr=1.0, weight_decay=0.1, **settings)
    decayed = [
        {"params": theirs[:1], "weight_decay": 0.1},
        {"params": theirs[1:], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(decayed, **settings)
    for _ in range(20):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        optimizer.step()
        reference.step()
    assert_close([p.detach() for p in ours], [p.detach() for p in theirs], atol=1e-6, rtol=0)


def test_muon_steps_along_orthogonalised_nesterov_momentum():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(4, 6))
    before = weight.detach().clone()
    optimizer = MuonAdamW([weight], [], muon_lr=0.1, lr=1.0, weight_decay=0.5)
    momentum = torch.zeros(4, 6)
    for _ in range(3):
        weight.grad = torch.randn(4, 6)
        momentum = 0.95 * momentum + 0.05 * weight.grad
        direction = 0.05 * weight.grad + 0.95 * momentum
        before = before * (1 - 0.1 * 0.5)
        before -= 0.1 * 0.2 * 6**0.5 * orthogonalise(direction[None])[0]
        optimizer.step()
    assert_close(weight.detach(), before, atol=1e-6, rtol=0)


def test_matrices_of_one_shape_are_updated_as_each_would_be_alone():
    torch.manual_seed(0)
    together = [torch.nn.Parameter(torch.randn(4, 4)) for _ in range(3)]
    alone = copy.deepcopy(together)
    grads = [torch.randn(4, 4) for _ in range(3)]
    for p, q, grad in zip(together, alone, grads, strict=True):
        p.grad, q.grad = grad, grad.clone()
    MuonAdamW(together, [], muon_lr=0.1, lr=1.0).step()
    for q in alone:
        MuonAdamW([q], [], muon_lr=0.1, lr=1.0).step()
    assert_close([p.detach() for p in together], [q.detach() for q in alone], atol=1e-6, rtol=0)


def test_a_parameter_without_gradient_stays():
    frozen = torch.nn.Parameter(torch.ones(3, 3))
    MuonAdamW([frozen], [], muon_lr=0.1, lr=0.1).step()
    assert_close(frozen.detach(), torch.ones(3, 3))


@pytest.mark.parametrize("tied", [True, False])
def test_muon_takes_the_hidden_matrices_and_leaves_embedding_and_projection(
    tied: bool, tmp_path: Path
):
    config = {
        "model_type": "olmo2",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "tie_word_embeddings": tied,
    }
    model = build_model(ModelConfig(config=config), AnchoredTokenizer.train(["a"], 300), 0)
    optimizer = muon_for(model, TrainingArguments(output_dir=str(tmp_path), use_cpu=True), 0.02)
    muon, adam = optimizer.param_groups
    assert len(muon["params"]) == 7  # q, k, v, o, gate, up, down
    assert {p.shape for p in muon["params"]} == {(16, 16), (32, 16), (16, 32)}
    assert sum(p.numel() for group in (muon, adam) for p in group["params"]) == sum(
        p.numel() for p in model.parameters()
    )
