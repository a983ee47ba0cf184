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
from anchored.tokenizer import AnchoredTokenizer
from anchored.train.checkpoints import check_checkpoint
from anchored.train.models import load_model
from families import FAMILIES, gpt_neox

WEIGHTS = "model.safetensors"


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


def shard_missing(folder: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": WEIGHTS}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


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
    (pickled, "holds only pickled weights (pytorch_model.bin), which can run code; convert them"),
    (no_weights, "needs weights as safetensors and holds none"),
    (remote_code, "config.json names code of its own (auto_map), which is never run; use a model"),
    (unknown_type, "has model_type 'llama_9', which transformers does not know"),
    (no_architecture, "has model_type None, which transformers does not know"),
    (not_causal, "is a T5ForConditionalGeneration, not a causal language model"),
    (classifier, "is a LlamaForSequenceClassification, not a causal language model; use one (Ll"),
    (images_too, "gemma3 reads more than text; save its language model alone"),
    (adapter_alone, "holds an adapter (adapter_config.json), not a whole model; merge it"),
    (not_json, "config.json: not readable as JSON"),
    (cut_short, "model.safetensors is damaged or cut short"),
    (nothing_but_zeros, "model.safetensors is damaged or cut short"),
    (shard_missing, "model-1.safetensors is missing; fetch the checkpoint again"),
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


@pytest.mark.parametrize("command", ["pretrain", "sft"])
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
    with pytest.raises(ConfigError, match=r"holds no weights for lm_head\.weight; it is another"):
        load_model(folder, AnchoredTokenizer.load(folder))


def test_pickled_weights_are_not_loaded_by_any_command(folder):
    tokenizer = AnchoredTokenizer.load(folder)
    pickled(folder)
    with pytest.raises(ConfigError, match="safetensors"):
        load_model(folder, tokenizer)


def test_a_tokenizer_that_needs_code_of_its_own_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    edit(
        folder, "tokenizer_config.json", tokenizer_class="MineTokenizer",
        auto_map={"AutoTokenizer": ["tokenization_mine.Mine", None]},
    )  # fmt: skip
    (folder / "tokenization_mine.py").write_text("raise SystemExit('this code was run')")
    with pytest.raises(ConfigError, match="tokenizer"):
        check_checkpoint(str(folder), quiet=True)


def test_an_added_token_without_a_row_gets_one(tmp_path):
    """As Gemma 3 1B has one for images that its embedding lacks."""
    hf = gpt_neox()
    hf.add_tokens(["<image>"])
    folder = FAMILIES["gpt_neox"].save(tmp_path / "model", vocab_size=len(hf) - 1)
    hf.save_pretrained(folder)
    check_checkpoint(str(folder), quiet=True)
    model = load_model(folder, AnchoredTokenizer.load(folder))
    assert model.config.vocab_size == len(hf) + 5
