"""Checkpoints that must not be trained: refused with the reason, before any work, nothing left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anchored import cli
from anchored.errors import ConfigError
from anchored.models.build import ModelConfig, build_model, load_model, model_configuration
from anchored.models.checkpoints import check_checkpoint
from anchored.sampling.sampler import load
from anchored.tokenizer import AnchoredTokenizer
from families import FAMILIES, gpt_neox

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return FAMILIES["llama3"].save(tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def edit(folder: Path, name: str = "config.json", **fields: object) -> None:
    path = folder / name
    known = json.loads(path.read_text(encoding="utf-8")) | fields
    known = {key: value for key, value in known.items() if value is not None}
    path.write_text(json.dumps(known), encoding="utf-8")


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def remote_code(folder: Path) -> None:
    edit(folder, model_type="mine", auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})
    (folder / "modeling_mine.py").write_text("raise SystemExit('this code was run')")


def unknown_type(folder: Path) -> None:
    edit(folder, model_type="llama_9")


def no_architecture(folder: Path) -> None:
    edit(folder, model_type=None, architectures=None)


def not_causal(folder: Path) -> None:
    edit(folder, model_type="t5", architectures=["T5ForConditionalGeneration"])


def classifier(folder: Path) -> None:
    edit(folder, architectures=["LlamaForSequenceClassification"])


def images_too(folder: Path) -> None:
    edit(
        folder, model_type="gemma3", architectures=["Gemma3ForConditionalGeneration"],
        text_config={"model_type": "gemma3_text"},
    )  # fmt: skip


def adapter_alone(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')


def not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def cut_short(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def nothing_but_zeros(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(bytes(100))


def with_index(weight_map: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "model-2.safetensors")
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    return spoil


def with_config(**fields: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder, **fields)


def bad_file_beside_a_good_index(folder: Path) -> None:
    """Of the two, `transformers` loads the file."""
    shutil.copy(folder / WEIGHTS, folder / "model-2.safetensors")
    index = dict.fromkeys(load_file(folder / WEIGHTS), "model-2.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))
    with_value(float("nan"))(folder)


def with_bias(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["model.layers.0.self_attn.q_proj.bias"] = torch.ones(32)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def opened_thought(folder: Path) -> None:
    with (folder / "chat_template.jinja").open("a") as file:
        file.write("{{ '<think>\n' if add_generation_prompt else '' }}")


def with_value(value: float) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        weights["model.norm.weight"][3] = value
        save_file(weights, folder / WEIGHTS, {"format": "pt"})

    return spoil


def foreign_tokenizer(folder: Path) -> None:
    edit(folder, vocab_size=100)


def too_many_rows(folder: Path) -> None:
    edit(folder, vocab_size=32000)


HOSTILE = [
    (pickled, "has only pickled weights (pytorch_model.bin), which can run code; if you"),
    (no_weights, "needs weights as safetensors but has none"),
    (remote_code, "config.json asks for custom code (auto_map), which is never run; use a"),
    (unknown_type, "has model_type 'llama_9', which transformers does not know"),
    (no_architecture, "has model_type None, which transformers does not know"),
    (not_causal, "is a T5ForConditionalGeneration, not a causal language model"),
    (classifier, "is a LlamaForSequenceClassification, not a causal language model; use one (Ll"),
    (images_too, "gemma3 reads more than text; save only its language model"),
    (adapter_alone, "holds an adapter (adapter_config.json), not a whole model; merge it"),
    (not_json, "config.json: not readable as JSON"),
    (cut_short, "model.safetensors is damaged or cut short"),
    (nothing_but_zeros, "model.safetensors is damaged or cut short"),
    (
        with_index({"a": "model-1.safetensors", "b": "model-2.safetensors"}),
        "model-1.safetensors is missing; download the checkpoint again",
    ),
    (with_index([]), f"{INDEX}: weight_map names no file for a weight; download it"),
    (with_index({"a": 3}), f"{INDEX}: weight_map names no file for a weight; download it"),
    (bad_file_beside_a_good_index, "model.norm.weight in model.safetensors holds NaN"),
    (with_config(quantization_config={"quant_method": "fp8"}), "its weights are quantized"),
    (with_config(model_type=["llama"]), "has model_type ['llama'], which transformers does not"),
    (with_config(hidden_size="32"), "Field 'hidden_size' expected int, got str (value: '32')"),
    (with_config(num_attention_heads=0), "cannot load it (ZeroDivisionError: integer modulo"),
    (
        with_config(rope_parameters={"rope_type": "z"}),
        "transformers cannot load it (KeyError: 'z')",
    ),
    (
        with_config(intermediate_size=96),
        "another shape to model.layers.0.mlp.down_proj.weight and 5",
    ),
    (
        with_config(num_hidden_layers=3),
        "no weights for model.layers.2.input_layernorm.weight and 8",
    ),
    (with_config(num_hidden_layers=1), "leaves out model.layers.1.input_layernorm.weight and 8 mo"),
    (with_bias, "its config.json leaves out model.layers.0.self_attn.q_proj.bias; use a"),
    (opened_thought, "opens a thought (<think>) before the answer and leaves it open; if the"),
    (with_value(float("nan")), "model.norm.weight in model.safetensors holds NaN or infinite"),
    (with_value(float("-inf")), "model.norm.weight in model.safetensors holds NaN or infinite"),
    (foreign_tokenizer, "its tokenizer has 389 entries and its embedding 100 rows"),
    (too_many_rows, "its tokenizer has 389 entries and its embedding 32,000 rows"),
]


@pytest.mark.parametrize(("spoil", "reason"), HOSTILE, ids=lambda v: getattr(v, "__name__", ""))
def test_a_checkpoint_that_cannot_be_trained_is_refused_with_the_reason(spoil, reason, folder):
    spoil(folder)
    with pytest.raises(ConfigError) as caught:
        check_checkpoint(str(folder), quiet=True)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", ["prepare", "pretrain", "sft"])
def test_a_run_ends_with_status_2_before_it_reads_its_data(command, folder, tmp_path, capsys):
    with_value(float("nan"))(folder)
    config = {
        "out": str(tmp_path / "out"),
        "model": {"init": str(folder)},
        "data": {"sources": [{"path": "no-such.jsonl"}], "tokenizer": str(folder)},
        "trainer": {"use_cpu": True},
    }
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")
    assert cli.main([command, str(path)]) == 2
    assert "holds NaN or infinite weights; use an earlier checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_whole_checkpoint_passes(whole):
    check_checkpoint(str(whole), quiet=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_so_do_all_families(name, tmp_path):
    check_checkpoint(str(FAMILIES[name].save(tmp_path / name)), quiet=True)


def test_code_beside_a_model_that_transformers_knows_is_not_needed_and_not_run(folder):
    edit(folder, auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})
    (folder / "modeling_mine.py").write_text("raise SystemExit('this code was run')")
    check_checkpoint(str(folder), quiet=True)
    assert type(load_model(folder, AnchoredTokenizer.load(folder))).__name__ == "LlamaForCausalLM"


def test_weights_that_would_be_made_up_on_loading_are_missed(folder):
    weights = load_file(folder / WEIGHTS)
    del weights["lm_head.weight"]
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(ConfigError, match=r"has no weights for lm_head\.weight; use a complete"):
        load_model(folder, AnchoredTokenizer.load(folder))


def test_pickled_weights_are_not_loaded_by_any_command(folder):
    tokenizer = AnchoredTokenizer.load(folder)
    pickled(folder)
    with pytest.raises(ConfigError, match="has only pickled weights"):
        load_model(folder, tokenizer)


def plan_it(source: str) -> None:
    model_configuration(ModelConfig(init=source), 10)


@pytest.mark.parametrize("use", [check_checkpoint, load, plan_it])
@pytest.mark.parametrize("part", ["model", "tokenizer"])
def test_code_of_a_checkpoints_own_is_not_run_even_for_one_who_says_yes(
    part, use, folder, monkeypatch
):
    """`transformers` asks on the terminal where it is not told."""
    if part == "model":
        remote_code(folder)
        edit(folder, auto_map=dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "mine.Mine"))
    else:
        auto_map = {"AutoTokenizer": ["mine.Mine", "mine.Mine"]}
        edit(folder, "tokenizer_config.json", tokenizer_class="Mine", auto_map=auto_map)
    (folder / "mine.py").write_text("raise SystemExit('this code was run')")
    monkeypatch.setattr("builtins.input", lambda question: "y")
    if part == "tokenizer" and use is plan_it:
        return plan_it(str(folder))
    with pytest.raises(ConfigError, match=r"custom code \(auto_map\), which is never run"):
        use(str(folder))


def test_a_head_of_others_beside_the_model_is_no_fault(folder):
    """As the value head of a reward model that was trained from it."""
    weights = load_file(folder / WEIGHTS)
    weights["v_head.summary.weight"] = torch.ones(32)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    check_checkpoint(str(folder), quiet=True)


@pytest.mark.parametrize("sampler", [{"do_sample": True}, {}])
def test_no_setting_of_a_checkpoints_sampler_is_left_in_what_is_trained_from_it(
    sampler, folder, tmp_path
):
    narrow = {"temperature": 0.6, "top_p": 0.1, "top_k": 20, "repetition_penalty": 1.05}
    edit(folder, "generation_config.json", eos_token_id=[1, 2], **narrow, **sampler)
    tokenizer = AnchoredTokenizer.load(folder)
    model = build_model(ModelConfig(init=str(folder)), tokenizer, 0)
    model.save_pretrained(tmp_path)  # it may be refused for settings that do not go together
    saved = json.loads((tmp_path / "generation_config.json").read_text(encoding="utf-8"))
    assert saved.keys().isdisjoint({*narrow, "do_sample"})
    assert saved["eos_token_id"] == [1, 2, tokenizer.control.end]


def test_an_added_token_without_a_row_gets_one(tmp_path):
    """As Gemma 3 1B has one for images that its embedding lacks."""
    hf = gpt_neox()
    hf.add_tokens(["<image>"])
    folder = FAMILIES["gpt_neox"].save(tmp_path / "model", vocab_size=len(hf) - 1)
    hf.save_pretrained(folder)
    check_checkpoint(str(folder), quiet=True)
    model = load_model(folder, AnchoredTokenizer.load(folder))
    assert model.config.vocab_size == len(hf) + 5
