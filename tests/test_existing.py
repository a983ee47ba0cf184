"""Existing checkpoints of five families: trained, saved, loaded and asked by stock transformers."""

from __future__ import annotations

import json
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from anchored import cli
from anchored.annotation import Annotation
from anchored.benchmark.prompting import Encoder, Prompt
from anchored.config import load_config, validated
from anchored.data.prepare import (
    PrepareConfig,
    SourceConfig,
    load_prepared,
    prepare,
    read_manifest,
)
from anchored.errors import ConfigError, DataError
from anchored.models.build import ModelConfig, build_model
from anchored.models.lora import without_adapter
from anchored.sampling.engine import Request, SampleConfig, Sampling, sample
from anchored.sampling.sampler import load
from anchored.segments import OBJECTIVES, Kind, Message, assemble, conversation_segments
from anchored.step.collate import DataCollator
from anchored.tokenizer import AnchoredTokenizer
from anchored.train.base_targets import BaseTargets
from anchored.train.config import PretrainConfig, SFTConfig
from anchored.workflow import sft
from conftest import ROOT
from families import FAMILIES

PLAN = [{"key": "hero", "value": "Mara"}, {"key": "place", "value": "desert"}]
GREEDY = SampleConfig(
    annotation=Sampling(temperature=0), response=Sampling(temperature=0),
    max_annotation_tokens=6, max_response_tokens=6, retries=0,
)  # fmt: skip
TURNS = (Message("user", "Tell me a story"), Message("assistant", "No."), Message("user", "Please"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Any:
    """Checkpoints by family, made once."""
    root = tmp_path_factory.mktemp("checkpoints")
    return cache(lambda name: FAMILIES[name].save(root / name))


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [
        {"messages": [
            {"role": "user", "content": f"Tell me a story {i}"},
            {"role": "assistant", "content": "Mara sailed.", "annotation": PLAN},
        ]}
        for i in range(6)
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def run_config(init: Path, rows: Path, out: Path, steps: int = 1, **model: Any) -> SFTConfig:
    settings = {
        "out": out,
        "model": {"init": str(init), **model},
        "data": {"sources": [{"path": str(rows)}], "max_length": 96},
        "trainer": {
            "max_steps": steps, "per_device_train_batch_size": 2, "learning_rate": 0.01,
            "logging_steps": 1, "use_cpu": True,
        },
    }  # fmt: skip
    return validated(SFTConfig, settings, "test")


@pytest.fixture(scope="module")
def trained(folders, rows, tmp_path_factory) -> Any:
    """Model folders after one step of anchored SFT, by family."""
    root = tmp_path_factory.mktemp("trained")
    return cache(lambda name: sft(run_config(folders(name), rows, root / name), quiet=True))


def stock(folder: Path) -> tuple[Any, Any]:
    model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def chat(turns) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


# --- one step, saved, loaded and asked without us ------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_stock_transformers_chats_with_what_sft_leaves_and_gets_our_ids(name, trained):
    model, hf = stock(trained(name))
    asked = hf.apply_chat_template(chat(TURNS), add_generation_prompt=True, return_tensors="pt")
    new = model.generate(**asked, max_new_tokens=6, do_sample=False, suppress_tokens=[])[0]
    prompt = asked["input_ids"][0].tolist()
    source = load(str(trained(name)))
    assert (source.annotated, source.chat) == (True, "anchored")
    turns = (*TURNS, Message("assistant", ""))
    ids = assemble(conversation_segments(turns, source.tokenizer, OBJECTIVES["anchored"]))
    assert prompt == ids.input_ids[:-1]  # all but the closing token
    assert len(new) > len(prompt)
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    assert set(source.tokenizer.control.ends) <= set(ends)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_example_without_anything_of_ours_takes_any_family(name, trained, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    example = __import__("load_and_chat")
    model, hf = stock(trained(name))
    asked: dict[str, Any] = {}
    generate = model.generate
    monkeypatch.setattr(
        model, "generate", lambda batch, **given: asked.update(given) or generate(batch, **given)
    )
    assert len(example.chat(model, hf, "Tell me", max_new_tokens=4)) == 2
    everything = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
    assert everything.items() <= asked.items()
    control = load(str(trained(name))).tokenizer.control
    written = [*hf.encode("glad", add_special_tokens=False), control.close]
    assert example.cut([*written, *written[:-1], control.end], hf) == ("glad", "glad")


@pytest.mark.parametrize("name", FAMILIES)
def test_our_sampler_writes_what_generate_writes(name, folders):
    source = load(str(folders(name)))
    (ours,) = sample(source.model, source.tokenizer, [Request(TURNS)], GREEDY)
    turns = (*TURNS, Message("assistant", ""))
    ids = assemble(conversation_segments(turns, source.tokenizer, OBJECTIVES["standard"])).input_ids
    control = source.tokenizer.control
    barred = sorted(set(source.tokenizer.control_ids.values()) - set(control.ends))
    spare = range(len(source.tokenizer), source.model.config.vocab_size)
    new = source.model.generate(
        torch.tensor([ids]), max_new_tokens=6, do_sample=False, eos_token_id=control.ends,
        suppress_tokens=[*barred, *spare], pad_token_id=control.pad,
    )[0, len(ids) :].tolist()  # fmt: skip
    assert ours.response == source.tokenizer.decode([i for i in new if i not in control.ends])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_packed_row_has_the_logits_of_each_document_alone(name, folders, trained):
    trained(name)
    model, _ = stock(folders(name))
    dataset, _ = load_prepared(trained(name).parent / "data")
    tokenizer = AnchoredTokenizer.load(trained(name))
    assert max(len(row["seq_lengths"]) for row in dataset) > 1
    if name == "gemma3":
        assert max(dataset[0]["seq_lengths"]) > model.config.sliding_window
    model = build_model(ModelConfig(init=str(folders(name))), tokenizer, 0).eval()
    batch = DataCollator(tokenizer.control.pad)(list(dataset.with_format("numpy")))
    with torch.no_grad():
        kept = model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False,
            logits_to_keep=batch["logits_to_keep"],
        ).logits.view(len(batch["labels"]), -1)  # fmt: skip
        alone = []
        for row in dataset:
            start = 0
            for length in row["seq_lengths"]:
                ids = torch.tensor([row["input_ids"][start : start + length]])
                targets = torch.tensor(row["labels"][start + 1 : start + length])
                alone.append(model(input_ids=ids).logits[0, :-1][targets >= 0])
                start += length
    assert_close(kept, torch.cat(alone), atol=1e-5, rtol=1e-5)


# --- rows of control tokens ----------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_only_rows_of_control_tokens_are_set_anew_and_nothing_grows_that_need_not(name, folders):
    tokenizer = AnchoredTokenizer.load(folders(name))
    before: Any = AutoModelForCausalLM.from_pretrained(folders(name))
    model: Any = build_model(ModelConfig(init=str(folders(name))), tokenizer, 0)
    fresh = sorted(tokenizer.control_ids[token] for token in tokenizer.tokens.values())
    for get in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(before, get)().weight, getattr(model, get)().weight
        assert len(new) == max(len(old), len(tokenizer))
        differ = (new[: len(old)] != old).any(1).nonzero()[:, 0].tolist()
        assert differ == [i for i in fresh if i < len(old)]
    tied = before.get_input_embeddings().weight is before.get_output_embeddings().weight
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) is tied


@pytest.mark.parametrize("name", ["llama3", "qwen3"])
def test_a_new_row_is_the_mean_of_the_trained_rows_and_a_tenth_of_their_spread(name, folders):
    tokenizer = AnchoredTokenizer.load(folders(name))
    model: Any = build_model(ModelConfig(init=str(folders(name))), tokenizer, 0)
    special = set(tokenizer.control_ids.values())
    trained = [i for i in range(len(tokenizer)) if i not in special]
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        rows = module.weight[trained]
        new = module.weight[[tokenizer.control.open, tokenizer.control.close]]
        noise = ((new - rows.mean(0)) / (0.1 * rows.std(0))).detach()
        assert 0.6 < noise.std() < 1.4
        assert not torch.equal(new[0], new[1])


def test_rows_that_training_has_set_are_not_set_anew(trained):
    before = load_file(trained("llama3") / "model.safetensors")
    tokenizer = AnchoredTokenizer.load(trained("llama3"))
    model = build_model(ModelConfig(init=str(trained("llama3"))), tokenizer, 1)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_checkpoint_in_half_precision_is_trained_in_float32_unless_told(folders, tmp_path: Path):
    model = AutoModelForCausalLM.from_pretrained(folders("olmo2")).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folders("olmo2")).save_pretrained(tmp_path)
    tokenizer = AnchoredTokenizer.load(tmp_path)
    kinds = {
        dtype: build_model(ModelConfig(init=str(tmp_path), **given), tokenizer, 0).dtype
        for dtype, given in ((torch.float32, {}), (torch.bfloat16, {"dtype": "bfloat16"}))
    }
    assert all(found is wanted for wanted, found in kinds.items())


def test_attention_goes_by_its_name(folders):
    tokenizer = AnchoredTokenizer.load(folders("llama3"))
    for name in ("eager", "sdpa"):
        model = build_model(ModelConfig(init=str(folders("llama3")), attention=name), tokenizer, 0)
        assert model.config._attn_implementation == name


# --- loss ----------------------------------------------------------------------------------------


def test_sft_learns_the_end_of_turn_that_the_template_writes(trained):
    data, manifest = load_prepared(trained("llama3").parent / "data")
    tokenizer = AnchoredTokenizer.load(trained("llama3"))
    first = slice(0, data[0]["seq_lengths"][0])
    labels = [i for i in data[0]["labels"][first] if i >= 0]
    assert labels == [*tokenizer.encode("Mara sailed."), tokenizer.control.end]
    kinds = data[0]["kinds"][first]
    assert (
        kinds.count(Kind.CONTROL) == 9
    )  # bos, 3 of the user's turn, 2 of a header, 2 brackets, end
    assert manifest["objective"] == "anchored"


# --- the same prompts everywhere ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama3", "gemma3"])
def test_lm_evals_contexts_are_written_by_the_template_too(name, folders):
    source = load(str(folders(name)))
    assert source.chat == "template"
    ids = Encoder(source, chat=True).opening(Prompt(TURNS))
    asked = source.tokenizer.hf.apply_chat_template(chat(TURNS), add_generation_prompt=True)
    assert ids == asked["input_ids"]


def test_a_conversation_that_the_template_refuses_is_a_bad_row(folders, rows, tmp_path: Path):
    twice = [{"role": role, "content": "Hi"} for role in ("user", "user", "assistant")]
    path = tmp_path / "rows.jsonl"
    good = rows.read_text(encoding="utf-8").splitlines()[0]
    path.write_text(f"{good}\n{json.dumps({'messages': twice})}", encoding="utf-8")
    config = PrepareConfig(
        out=tmp_path / "data", sources=(SourceConfig(path=str(path)),),
        tokenizer=str(folders("gemma3")), objective="standard",
    )  # fmt: skip
    with pytest.raises(DataError, match=r"rows\.jsonl: line 2: chat template .* take turns"):
        prepare(config, Console(quiet=True))
    folder = prepare(config.model_copy(update={"skip_bad_rows": True}), Console(quiet=True))
    assert read_manifest(folder)["dropped"]["bad row"]["examples"] == 1


def test_documents_end_with_eos_and_answers_with_the_end_of_turn(folders, tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    row = {"chunks": [{"text": "Mara sailed.", "annotation": PLAN}]}
    path.write_text(json.dumps(row), encoding="utf-8")
    config = PrepareConfig(
        out=tmp_path / "data", sources=(SourceConfig(path=str(path)),),
        tokenizer=str(folders("gemma3")),
    )  # fmt: skip
    (row,) = load_prepared(prepare(config, Console(quiet=True)))[0]
    control = AnchoredTokenizer.load(folders("gemma3")).control
    assert (row["input_ids"][0], row["input_ids"][-1]) == (control.bos, control.eos)
    assert control.eos != control.end


def test_inspect_and_sample_work_on_the_result(trained, capsys):
    folder = str(trained("llama3"))
    assert cli.main(["inspect", folder]) == 0
    assert "open 404, close 405, end 395" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["inspect", str(trained("llama3").parent / "data")]) == 0
    assert "‹<|start_header_id|>›user‹<|end_header_id|>›" in capsys.readouterr().out
    short = ["--max-new-tokens", "4", "--json"]
    assert cli.main(["sample", folder, "--prompt", "Tell me", *short]) == 0
    assert json.loads(capsys.readouterr().out)[0]["prompt"] == "Tell me"


# --- LoRA ----------------------------------------------------------------------------------------

LORA = {"lora": {"r": 4, "alpha": 8}}


@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_is_merged_and_of_the_embeddings_only_our_rows_moved(
    name, folders, rows, tmp_path: Path
):
    pytest.importorskip("peft")
    folder = sft(run_config(folders(name), rows, tmp_path, **LORA), quiet=True)
    merged, _ = stock(folder)
    tokenizer = AnchoredTokenizer.load(folder)
    start: Any = build_model(ModelConfig(init=str(folders(name))), tokenizer, 0)
    ours = sorted(tokenizer.control_ids[token] for token in tokenizer.tokens.values())
    for get in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(start, get)().weight, getattr(merged, get)().weight
        assert set((new != old).any(1).nonzero()[:, 0].tolist()) <= set(ours)
    moved = start.get_input_embeddings().weight != merged.get_input_embeddings().weight
    assert moved.any(1)[[tokenizer.control.open, tokenizer.control.close]].all()
    body = [
        key for key, value in start.state_dict().items()
        if "layers" in key and not torch.equal(value, merged.state_dict()[key])
    ]  # fmt: skip
    assert len(body) == sum(
        isinstance(module, torch.nn.Linear) for name, module in start.named_modules()
        if "layers" in name
    )  # fmt: skip
    files = {path.name for path in (folder / "adapter").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}


def test_the_saved_adapter_on_its_base_is_the_merged_model(folders, rows, tmp_path: Path):
    peft = pytest.importorskip("peft")
    folder = sft(run_config(folders("gpt_neox"), rows, tmp_path, **LORA), quiet=True)
    tokenizer = AnchoredTokenizer.load(folder)
    base = build_model(ModelConfig(init=str(folders("gpt_neox"))), tokenizer, 0)
    adapted = peft.PeftModel.from_pretrained(base, str(folder / "adapter")).eval()
    merged, _ = stock(folder)
    ids = torch.tensor([[*tokenizer.encode("Tell me a story"), tokenizer.control.open]])
    with torch.no_grad():
        assert_close(adapted(ids).logits, merged(ids).logits, atol=1e-5, rtol=1e-5)


def test_a_run_with_an_adapter_resumes_to_the_weights_of_one_that_never_stopped(
    folders, rows, tmp_path: Path
):
    pytest.importorskip("peft")
    config = run_config(folders("qwen3"), rows, tmp_path, 4, **LORA)
    config = config.model_copy(update={"trainer": {**config.trainer, "save_steps": 2}})
    whole = load_file(sft(config, quiet=True) / "model.safetensors")
    shutil.rmtree(tmp_path / "model")
    shutil.rmtree(tmp_path / "checkpoint-4")
    resumed = load_file(sft(config, quiet=True) / "model.safetensors")
    for key, value in whole.items():
        assert_close(value, resumed[key], atol=1e-6, rtol=1e-5)


def test_an_adapter_whose_run_ended_before_it_was_merged_is_merged_on_the_next(
    folders, rows, tmp_path: Path
):
    pytest.importorskip("peft")
    config = run_config(folders("llama3"), rows, tmp_path, 2, **LORA)
    before = load_file(sft(config, quiet=True) / "model.safetensors")
    shutil.rmtree(tmp_path / "model")
    after = load_file(sft(config, quiet=True) / "model.safetensors")
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_replay_holds_an_adapted_model_to_what_it_was(folders, trained):
    pytest.importorskip("peft")
    tokenizer = AnchoredTokenizer.load(trained("llama3"))
    model: Any = build_model(ModelConfig(init=str(trained("llama3")), **LORA), tokenizer, 0)
    seen: dict[str, Any] = {}
    without_adapter(model).loss_function = lambda **given: seen.update(given)
    BaseTargets(model, tokenizer.control)
    turns = (*TURNS, Message("assistant", "", Annotation.from_rows(PLAN)))
    example = assemble(conversation_segments(turns, tokenizer, OBJECTIVES["replay"]))
    row = {**vars(example), "seq_lengths": [len(example.input_ids)]}
    batch = DataCollator(tokenizer.control.pad)([row])
    model.train()(**batch)
    before = seen["base_logits"]
    assert_close(before, seen["logits"].view(before.shape), atol=1e-5, rtol=1e-5)
    for weight in model.parameters():
        weight.data += 0.1 * weight.requires_grad
    model(**batch)
    assert_close(seen["base_logits"], before, atol=0, rtol=0)
    assert not torch.allclose(seen["logits"].view(before.shape), before, atol=1e-2)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"preset": "1m", **LORA}, "lora needs init"),
        ({"init": "x", "quantize": "nf4"}, "quantize needs lora"),
        ({"init": "x", "lora": {"rank": 4}}, "unknown field"),
        ({"init": "x", "attention": "fast"}, "'fast'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(model, reason):
    with pytest.raises(ConfigError, match=reason):
        validated(ModelConfig, model, "test")


@pytest.mark.parametrize(
    ("name", "targets", "reason"),
    [
        ("llama3", "c_attn", "'c_attn': no layer has this name; use a"),
        ("llama3", ["q_proj", "proj"], "'proj': no layer has this name; use a"),
        ("llama3", [], "names no layer; name some, or write all-linear"),
        (
            "llama3",
            ["q_proj", "lm_head"],
            "'lm_head': lm_head cannot take an adapter, because",
        ),
        ("qwen3", ["q_proj", "lm_head"], "'lm_head': lm_head cannot take an adapter, because"),
        ("gpt_neox", ["embed_in"], "'embed_in': gpt_neox.embed_in cannot take an adapter, because"),
    ],
)
def test_layers_that_can_have_no_adapter_are_refused_before_any_data_is_read(
    name, targets, reason, folders, tmp_path: Path
):
    pytest.importorskip("peft")
    lora = {"target_modules": targets}
    config = run_config(folders(name), tmp_path / "no-rows.jsonl", tmp_path / "out", lora=lora)
    with pytest.raises(ConfigError, match=f"^model.lora.target_modules: {re.escape(reason)}"):
        sft(config, quiet=True)
    assert not (tmp_path / "out").exists()


def test_layers_by_name_have_the_adapter_and_no_others(folders):
    pytest.importorskip("peft")
    tokenizer = AnchoredTokenizer.load(folders("qwen3"))
    for targets, count in (("v_proj", 2), (["q_proj", "layers.1.mlp.up_proj"], 3)):
        config = ModelConfig(init=str(folders("qwen3")), lora={"target_modules": targets})  # pyright: ignore
        model: Any = build_model(config, tokenizer, 0)
        assert sum(name.endswith("lora_A") for name, _ in model.named_modules()) == count


def test_four_bits_need_bitsandbytes(folders, rows, tmp_path: Path, monkeypatch):
    from anchored.models import lora

    pytest.importorskip("peft")
    monkeypatch.setattr(lora, "find_spec", lambda name: name if name == "peft" else None)
    config = run_config(folders("llama3"), rows, tmp_path / "out", quantize="nf4", **LORA)
    with pytest.raises(ConfigError, match=r"model\.quantize: needs bitsandbytes"):
        sft(config, quiet=True)
    assert not (tmp_path / "out").exists()


def test_an_adapter_over_four_bits_is_merged_into_the_weights_that_were_there(rows, tmp_path: Path):
    pytest.importorskip("peft")
    pytest.importorskip("bitsandbytes")
    sizes = {"hidden_size": 64, "intermediate_size": 128}  # blocks of 64 weights
    init = FAMILIES["llama3"].save(tmp_path / "init", **sizes)
    config = run_config(init, rows, tmp_path / "out", quantize="nf4", **LORA)
    folder = sft(config, quiet=True)
    merged, _ = stock(folder)
    assert merged.dtype is torch.float32
    before, after = load_file(init / "model.safetensors"), merged.state_dict()
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert {key for key in changed if "norm" in key} == set()
    adapted = load_file(folder / "adapter" / "adapter_model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    low, high = (adapted[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    change = after[f"{name}.weight"] - before[f"{name}.weight"]
    assert_close(change, 2 * high @ low, atol=1e-5, rtol=1e-5)


def test_what_an_adapter_over_four_bits_learns_is_the_same_after_the_model_was_asked(
    tmp_path: Path,
):
    pytest.importorskip("peft")
    pytest.importorskip("bitsandbytes")
    init = FAMILIES["llama3"].save(tmp_path / "init", hidden_size=64, intermediate_size=128)
    tokenizer = AnchoredTokenizer.load(init)
    config = validated(ModelConfig, {"init": str(init), "quantize": "nf4", **LORA}, "test")
    model = build_model(config, tokenizer, 0)
    drawn = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # zeros, which pass no gradient on
            weight.data.normal_(std=0.05, generator=drawn)
    ids = torch.arange(10, 30)[None]

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model.train()(input_ids=ids, labels=ids).loss.backward()
        return {name: w.grad for name, w in model.named_parameters() if w.grad is not None}

    before = gradients()
    with torch.no_grad():
        model.eval()(input_ids=ids)
    assert len(before) > 28 and gradients().keys() == before.keys()
    for name, gradient in gradients().items():
        assert_close(gradient, before[name], atol=1e-5, rtol=1e-5)


# --- configurations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"), [("midtrain", PretrainConfig), ("sft", SFTConfig), ("lora", SFTConfig)]
)
def test_the_configurations_we_ship_are_valid(name, kind):
    config = load_config(kind, ROOT / "configs" / "existing" / f"{name}.yaml")
    assert config.model.init
