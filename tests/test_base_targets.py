"""Replay learns what the base model would have written, not what it happened to write."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import PreTrainedModel

from anchored.annotation import Annotation
from anchored.data.prepare import PrepareConfig, load_prepared, prepare
from anchored.models.build import ModelConfig, build_model
from anchored.sampling import sampler
from anchored.sampling.engine import Sample
from anchored.segments import Kind
from anchored.step.attention import attend_within_documents
from anchored.step.collate import DataCollator
from anchored.step.losses import LossByKind
from anchored.tokenizer import AnchoredTokenizer
from anchored.train.base_targets import BaseTargets
from anchored.train.config import SFTConfig
from anchored.workflow import sft

TINY = {
    "model_type": "olmo2",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
STORIES = "storyworld://small/sft?seed=0&count=8"
Batch = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows 0 to 7 are learnt in the text, 8 to 15 in the annotation."""
    config = {
        "out": tmp_path_factory.mktemp("targets") / "data",
        "sources": [{"path": STORIES}, {"path": STORIES, "objective": "replay"}],
        "tokenizer": {"vocab_size": 600},
        "objective": "anchored-replay",
        "max_length": 384,
        "packing": False,
        "format_share": 0.0,
    }
    return prepare(PrepareConfig.model_validate(config), Console(quiet=True))


@pytest.fixture
def tokenizer(data: Path) -> AnchoredTokenizer:
    return AnchoredTokenizer.load(data / "tokenizer")


@pytest.fixture
def model(tokenizer: AnchoredTokenizer) -> PreTrainedModel:
    model = build_model(ModelConfig(config=TINY), tokenizer, 0)
    model.loss_function = LossByKind()
    return model.train()


def batch_of(data: Path, tokenizer: AnchoredTokenizer, learnt: str, flat: bool = False) -> Batch:
    """Two rows that have loss on their `text` or their `plan`, or one of each (`both`)."""
    dataset, _ = load_prepared(data)
    has_plan = [
        any(
            label != -100 and kind == Kind.TAG_VALUE
            for label, kind in zip(row["labels"], row["kinds"], strict=True)
        )
        for row in dataset
    ]
    plans = [i for i, plan in enumerate(has_plan) if plan]
    texts = [i for i, plan in enumerate(has_plan) if not plan]
    assert (len(plans), len(texts)) == (8, 8)
    chosen = {"text": texts[:2], "plan": plans[:2], "both": [texts[0], plans[0]]}[learnt]
    rows: list[Any] = [dataset.with_format("numpy")[i] for i in chosen]
    return DataCollator(tokenizer.control.pad, flat)(rows)


def gradient(model: PreTrainedModel, batch: Batch) -> float:
    """The largest component of the loss's gradient."""
    model(**batch, use_cache=False).loss.backward()
    found = [float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return max(found)


def test_while_the_model_is_the_base_replay_does_not_move_it(
    data: Path, tokenizer: AnchoredTokenizer, model: PreTrainedModel
):
    plan, text = (batch_of(data, tokenizer, name) for name in ("plan", "text"))
    assert gradient(model, plan) > 1e-2
    BaseTargets(model, tokenizer.control)
    assert gradient(model, plan) < 1e-7
    assert gradient(model, text) > 1e-2


def test_annotations_are_learnt_from_the_base_and_text_from_its_tokens(
    data: Path, tokenizer: AnchoredTokenizer, model: PreTrainedModel
):
    batch = batch_of(data, tokenizer, "both")
    everywhere = {name: batch[name] for name in ("input_ids", "position_ids")}
    with torch.no_grad():
        base = model(**everywhere, use_cache=False).logits.log_softmax(-1)
    BaseTargets(model, tokenizer.control)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        now = model(**everywhere, use_cache=False).logits.log_softmax(-1)

    losses = []
    kept = batch["logits_to_keep"].nonzero().tolist()
    for (b, t), label in zip(kept, batch["shift_labels"].tolist(), strict=True):
        if b == 1:  # the replayed row has loss on its annotation alone
            losses.append(-(base[b, t].exp() * now[b, t]).sum())
        else:
            losses.append(-now[b, t, label])
    assert_close(
        model(**batch, use_cache=False).loss, torch.stack(losses).mean(), atol=1e-5, rtol=0
    )


def test_a_flat_batch_has_the_loss_of_its_rows(
    data: Path, tokenizer: AnchoredTokenizer, model: PreTrainedModel
):
    attend_within_documents(model)
    BaseTargets(model, tokenizer.control)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    rows, flat = (batch_of(data, tokenizer, "both", flat) for flat in (False, True))
    assert len(rows["input_ids"]) == 2 and len(flat["input_ids"]) == 1
    losses = [model(**batch, use_cache=False).loss for batch in (rows, flat)]
    assert_close(losses[1], losses[0], atol=1e-5, rtol=0)


def test_the_base_computes_in_the_precision_of_the_model(
    data: Path, tokenizer: AnchoredTokenizer, model: PreTrainedModel
):
    BaseTargets(model, tokenizer.control, partial(torch.autocast, "cpu", torch.bfloat16))
    given: list[torch.Tensor] = []
    model.register_forward_pre_hook(
        lambda _, __, batch: given.append(batch["base_logits"]), with_kwargs=True
    )
    model(**batch_of(data, tokenizer, "plan"), use_cache=False)
    assert [logits.dtype for logits in given] == [torch.bfloat16]


def test_evaluation_has_the_loss_of_the_tokens(
    data: Path, tokenizer: AnchoredTokenizer, model: PreTrainedModel
):
    batch = batch_of(data, tokenizer, "plan")
    before = model.eval()(**batch, use_cache=False).loss
    BaseTargets(model, tokenizer.control)
    assert_close(model(**batch, use_cache=False).loss, before, atol=0, rtol=0)


@pytest.fixture
def trained(
    tokenizer: AnchoredTokenizer,
    model: PreTrainedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], SFTConfig]:
    """SFT by name of `replay.targets`, six steps from one base and one annotation."""
    base = tmp_path / "base"
    model.save_pretrained(base)
    tokenizer.save(base)

    def canned(model: Any, tokenizer: Any, requests: Any, *rest: Any) -> list[Any]:
        return [Sample("", Annotation.of({"hero": "Joss"})) for _ in requests]

    monkeypatch.setattr(sampler, "sample", canned)

    def run(targets: str) -> SFTConfig:
        config = {
            "out": tmp_path / targets,
            "objective": "anchored-replay",
            "replay": {"targets": targets, "share": 0.5},
            "model": {"init": str(base)},
            "data": {"sources": [{"path": STORIES}], "max_length": 384, "packing": False},
            "trainer": {"max_steps": 6, "save_steps": 3, "learning_rate": 1e-2, "use_cpu": True},
        }
        sft(SFTConfig.model_validate(config), quiet=True)
        return SFTConfig.model_validate(config)

    return run


def weights(run: SFTConfig) -> dict[str, torch.Tensor]:
    return load_file(run.out / "model" / "model.safetensors")


def test_the_target_is_the_users_choice(trained: Callable[[str], SFTConfig]):
    soft, hard = weights(trained("distribution")), weights(trained("token"))
    assert max(float((soft[name] - hard[name]).abs().max()) for name in soft) > 1e-2


def test_a_resumed_run_asks_the_base_and_not_its_checkpoint(trained: Callable[[str], SFTConfig]):
    run = trained("distribution")
    straight = weights(run)
    shutil.rmtree(run.out / "model")
    shutil.rmtree(run.out / "checkpoint-6")
    assert (run.out / "checkpoint-3").is_dir()
    sft(run, quiet=True)
    assert_close(weights(run), straight, atol=0, rtol=0)
