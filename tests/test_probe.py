"""Prompts reach a model in the format of its tokenizer, and answers end where it ends them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from transformers import AutoModelForCausalLM, AutoTokenizer

from anchored.errors import ConfigError
from anchored.models.build import load_model
from anchored.monitor import probe as probe_module
from anchored.monitor.probe import Answer, Probe, check_whole
from anchored.preferences.conversation_tokenizer import ConversationTokenizer
from anchored.sampling import engine
from anchored.sampling.decode import Row
from anchored.segments import OBJECTIVES, Message, conversation_segments
from anchored.tokenizer import AnchoredTokenizer
from anchored.train.config import SFTConfig
from anchored.train.metrics_log import read_metrics
from anchored.workflow import sft
from families import FAMILIES

HI = [Message("user", "Hi"), Message("assistant", "")]


@pytest.fixture(scope="module", params=FAMILIES)
def anchored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family's model with rows for the control tokens, its tokenizer saved to annotate."""
    base = FAMILIES[request.param].save(tmp_path_factory.mktemp("base"))
    folder = tmp_path_factory.mktemp("anchored")
    tokenizer = AnchoredTokenizer.load(base)
    load_model(base, tokenizer).save_pretrained(folder)
    tokenizer.save(folder, annotated=True)
    return folder


def asked(
    monkeypatch: pytest.MonkeyPatch, module: Any, probe: Probe, model: Any
) -> list[Sequence[int]]:
    """What the probe has `module` decode behind; nothing is decoded."""
    prefixes: list[Sequence[int]] = []

    def spy(model: Any, rows: Sequence[Row], rules: Any) -> list[list[int]]:
        prefixes.extend(row.prefix for row in rows)
        return [[] for _ in rows]

    monkeypatch.setattr(module, "decode", spy)
    probe.ask(model, 0)
    return prefixes


@pytest.mark.parametrize(
    "read", [AnchoredTokenizer.load, AutoTokenizer.from_pretrained, ConversationTokenizer.load]
)
def test_every_familys_annotated_model_is_asked_as_it_was_trained(
    anchored: Path, read: Any, monkeypatch: pytest.MonkeyPatch
):
    tokenizer = AnchoredTokenizer.load(anchored)
    model = AutoModelForCausalLM.from_pretrained(anchored)
    segments = conversation_segments(HI, tokenizer, OBJECTIVES["standard"])
    plain = [i for segment in segments for i in segment.ids]
    given = read(anchored)
    template = getattr(given, "chat_template", None)
    for annotated, opening in ((False, []), (True, [tokenizer.control.open])):
        probe = Probe(["Hi"], given, 2, 3, annotated=annotated)
        prefixes = asked(monkeypatch, engine, probe, model)
        assert {tuple(prefix) for prefix in prefixes} == {(*plain, *opening)}
    assert getattr(given, "chat_template", None) == template


def test_sft_of_a_model_with_its_own_template_and_tokens_is_monitored(tmp_path: Path):
    source = tmp_path / "rows.jsonl"
    plan = [{"key": "hero", "value": "Mara"}]
    answer = {"role": "assistant", "content": "Mara sailed.", "annotation": plan}
    turns = [{"role": "user", "content": "Tell me a story"}, answer]
    source.write_text(f"{json.dumps({'messages': turns})}\n" * 6)
    config = SFTConfig.model_validate(
        {
            "out": tmp_path / "out",
            "model": {"init": str(FAMILIES["llama3"].save(tmp_path / "base"))},
            "data": {"sources": [{"path": str(source)}], "max_length": 96},
            "trainer": {"max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True},
            "monitor": {
                "prompts": ["Hi", ""],
                "every": 2,
                "samples": 2,
                "max_new_tokens": 4,
                "budget": None,
            },
        }
    )
    sft(config, quiet=True)
    assert [row["step"] for row in read_metrics(config.out) if "collapse/kept" in row] == [2]


def parts(folder: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that nothing of ours has touched."""
    return FAMILIES["gemma3"].save(tmp_path_factory.mktemp("foreign"))


@pytest.mark.parametrize("prompt", ["", []])
def test_an_empty_prompt_samples_a_document_whatever_the_template(
    foreign: Path, prompt: Any, monkeypatch: pytest.MonkeyPatch
):
    model, hf = parts(foreign)
    probe = Probe([prompt], hf, 2, 3)
    assert asked(monkeypatch, probe_module, probe, model) == [[hf.bos_token_id]] * 2
    hf.bos_token = None  # as Qwen's has none
    assert asked(monkeypatch, probe_module, probe, model) == [[hf.eos_token_id]] * 2


@pytest.mark.parametrize("named_by", ["template", "settings"])
def test_an_answer_is_over_at_any_end_that_the_template_or_the_models_settings_name(
    foreign: Path, named_by: str
):
    model, hf = parts(foreign)
    end = hf.convert_tokens_to_ids("<end_of_turn>") if named_by == "template" else 100
    if named_by == "settings":
        model.generation_config.eos_token_id = [hf.eos_token_id, end]
    passes: list[int] = []

    def ends_at_once(module: Any, given: Any, out: Any) -> None:
        passes.append(len(out.logits))
        out.logits[..., end] = 1e4

    probe = Probe(["Hi"], hf, 2, 40)
    probe.ask(model, 0)
    model.register_forward_hook(ends_at_once)
    assert probe.ask(model, 1) == [[Answer(""), Answer("")]]
    assert passes == [2]


@pytest.mark.parametrize("read", [AutoTokenizer.from_pretrained, AnchoredTokenizer.load])
def test_answers_are_sampled_so_many_at_once_and_do_not_depend_on_it(foreign: Path, read: Any):
    model, widths = parts(foreign)[0], []
    whole = Probe(["Hi", "Tell me"], read(foreign), 5, 3).ask(model, 0)
    model.register_forward_hook(lambda module, given, out: widths.append(len(out.logits)))
    assert Probe(["Hi", "Tell me"], read(foreign), 5, 3, batch_size=4).ask(model, 0) == whole
    assert max(widths) == 4


def test_a_tokenizer_with_more_entries_than_the_model_has_rows_is_refused(tmp_path: Path):
    model, hf = parts(FAMILIES["gpt_neox"].save(tmp_path))
    probe = Probe(["Hi"], AnchoredTokenizer.adopt(hf), 2, 3)
    with pytest.raises(ConfigError, match="395 entries, but the model's embedding has 390 rows"):
        probe.ask(model, 0)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """One process that is a group of its own."""
    meets = f"file://{tmp_path}/group"
    distributed.init_process_group("gloo", init_method=meets, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("use_orig_params", [False, True])
def test_weights_under_fsdp_are_refused_whatever_their_names(group: None, use_orig_params: bool):
    model = FullyShardedDataParallel(
        nn.Sequential(nn.Linear(4, 4)),
        use_orig_params=use_orig_params,
        device_id=torch.device("cpu"),
    )
    with pytest.raises(ConfigError, match=r"is sharded .* run `anchored evaluate`"):
        check_whole(model)
