"""Losses by name, and weights: each token's loss counts as much as its weight says, however run."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_from_disk
from pydantic import ValidationError
from rich.console import Console
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from anchored.config import to_yaml
from anchored.data.prepare import PrepareConfig, load_prepared, prepare
from anchored.data.store import join_shards
from anchored.errors import DataError
from anchored.models.build import ModelConfig, build_model, load_model
from anchored.publish.export import export
from anchored.segments import NO_LOSS, OBJECTIVES, Kind, Objective
from anchored.step.losses import LOSSES, Loss, LossByKind
from anchored.step.projection import DeferredProjection
from anchored.tokenizer import AnchoredTokenizer
from anchored.train.compose import compose
from anchored.train.config import PretrainConfig, training_arguments
from anchored.train.metrics_log import read_metrics
from processes import run_ranks

TINY = {
    "model_type": "olmo2",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
WEIGHTED = {Kind.PROMPT: 0.0, Kind.TAG_KEY: 0.5, Kind.TAG_VALUE: 2.0, Kind.TEXT: 1.0}
# The learning rate 1 of plain gradient descent: what a step changes is its gradient.
DESCENT = {
    "optim": "sgd",
    "learning_rate": 1.0,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "logging_steps": 1,
    "save_strategy": "no",
    "use_cpu": True,
    "max_steps": 1,
}


@pytest.fixture(scope="module")
def weighted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """Storyworld documents whose tokens weigh 0, 0.5, 1 or 2, packed or not."""
    root = tmp_path_factory.mktemp("weighted")

    def make(packing: bool) -> Path:
        out = root / str(packing)
        if not out.exists():
            config = {
                "out": out,
                "sources": [{"path": "storyworld://small?seed=0", "limit": 24}],
                "tokenizer": {"vocab_size": 600},
                "objective": "annotated",
                "max_length": 384,
                "packing": packing,
            }
            with pytest.MonkeyPatch.context() as patch:
                objective = Objective("annotated", annotated=True, weights=WEIGHTED)
                patch.setitem(OBJECTIVES, "annotated", objective)
                prepare(PrepareConfig.model_validate(config), Console(quiet=True))
        return out

    return make


def fresh(data: Path) -> Any:
    return build_model(ModelConfig(config=TINY), AnchoredTokenizer.load(data / "tokenizer"), 0)


def brute_force(data: Path) -> tuple[float, dict[str, torch.Tensor]]:
    """Weighted mean loss of the first eight rows and its gradients, one token at a time."""
    model, total, weight_sum = fresh(data), torch.zeros((), dtype=torch.float64), 0.0
    for row in load_prepared(data)[0].select(range(8)):
        start = 0
        for length in row["seq_lengths"]:
            ids = torch.tensor(row["input_ids"][start : start + length])
            logits = model(input_ids=ids[None], use_cache=False).logits[0]
            for t in range(1, length):
                weight = row["weights"][start + t]
                total = total - weight * logits[t - 1].log_softmax(-1)[ids[t]].double()
                weight_sum += weight
            start += length
    loss = total / weight_sum
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


def config_of(data: Path, out: Path, **trainer: Any) -> PretrainConfig:
    fields = {"model": {"config": TINY}, "trainer": {**DESCENT, **trainer}}
    return PretrainConfig.model_validate({"out": out, "data": data, **fields})


def example(name: str) -> Any:
    """A module of `examples/`."""
    folder = str(Path(__file__).parents[1] / "examples")
    sys.path.insert(0, folder)
    try:
        return __import__(name)
    finally:
        sys.path.remove(folder)


def first_rows(data: Path) -> Any:
    return load_prepared(data)[0].select(range(8))


def one_step(data: Path, out: Path, **trainer: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and gradients of one step of the stock Trainer, composed."""
    config = config_of(data, out, **trainer)
    tokenizer, model = AnchoredTokenizer.load(data / "tokenizer"), fresh(data)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    compose(model, first_rows(data), tokenizer, training_arguments(config)).train()
    after = dict(model.named_parameters())
    gradients = {name: before[name] - after[name].detach() for name in before}
    return read_metrics(out)[0]["loss"], gradients


@pytest.mark.parametrize("batch", [(8, 1), (1, 8)], ids=["8x1", "1x8"])
@pytest.mark.parametrize("packing", [False, True], ids=["alone", "packed"])
def test_weights_count_as_in_a_loop_over_the_tokens(weighted, tmp_path: Path, packing, batch):
    data = weighted(packing)
    assert set(load_prepared(data)[0]["weights"][0]) == {0.0, 0.5, 1.0, 2.0}
    rows, accumulated = batch
    sizes = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulated}
    loss, gradients = one_step(data, tmp_path, **sizes)
    expected, expected_gradients = brute_force(data)
    assert loss == pytest.approx(expected, abs=1e-6)
    assert_close(gradients, expected_gradients, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_weights_count_over_two_processes_as_in_a_loop_over_the_tokens(weighted, tmp_path: Path):
    data = weighted(False)
    trainer = {"per_device_train_batch_size": 4, "ddp_backend": "gloo", "save_strategy": "no"}
    config = config_of(data, tmp_path / "run", **trainer)
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    run_ranks(["pretrain", str(file)])
    model: Any = load_model(config.out / "model", AnchoredTokenizer.load(data / "tokenizer"))
    before = dict(fresh(data).named_parameters())
    found = {name: before[name] - p for name, p in model.named_parameters()}
    alone = config_of(data, tmp_path / "alone", per_device_train_batch_size=8)
    single = fresh(data)
    tokenizer = AnchoredTokenizer.load(data / "tokenizer")
    compose(single, load_prepared(data)[0], tokenizer, training_arguments(alone)).train()
    expected = {name: before[name] - p for name, p in single.named_parameters()}
    assert read_metrics(config.out)[0]["loss"] == pytest.approx(
        read_metrics(alone.out)[0]["loss"], abs=1e-6
    )
    assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("fused", [True, False])
def test_the_record_by_kind_holds_weighted_means(fused: bool):
    torch.manual_seed(0)
    hidden, projection = torch.randn(6, 4), DeferredProjection.of(torch.nn.Linear(4, 7, bias=False))
    labels, kinds = torch.randint(0, 7, (6,)), torch.tensor([3, 3, 4, 4, 4, 4])
    weights = torch.tensor([0.5, 2.0, 1.0, 1.0, 2.0, 0.5])
    losses = LossByKind(projection if fused else None)
    logits = hidden if fused else hidden @ projection.weight.T
    each = cross_entropy(hidden @ projection.weight.T, labels, reduction="none")
    arguments = {"target_kinds": kinds, "token_count": 9, "loss_weights": weights}
    found = losses(logits, labels, 7, labels, **arguments)
    assert_close(found, (weights * each).sum() / weights.sum(), atol=1e-6, rtol=0)
    by_kind, supervised, tokens = losses.take()
    assert (supervised, tokens) == (6, 9)
    tags, text = kinds == 3, kinds == 4
    means = [(weights[of] * each[of]).sum() / weights[of].sum() for of in (tags, text)]
    assert list(by_kind.values()) == pytest.approx([mean.item() for mean in means], abs=1e-6)


def test_a_loss_of_another_name_takes_the_place_of_cross_entropy(monkeypatch):
    monkeypatch.setitem(LOSSES, "squared", Loss("", lambda z, y: cross_entropy(z, y) ** 2 + 0 * y))
    torch.manual_seed(0)
    hidden, projection = torch.randn(3, 4), DeferredProjection.of(torch.nn.Linear(4, 7, bias=False))
    labels = torch.tensor([1, 2, 3])
    loss = LossByKind(projection, "squared")(hidden, labels, 7, labels)
    assert_close(loss, cross_entropy(hidden @ projection.weight.T, labels) ** 2)


def test_gem_is_its_formula_summed_entry_by_entry_and_its_weights_carry_no_gradient():
    torch.manual_seed(0)
    z = (2 * torch.randn(5, 7, dtype=torch.float64)).requires_grad_()
    y = torch.randint(0, 7, (5,))
    q, p = (z.detach() / 0.7).softmax(-1), z.log_softmax(-1)
    expected = []
    for i in range(5):
        loss = torch.zeros((), dtype=torch.float64)
        for v in range(7):
            w = 1 / (1 + (-0.01 * (z[i, v] - z[i, y[i]]).detach()).exp())
            loss = loss - q[i, v] * w * (p[i, y[i]] - p[i, v])
        expected.append(loss)
    found, reference = LOSSES["gem"].function(z, y), torch.stack(expected)
    assert_close(found, reference, atol=1e-12, rtol=0)
    gradients = (torch.autograd.grad(one.sum(), z, retain_graph=True) for one in (found, reference))
    assert_close(*gradients, atol=1e-12, rtol=0)


def test_an_unknown_loss_is_refused_with_those_that_are_known(tmp_path: Path):
    with pytest.raises(ValidationError, match=f"use one of {', '.join(LOSSES)}"):
        PretrainConfig.model_validate(
            {"out": tmp_path, "data": tmp_path, "model": {"preset": "0.5m"}, "loss": "l2"}
        )


def test_labels_are_masked_where_the_weight_is_zero_and_nowhere_else(weighted):
    for row in load_prepared(weighted(True))[0]:
        masked = [label == NO_LOSS for label in row["labels"]]
        assert masked == [weight == 0 for weight in row["weights"]]


def test_data_with_weights_say_so_and_go_to_no_trainer_that_would_not_read_them(
    weighted, tmp_path: Path
):
    data = weighted(False)
    assert json.loads((data / "manifest.json").read_text())["weights"] is True
    with pytest.raises(DataError, match="objective 'annotated' weighs tokens, and axolotl would"):
        export(data, "axolotl", tmp_path / "out")


def test_the_minimal_loop_weighs_tokens_as_the_trainer_does(weighted, tmp_path: Path):
    data = weighted(True)
    adam = {"optim": "adamw_torch", "learning_rate": 1e-3, "lr_scheduler_type": "linear"}
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 2}
    run = config_of(data, tmp_path, **adam, **sizes, max_grad_norm=1.0)
    tokenizer, twin = AnchoredTokenizer.load(data / "tokenizer"), fresh(data)
    compose(fresh(data), load_prepared(data)[0], tokenizer, training_arguments(run)).train()
    loop = example("minimal_loop")
    settings = loop.Settings(steps=2, batch_size=2, accumulation=2, learning_rate=1e-3)
    losses = list(loop.train(twin, load_prepared(data)[0], tokenizer.control.pad, settings))
    assert losses == pytest.approx([row["loss"] for row in read_metrics(tmp_path)], abs=1e-5)


def test_weights_that_the_manifest_does_not_speak_of_are_refused(weighted, tmp_path: Path):
    data = tmp_path / "data"
    shutil.copytree(weighted(False), data)
    manifest = json.loads((data / "manifest.json").read_text())
    (data / "manifest.json").write_text(json.dumps({**manifest, "weights": False}))
    with pytest.raises(DataError, match="not the rows and columns"):
        load_prepared(data)


def test_data_whose_labels_say_it_all_have_no_word_of_weights(tmp_path: Path):
    sources = [{"path": "storyworld://small?seed=0", "limit": 4}]
    fields = {"out": tmp_path / "data", "sources": sources, "tokenizer": {"vocab_size": 400}}
    out = prepare(PrepareConfig.model_validate(fields), Console(quiet=True))
    dataset, manifest = load_prepared(out)
    assert "weights" not in manifest
    assert dataset.column_names == ["input_ids", "labels", "kinds", "seq_lengths"]


def test_shards_join_with_their_weights(weighted, tmp_path: Path):
    parts = [weighted(False), weighted(True)]
    join_shards(parts, tmp_path / "joined", weighted=True)
    joined: Any = load_from_disk(str(tmp_path / "joined"))
    expected = [weights for part in parts for weights in load_prepared(part)[0]["weights"]]
    assert list(joined["weights"]) == expected


def test_the_documentation_has_a_line_for_each_loss():
    page = (Path(__file__).parents[1] / "docs" / "losses.md").read_text(encoding="utf-8")
    for name, loss in LOSSES.items():
        assert f"| `{name}` | {loss.says} |" in page
