"""Training computes what it claims: packing, masked projection, accumulation, and its twins."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.testing import assert_close
from transformers import AutoTokenizer, PreTrainedModel, Trainer
from transformers.loss.loss_utils import ForCausalLMLoss

from anchored.data.prepare import PrepareConfig, load_prepared, prepare
from anchored.models.build import ModelConfig, build_model, load_model
from anchored.models.record import read_record
from anchored.publish.push import PushConfig, plan
from anchored.publish.run import write
from anchored.sampling.sampler import load
from anchored.segments import NO_LOSS
from anchored.step.attention import DOCUMENT_ATTENTION
from anchored.step.collate import DataCollator
from anchored.step.losses import LossByKind
from anchored.step.projection import DeferredProjection
from anchored.tokenizer import AnchoredTokenizer
from anchored.train.compose import compose
from anchored.train.config import PretrainConfig, training_arguments
from anchored.train.metrics_log import read_metrics

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = {
    "model_type": "olmo2",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
Prepared = Callable[..., Path]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Storyworld rows, prepared; each combination of options once."""
    root = tmp_path_factory.mktemp("numerics")
    sources = {
        "annotated": {"path": "storyworld://small?seed=0", "limit": 24},
        "anchored": {"path": "storyworld://small/sft?seed=0&count=24"},
    }

    def make(objective: str, packing: bool) -> Path:
        out = root / f"{objective}-{packing}"
        if not out.exists():
            tokenizer = root / "tokenizer"
            config = {
                "out": out,
                "sources": [sources[objective]],
                "tokenizer": str(tokenizer) if tokenizer.exists() else {"vocab_size": 800},
                "objective": objective,
                "max_length": 384,
                "packing": packing,
            }
            prepare(PrepareConfig.model_validate(config), Console(quiet=True))
            if not tokenizer.exists():
                AnchoredTokenizer.load(out / "tokenizer").save(tokenizer)
        return out

    return make


def tiny_model(data: Path, seed: int = 0, range_: float = 0.02) -> PreTrainedModel:
    """What a token attends to hardly shows in the loss at the usual range of 0.02."""
    config = ModelConfig(config={**TINY, "initializer_range": range_})
    return build_model(config, AnchoredTokenizer.load(data / "tokenizer"), seed)


def batch_of(data: Path, *indices: int) -> tuple[dict[str, torch.Tensor], list[Any]]:
    dataset, _ = load_prepared(data)
    rows: list[Any] = [dataset.with_format("numpy")[i] for i in indices]
    return DataCollator(AnchoredTokenizer.load(data / "tokenizer").control.pad)(rows), rows


def parts(row: Any) -> Iterator[dict[str, np.ndarray]]:
    """The sequences of a packed row, each a row of its own."""
    ends = np.cumsum(row["seq_lengths"])
    for end, length in zip(ends, row["seq_lengths"], strict=True):
        columns = {name: row[name][end - length : end] for name in ("input_ids", "labels", "kinds")}
        columns["labels"] = np.concatenate(([NO_LOSS], columns["labels"][1:]))
        yield {**columns, "seq_lengths": np.array([length])}


def grads(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@torch.no_grad()
def test_packed_rows_give_the_logits_and_loss_of_their_sequences_alone(prepared: Prepared):
    data = prepared("annotated", packing=True)
    model = tiny_model(data).eval()
    dataset, _ = load_prepared(data)
    packed = [i for i, row in enumerate(dataset["seq_lengths"]) if len(row) > 1]
    batch, rows = batch_of(data, *packed[:3])
    assert len(rows) == 3 and len({len(row["input_ids"]) for row in rows}) > 1
    logits = model(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
    ).logits
    packed_loss = model(**batch, use_cache=False, num_items_in_batch=1).loss
    alone_loss = torch.zeros(())
    for b, row in enumerate(rows):
        start = 0
        for part in parts(row):
            ids = torch.from_numpy(part["input_ids"]).long()[None]
            labels = torch.from_numpy(part["labels"]).long()[None]
            alone = model(input_ids=ids, use_cache=False, labels=labels, num_items_in_batch=1)
            end = start + ids.shape[1]
            assert_close(logits[b, start:end], alone.logits[0], atol=1e-5, rtol=0)
            alone_loss += alone.loss
            start = end
    assert_close(packed_loss, alone_loss, atol=0, rtol=1e-5)


@pytest.mark.parametrize("objective", ["annotated", "anchored"])
def test_masked_projection_gives_the_loss_and_gradients_of_the_full_one(
    prepared: Prepared, objective: str
):
    data = prepared(objective, packing=False)
    model = tiny_model(data)
    batch, rows = batch_of(data, 0, 1, 2)
    masked = model(**batch, use_cache=False)
    masked.loss.backward()
    masked_grads = grads(model)

    labels = torch.full(batch["input_ids"].shape, NO_LOSS)
    for b, row in enumerate(rows):
        labels[b, : len(row["labels"])] = torch.from_numpy(row["labels"])
    full = model(input_ids=batch["input_ids"], labels=labels, use_cache=False)
    full.loss.backward()

    supervised = int((labels != NO_LOSS).sum())
    assert masked.logits.shape[0] == supervised < labels.numel() == full.logits[..., 0].numel()
    assert_close(masked.loss, full.loss, atol=1e-5, rtol=0)
    assert_close(masked_grads, grads(model), atol=1e-5, rtol=0)


def test_loss_by_kind_is_the_stock_loss():
    torch.manual_seed(0)
    logits = torch.randn(40, 11, requires_grad=True)
    labels = torch.randint(0, 11, (40,))
    kinds = torch.randint(0, 5, (40,))
    for items in (None, 64, torch.tensor(64)):
        losses = LossByKind()
        ours = losses(logits, labels, 11, labels, items, kinds, torch.tensor(100))
        stock: Any = ForCausalLMLoss(logits, labels, 11, items, shift_labels=labels)  # pyright: ignore
        assert_close(ours, stock, atol=1e-6, rtol=0)
        assert_close(
            torch.autograd.grad(ours, logits), torch.autograd.grad(stock, logits), atol=1e-6, rtol=0
        )
    by_kind, supervised, tokens = losses.take()
    assert (supervised, tokens) == (40, 100)
    expected = torch.nn.functional.cross_entropy(logits[kinds == 3], labels[kinds == 3])
    assert by_kind["tag_value"] == pytest.approx(expected.item(), abs=1e-5)
    assert losses.take() == ({}, 0, 0)


def run(
    data: Path, out: Path, model: PreTrainedModel | None = None, **trainer: Any
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of the first steps and final weights through the stock Trainer."""
    settings = {"learning_rate": 1e-3, "logging_steps": 1, "save_strategy": "no", "use_cpu": True}
    config = PretrainConfig(
        out=out, data=data, model=ModelConfig(config=TINY), trainer={**settings, **trainer}
    )
    dataset, _ = load_prepared(data)
    tokenizer = AnchoredTokenizer.load(data / "tokenizer")
    model = model or tiny_model(data)
    done = compose(model, dataset, tokenizer, training_arguments(config))
    done.train()
    return [row["loss"] for row in read_metrics(out)], weights_of(done)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_run_on_a_cpu_takes_the_fast_ways(prepared: Prepared, tmp_path: Path, compiled: bool):
    data = prepared("annotated", packing=True)
    trainer: dict[str, Any] = {"use_cpu": True, "torch_compile": compiled}
    config = PretrainConfig(
        out=tmp_path, data=data, model=ModelConfig(config=TINY), trainer=trainer
    )
    dataset, _ = load_prepared(data)
    tokenizer, model = AnchoredTokenizer.load(data / "tokenizer"), tiny_model(data)
    done: Any = compose(model, dataset, tokenizer, training_arguments(config))
    assert model.config._attn_implementation == DOCUMENT_ATTENTION
    assert done.data_collator.flat
    assert isinstance(model.get_output_embeddings(), DeferredProjection)


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    model: Any = trainer.model
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_accumulating_eight_rows_equals_one_batch_of_eight_under_uneven_masks(
    prepared: Prepared, tmp_path: Path
):
    data = prepared("anchored", packing=False)
    dataset, _ = load_prepared(data)
    shares = {sum(label != NO_LOSS for label in labels) for labels in dataset["labels"]}
    assert len(shares) > 5, "the masks are even"
    one: dict[str, Any] = {"per_device_train_batch_size": 8, "max_steps": 4}
    eight: dict[str, Any] = {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 8,
        "max_steps": 4,
    }
    losses, weights = run(data, tmp_path / "one", **one)
    accumulated_losses, accumulated_weights = run(data, tmp_path / "eight", **eight)
    assert accumulated_losses == pytest.approx(losses, abs=1e-5)
    assert_close(accumulated_weights, weights, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("knob", "tolerance"),
    [
        ({"activation_checkpointing": True}, 1e-5),
        ({"torch_compile": True, "torch_compile_backend": "eager"}, 1e-5),
        ({"bf16": True}, 2e-2),  # eight bits of a loss near 6
    ],
    ids=["checkpointing", "compile", "bf16"],
)
def test_packed_rows_keep_their_losses_whatever_saves_memory_or_time(
    prepared: Prepared, tmp_path: Path, knob: dict[str, Any], tolerance: float
):
    data = prepared("annotated", packing=True)
    common: dict[str, Any] = {"max_steps": 2, "per_device_train_batch_size": 2}
    plain, _ = run(data, tmp_path / "plain", **common)
    losses, _ = run(data, tmp_path / "knob", **common, **knob)
    assert losses == pytest.approx(plain, abs=tolerance)
    assert (losses != plain) == ("bf16" in knob)


def example(name: str) -> Any:
    """A module of `examples/`."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        return __import__(name)
    finally:
        sys.path.remove(str(EXAMPLES))


def test_the_minimal_loop_equals_the_trainer(prepared: Prepared, tmp_path: Path):
    """Seven steps of an epoch of six, so that the second epoch's order counts too."""
    data = prepared("annotated", packing=True)
    dataset, _ = load_prepared(data)
    rows = len(dataset)
    steps = -(-rows // 4) + 2
    losses, weights = run(
        data,
        tmp_path,
        max_steps=steps,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        warmup_steps=2,
    )
    loop, model = example("minimal_loop"), tiny_model(data)
    settings = loop.Settings(
        steps=steps, batch_size=2, accumulation=2, learning_rate=1e-3, warmup=2, seed=0
    )
    pad = AnchoredTokenizer.load(data / "tokenizer").control.pad
    assert list(loop.train(model, dataset, pad, settings)) == pytest.approx(losses, abs=1e-5)
    assert_close(dict(model.state_dict()), weights, atol=1e-5, rtol=0)


TRL: dict[str, Any] = {
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "seed": 0,
    "data_seed": 0,
    "use_cpu": True,
    "save_strategy": "no",
    "disable_tqdm": True,
    "bf16": False,
    "report_to": "none",
    "adam_beta2": 0.999,
    "lr_scheduler_type": "linear",
}


def test_trl_sft_trainer_equals_the_trainer_on_the_same_data(prepared: Prepared, tmp_path: Path):
    pytest.importorskip("trl")
    data = prepared("anchored", packing=False)
    settings = {**TRL, "max_steps": 4, "per_device_train_batch_size": 4}
    losses, weights = run(data, tmp_path / "ours", max_steps=4, per_device_train_batch_size=4)
    trainer = example("trl_sft").sft_trainer(tiny_model(data), data, tmp_path / "trl", **settings)
    trainer.train()
    theirs = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert theirs == pytest.approx(losses, abs=1e-5)
    assert_close(weights_of(trainer), weights, atol=1e-5, rtol=0)


def test_rows_that_trl_packs_itself_give_the_loss_and_the_step_of_ours(
    prepared: Prepared, tmp_path: Path
):
    """Everything in one step, because TRL packs in an order of its own."""
    pytest.importorskip("trl")
    data = prepared("anchored", packing=False)
    rows = len(load_prepared(data)[0])
    one: dict[str, Any] = {"max_steps": 1, "per_device_train_batch_size": rows}
    losses, weights = run(data, tmp_path / "ours", tiny_model(data, range_=0.5), **one)
    trainer = example("trl_sft").sft_trainer(
        tiny_model(data, range_=0.5),
        data,
        tmp_path / "trl",
        **{**TRL, **one, "packing": True, "max_length": 384},
    )
    assert len(trainer.train_dataset) < rows
    trainer.train()
    theirs = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert theirs == pytest.approx(losses, abs=1e-5)
    assert_close(weights_of(trainer), weights, atol=1e-5, rtol=0)


def test_trl_refuses_packed_rows(prepared: Prepared, tmp_path: Path):
    pytest.importorskip("trl")
    data = prepared("annotated", packing=True)
    with pytest.raises(Exception, match="prepare it with `packing: false`"):
        example("trl_sft").sft_trainer(tiny_model(data), data, tmp_path)


def test_both_examples_run_as_their_docstrings_say(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("trl")
    data = prepared("anchored", packing=False)
    base, out = tmp_path / "base", tmp_path / "trl"
    options = ["--preset", "0.5m", "--steps", "2", "--batch-size", "2", "--out", str(base)]
    monkeypatch.setattr(sys, "argv", ["minimal_loop.py", str(data), *options])
    example("minimal_loop").main()
    monkeypatch.setattr(sys, "argv", ["trl_sft.py", str(data), str(base), "--out", str(out)])
    example("trl_sft").main()
    tokenizer = AnchoredTokenizer.load(out / "model")
    model: Any = load_model(out / "model", tokenizer)
    assert model.config.vocab_size == len(tokenizer)
    assert read_record(base)["config"]["trainer"]["steps"] == 2
    assert read_record(out / "model")["config"]["trainer"]["num_train_epochs"] == 1
    for folder in (base, out / "model"):  # each is a model of ours, with a plan in its answers
        assert load(str(folder)).annotated
        hf: Any = AutoTokenizer.from_pretrained(folder)
        asked = [{"role": "user", "content": "Hi"}]
        text = hf.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        assert text.endswith("<|assistant|><|annotation|>")
        card = write(folder).read_text(encoding="utf-8")
        assert "- Trained by another trainer on data that `anchored` prepared.\n" in card
        assert "Objective `anchored`: loss on text" in card
        assert plan(PushConfig(model=folder, repo="owner/name")).files
    before: Any = load_model(base, tokenizer)
    assert not torch.equal(model.lm_head.weight, before.lm_head.weight)
