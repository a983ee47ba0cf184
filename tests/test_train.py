"""Runs: what is refused and how, what a failure leaves behind, what a finished run holds."""

from __future__ import annotations

import errno
import json
import math
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_from_disk
from pydantic import ValidationError
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
)

from anchored import cli
from anchored.annotation import Annotation
from anchored.data.prepare import PrepareConfig, load_prepared, prepare
from anchored.errors import AnchoredError, ConfigError, DataError, TokenizerMismatch
from anchored.models.build import ModelConfig, build_model, load_model
from anchored.models.record import read_record
from anchored.sampling import sampler
from anchored.sampling.engine import Sample
from anchored.segments import OBJECTIVES
from anchored.step.collate import DataCollator
from anchored.tokenizer import AnchoredTokenizer
from anchored.train import replay as replay_module
from anchored.train.config import PretrainConfig, SFTConfig, training_arguments
from anchored.train.metrics_log import read_metrics
from anchored.workflow import pretrain, sft

MODEL = {
    "model_type": "olmo2",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
TRAINER = {
    "max_steps": 3,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "logging_steps": 2,
    "use_cpu": True,
}
ROWS = [
    {
        "id": str(i),
        "prompt": f"Who is number {i}?",
        "response": f"Number {i} is Mara, who slept.",
        "annotation": [{"key": "hero", "value": "Mara"}],
    }
    for i in range(12)
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def data(rows: Path) -> Path:
    config = {
        "out": rows.parent / "data",
        "sources": [{"path": str(rows)}],
        "tokenizer": {"vocab_size": 320},
        "objective": "annotated",
        "max_length": 64,
    }
    return prepare(PrepareConfig.model_validate(config), Console(quiet=True))


@pytest.fixture(scope="module")
def base(data: Path) -> Path:
    """A pretrained model, all but untrained."""
    return pretrain(config(data, data.parent / "base"), quiet=True)


def config(data: Path, out: Path, **trainer: Any) -> PretrainConfig:
    return PretrainConfig.model_validate(
        {"out": out, "data": data, "model": {"config": MODEL}, "trainer": {**TRAINER, **trainer}}
    )


def sft_config(rows: Path, init: Path, out: Path, **fields: Any) -> SFTConfig:
    return SFTConfig.model_validate(
        {
            "out": out,
            "data": {"sources": [{"path": str(rows)}], "max_length": 64, "packing": False},
            "model": {"init": str(init)},
            "trainer": TRAINER,
            **fields,
        }
    )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("lerning_rate", 1, "trainer.lerning_rate: unknown field; did you mean 'learning_rate'?"),
        ("xyzzy", 1, "trainer.xyzzy: unknown field; see transformers.TrainingArguments"),
        ("seed", 1, r"trainer.seed: set by the run itself \(out, seed\); leave it out"),
        ("save_strategy", "sometimes", "trainer: sometimes is not a valid SaveStrategy"),
        ("learning_rate", "fast", "trainer.learning_rate: 'fast'"),
        ("max_steps", "many", "trainer.max_steps: 'many'"),
    ],
)
def test_a_wrong_trainer_field_is_refused_by_name_before_any_work(
    field: str, value: Any, message: str, tmp_path: Path
):
    run = config(tmp_path / "no data", tmp_path / "run", **{field: value})
    with pytest.raises(ConfigError, match=message):
        pretrain(run)
    assert not run.out.exists()


def test_trainer_fields_reach_training_arguments_over_our_defaults(tmp_path: Path):
    arguments = training_arguments(config(tmp_path, tmp_path, logging_steps=7, warmup_steps=0.1))
    assert (arguments.logging_steps, arguments.warmup_steps, arguments.max_steps) == (7, 0.1, 3)
    assert (arguments.save_total_limit, arguments.logging_nan_inf_filter) == (2, False)


def test_sft_without_a_model_to_start_from_is_refused(rows: Path, tmp_path: Path):
    run = sft_config(rows, Path("unused"), tmp_path / "run", model={"preset": "0.5m"})
    with pytest.raises(ConfigError, match=r"model\.init: missing"):
        sft(run)


def test_an_unknown_objective_is_refused_with_the_known_ones(rows: Path, tmp_path: Path):
    with pytest.raises(ValidationError, match=r"use one of plain, annotated"):
        sft_config(rows, Path("unused"), tmp_path / "run", objective="gme")


def test_a_run_resumed_under_another_configuration_is_refused(data: Path, base: Path):
    other = config(data, base.parent, max_steps=4)
    with pytest.raises(ConfigError, match=r"holds a run with trainer\.max_steps = 3, this one"):
        pretrain(other)


def copy_of(data: Path, out: Path) -> Path:
    """A prepared dataset that may be harmed."""
    for path in data.rglob("*"):
        if path.is_file():
            (out / path.relative_to(data)).parent.mkdir(parents=True, exist_ok=True)
            (out / path.relative_to(data)).write_bytes(path.read_bytes())
    return out


def test_data_without_a_supervised_token_is_refused(data: Path, tmp_path: Path):
    copy = copy_of(data, tmp_path / "data")
    manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    manifest["splits"]["train"]["supervised"] = 0
    (copy / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(DataError, match="no token carries loss; prepare the data again"):
        pretrain(config(copy, tmp_path / "run"), quiet=True)


def test_sft_data_with_nothing_to_learn_is_refused(base: Path, tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    row = {"id": "0", "messages": turns}
    rows.write_text(json.dumps(row) + "\n", encoding="utf-8")
    run = sft_config(rows, base, tmp_path / "run", objective="replay")
    with pytest.raises(DataError, match="annotations"):
        sft(run, quiet=True)
    assert not (run.out / "data").exists()


def masked(row: dict[str, Any]) -> dict[str, Any]:
    return {"labels": [-100] * len(row["labels"])}


@pytest.mark.parametrize("change", ["bytes", "labels"])
def test_a_changed_dataset_is_refused(data: Path, tmp_path: Path, change: str):
    copy = copy_of(data, tmp_path / "data")
    if change == "bytes":
        file = next(copy.glob("*.arrow"))
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    else:
        changed: Any = load_from_disk(str(data))
        changed.map(masked, keep_in_memory=True).save_to_disk(str(copy))
    with pytest.raises(DataError, match="it changed since it was written"):
        pretrain(config(copy, tmp_path / "run"), quiet=True)


def test_data_prepared_anew_under_the_same_name_is_refused(rows: Path, data: Path, tmp_path: Path):
    copy = copy_of(data, tmp_path / "data")
    run = config(copy, tmp_path / "run")
    pretrain(run, quiet=True)
    shutil.rmtree(copy)
    again = {
        "out": copy,
        "sources": [{"path": str(rows), "limit": 6}],
        "tokenizer": str(data / "tokenizer"),
        "objective": "annotated",
        "max_length": 64,
    }
    prepare(PrepareConfig.model_validate(again), Console(quiet=True))
    with pytest.raises(DataError, match=r"prepared again since .*run was trained on it"):
        pretrain(run, quiet=True)


def test_the_first_batch_that_is_trained_on_is_the_one_shown(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    first: list[Any] = []
    collate = DataCollator.__call__

    def kept(self: DataCollator, rows: Any) -> Any:
        first.append([row["input_ids"].tolist() for row in rows])
        return collate(self, rows)

    monkeypatch.setattr(DataCollator, "__call__", kept)
    pretrain(config(data, tmp_path / "run"))
    shown = "".join(capsys.readouterr().err.split())
    tokenizer = AnchoredTokenizer.load(data / "tokenizer")
    stored, _ = load_prepared(data)
    assert len(first[0]) == 2
    assert first[0] != stored["input_ids"][:2], "the order is shuffled, so this shows nothing"
    for ids in first[0]:
        name = re.search(r"Who is number (\d+)", tokenizer.decode(ids))
        assert name is not None
        assert f"Number{name[1]}isMara,whoslept." in shown
    assert "firstbatch:2of2rows" in shown


def test_a_mistyped_data_folder_is_named_and_the_output_stays_free(data: Path, tmp_path: Path):
    out = tmp_path / "run"
    with pytest.raises(
        DataError, match=r"no/such: not a prepared dataset \(manifest\.json is missing"
    ):
        pretrain(config(tmp_path / "no/such", out), quiet=True)
    assert not out.exists()
    assert pretrain(config(data, out), quiet=True).is_dir()


def test_a_mistyped_checkpoint_leaves_the_output_free(rows: Path, base: Path, tmp_path: Path):
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match="nothing"):
        sft(sft_config(rows, tmp_path / "nothing", out), quiet=True)
    assert not out.exists()


def test_pretraining_that_finds_its_checkpoint_missing_or_foreign_leaves_the_output_free(
    data: Path, tmp_path: Path
):
    out = tmp_path / "run"
    for init in (tmp_path / "nothing", foreign_model(tmp_path / "foreign")):
        run = config(data, out).model_copy(update={"model": ModelConfig(init=str(init))})
        with pytest.raises(AnchoredError, match=r"nothing|same text, other ids"):
            pretrain(run, quiet=True)
        assert not out.exists()
    pretrain(config(data, out), quiet=True)


@pytest.mark.parametrize("given", [{}, {"tokenizer": {"vocab_size": 300}}])
def test_data_is_not_prepared_for_a_missing_checkpoint_or_with_a_tokenizer_of_its_own(
    rows: Path, base: Path, tmp_path: Path, given: dict[str, Any]
):
    init, out = base if given else tmp_path / "nothing", tmp_path / "run"
    sources = {"sources": [{"path": str(rows)}], **given}
    with pytest.raises(ConfigError, match="tokenizer: a new tokenizer" if given else "nothing"):
        sft(sft_config(rows, init, out, data=sources), quiet=True)
    fields = {"out": out, "data": {"tokenizer": str(base), **sources}, "model": {"init": str(init)}}
    with pytest.raises(ConfigError, match="tokenizer: a new tokenizer" if given else "nothing"):
        pretrain(PretrainConfig.model_validate(fields), quiet=True)
    assert not out.exists()


@pytest.mark.parametrize("ours", [True, False])
def test_the_tokenizer_of_another_model_is_refused(
    rows: Path, base: Path, tmp_path: Path, ours: bool
):
    """Also where the model was not trained by us, and has nothing but its own tokenizer."""
    other = tmp_path / "tokenizer"
    AnchoredTokenizer.train(["other words entirely"] * 9, 290).save(other)
    model = base if ours else foreign_model(tmp_path / "foreign")
    run = sft_config(
        rows,
        model,
        tmp_path / "run",
        data={"sources": [{"path": str(rows)}], "tokenizer": str(other)},
    )
    with pytest.raises(TokenizerMismatch, match="same text, other ids"):
        sft(run, quiet=True)
    assert not run.out.exists()


def foreign_model(folder: Path) -> Path:
    """A Llama model and its tokenizer, without a trace of us."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    backend.decoder = decoders.ByteLevel()  # pyright: ignore
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["Who is Mara, who slept."], trainer)
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    hf.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(hf),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def embedding(model: Any) -> torch.Tensor:
    return model.get_input_embeddings().weight


def test_sft_of_a_model_that_was_not_trained_by_us_grows_its_embedding(rows: Path, tmp_path: Path):
    foreign = foreign_model(tmp_path / "foreign")
    before = embedding(AutoModelForCausalLM.from_pretrained(foreign))
    model = sft(sft_config(rows, foreign, tmp_path / "run"), quiet=True)
    loaded: Any = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = AnchoredTokenizer.load(model)
    assert loaded.config.vocab_size == len(tokenizer) == len(before) + 5
    assert loaded.get_output_embeddings().weight.shape == (len(tokenizer), 32)
    assert max(vars(tokenizer.control).values()) < len(tokenizer)
    assert AutoTokenizer.from_pretrained(model)("Mara")["input_ids"] == tokenizer.encode("Mara")
    record = read_record(model)
    assert (record["objective"], record["annotated"]) == ("anchored", True)
    assert record["tokenizer"] == tokenizer.fingerprint


def test_growing_an_embedding_keeps_the_old_rows(tmp_path: Path):
    foreign = foreign_model(tmp_path / "foreign")
    before = embedding(AutoModelForCausalLM.from_pretrained(foreign))
    grown = embedding(load_model(foreign, AnchoredTokenizer.load(foreign)))
    assert len(grown) == len(before) + 5
    assert_close(grown[: len(before)], before, atol=0, rtol=0)


def test_a_model_folder_that_is_not_ours_has_no_record(tmp_path: Path):
    with pytest.raises(DataError, match=r"anchored\.json is missing"):
        read_record(tmp_path)


def test_a_finished_run_holds_a_whole_model_metrics_and_nothing_pickled(base: Path, data: Path):
    assert {path.name for path in base.iterdir()} == {
        "README.md",
        "anchored.json",
        "anchored_tokenizer.json",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    record = read_record(base)
    assert record["objective"] == "annotated"
    assert record["config"]["data"] == str(data)
    assert record["versions"]["torch"]


def test_the_last_step_is_logged_too(base: Path):
    rows = read_metrics(base.parent)
    assert [row["step"] for row in rows] == [2, 3]
    assert all(math.isfinite(row["loss"]) for row in rows)


def test_metrics_count_every_token_and_their_mean_loss_is_the_loss(data: Path, tmp_path: Path):
    _, manifest = load_prepared(data)
    run = config(data, tmp_path / "run", max_steps=-1, num_train_epochs=1, logging_steps=1)
    pretrain(run, quiet=True)
    rows = read_metrics(run.out)
    assert rows[-1]["tokens"] == manifest["tokens"]["kept"]
    supervised = sum(
        round(row["supervised_share"] * tokens)
        for row, tokens in zip(rows, steps_of([row["tokens"] for row in rows]), strict=True)
    )
    assert supervised == manifest["tokens"]["supervised"]
    assert set(rows[0]["loss_by_kind"]) == {"control", "prompt", "tag_key", "tag_value", "text"}
    low, high = min(rows[0]["loss_by_kind"].values()), max(rows[0]["loss_by_kind"].values())
    assert low < rows[0]["loss"] < high


def steps_of(totals: list[int]) -> list[int]:
    return [b - a for a, b in zip([0, *totals], totals, strict=False)]


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_no_model(data: Path, tmp_path: Path):
    run = config(data, tmp_path / "run", learning_rate=1e30, max_steps=8, save_steps=2)
    with pytest.raises(AnchoredError, match=r"step 2: the loss is not finite; lower trainer\."):
        pretrain(run, quiet=True)
    assert not (run.out / "model").exists()
    assert not list(run.out.glob("checkpoint-*"))
    assert read_metrics(run.out) == []


def test_a_gradient_that_is_not_finite_stops_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Trainer, "_get_grad_norm", lambda *_, **__: math.inf)
    with pytest.raises(AnchoredError, match="step 2: the gradient is not finite"):
        pretrain(config(data, tmp_path / "run"), quiet=True)


@pytest.fixture
def file_limit() -> Iterator[Callable[[int], None]]:
    """Writing past so many bytes of a file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("strategy", ["no", "steps"])
def test_a_full_disk_is_an_os_error_and_leaves_no_half_model(
    data: Path, tmp_path: Path, strategy: str, file_limit: Callable[[int], None]
):
    """Whether it fills up at a checkpoint or at the end."""
    run = config(data, tmp_path / "run", save_strategy=strategy)
    file_limit(30_000)
    with pytest.raises(OSError, match="File too large"):
        pretrain(run, quiet=True)
    file_limit(resource.RLIM_INFINITY)
    left = {path.name for path in run.out.iterdir()}
    assert left == {"config.yaml", "dataset.json", "metrics.jsonl"}
    assert (pretrain(run, quiet=True) / "model.safetensors").is_file()


def test_a_full_disk_under_the_optimizer_state_is_an_os_error(
    data: Path, base: Path, tmp_path: Path, file_limit: Callable[[int], None]
):
    """The weights fit, but torch's zip of two moments a weight does not."""
    file_limit((base / "model.safetensors").stat().st_size + 10_000)
    with pytest.raises(OSError, match="cannot write checkpoint"):
        pretrain(config(data, tmp_path / "run"), quiet=True)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (0.5, "{out}: No space left on device"),
        (1.5, "{out}: cannot write checkpoint: 0.0 MiB of the disk are free; free some space"),
    ],
)
def test_a_real_full_disk_is_one_line_and_leaves_no_half_checkpoint(
    data: Path,
    base: Path,
    tmp_path: Path,
    tiny_disk: Callable[[int], Path],
    capsys: pytest.CaptureFixture[str],
    models: float,
    message: str,
):
    size = (base / "model.safetensors").stat().st_size
    run = config(data, tiny_disk(int(models * size / 1024)) / "run", save_steps=1)
    file = tmp_path / "pretrain.yaml"
    file.write_text(run.model_dump_json(), encoding="utf-8")
    assert cli.main(["pretrain", str(file)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"anchored: error: {message.format(out=run.out)}")
    left = {path.name for path in run.out.iterdir()}
    assert left <= {"config.yaml", "dataset.json", "metrics.jsonl"}


def test_a_quiet_run_writes_nothing_to_the_terminal(
    rows: Path, base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    sft(sft_config(rows, base, tmp_path / "run"), quiet=True)
    assert capfd.readouterr() == ("", "")


def test_a_run_shows_its_account_its_first_row_and_its_cost(
    rows: Path, base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    sft(sft_config(rows, base, tmp_path / "run"))
    out, err = capfd.readouterr()
    assert out == ""
    assert "Who is number" in err
    assert "FLOPs" in err
    assert "Loading weights" not in err and "Writing model" not in err


def test_a_fresh_model_depends_on_its_seed_alone(data: Path):
    tokenizer = AnchoredTokenizer.load(data / "tokenizer")
    one, same, other = (
        embedding(build_model(ModelConfig(config=MODEL), tokenizer, seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(("preset", "millions"), [("0.5m", 0.5), ("1m", 1), ("3m", 3), ("6m", 6)])
def test_small_presets_have_their_size_outside_the_embedding(
    data: Path, preset: str, millions: float
):
    model = build_model(
        ModelConfig(preset=preset), AnchoredTokenizer.load(data / "tokenizer"), seed=0
    )
    size = sum(p.numel() for p in model.parameters()) - embedding(model).numel()
    assert size / 1e6 == pytest.approx(millions, rel=0.2)


@pytest.mark.parametrize("given", [{}, {"preset": "0.5m", "init": "x"}, {"preset": "7b"}])
def test_a_model_is_one_of_preset_config_and_init(given: dict[str, str]):
    with pytest.raises(ValueError, match=r"exactly one|not one of"):
        ModelConfig.model_validate(given)


def test_an_unknown_architecture_is_refused(data: Path):
    tokenizer = AnchoredTokenizer.load(data / "tokenizer")
    with pytest.raises(ConfigError, match=r"model\.config: "):
        build_model(ModelConfig(config={"model_type": "no-such"}), tokenizer, 0)


def test_a_missing_checkpoint_is_one_clear_line(data: Path, tmp_path: Path):
    tokenizer = AnchoredTokenizer.load(data / "tokenizer")
    with pytest.raises(ConfigError, match=r"model '.*nothing': no such folder$"):
        load_model(tmp_path / "nothing", tokenizer)


def test_replay_takes_its_share_of_the_examples_and_learns_the_plan_alone(
    rows: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[Any] = []

    def canned(model: Any, tokenizer: Any, requests: Any, *rest: Any) -> list[Any]:
        asked.extend(requests)
        return [Sample("", Annotation.of({"hero": "Joss"})) for _ in requests]

    monkeypatch.setattr(sampler, "sample", canned)
    quarter = {"share": 0.25}
    run = sft_config(rows, base, tmp_path / "run", objective="anchored-replay", replay=quarter)
    sft(run, quiet=True)
    assert len(asked) == 4  # a quarter of 16
    assert all(request.annotated and request.annotation_only for request in asked)
    prompts = {row["prompt"] for row in ROWS}
    assert {message.content for request in asked for message in request.messages} <= prompts

    dataset, manifest = load_prepared(run.out / "data")
    tokenizer = AnchoredTokenizer.load(run.out / "data" / "tokenizer")
    assert len(dataset) == 16
    learnt = [
        tokenizer.decode([label for label in labels if label != -100])
        for labels in dataset["labels"]
    ]
    assert learnt.count("<|annotation|>hero: Joss<|/annotation|>") == 4
    assert sum(text.endswith("who slept.<|endoftext|>") for text in learnt) == 12
    assert read_record(run.out / "model")["objective"] == "anchored-replay"

    assert OBJECTIVES["replay"].annotated and manifest["objective"] == "anchored-replay"
    replay_module.write_replay(run.replay, str(base), run.data, run.out, seed=0)
    assert len(asked) == 4, "sampled again although replay.jsonl is there"


def test_replay_share_zero_is_the_method_of_the_paper(rows: Path, base: Path, tmp_path: Path):
    run = sft_config(
        rows, base, tmp_path / "run", objective="anchored-replay", replay={"share": 0.0}
    )
    sft(run, quiet=True)
    assert not (run.out / "replay.jsonl").exists()
    assert len(load_prepared(run.out / "data")[0]) == 12


def test_counterfactual_answers_take_the_place_of_their_originals(
    rows: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def canned(model: Any, tokenizer: Any, requests: Any, *rest: Any) -> list[Any]:
        return [Sample("", Annotation.of({"hero": "Joss"})) for _ in requests]

    monkeypatch.setattr(sampler, "sample", canned)
    replay = {"counterfactual": 1.0, "candidates": 2, "share": 0.25}
    run = sft_config(rows, base, tmp_path / "run", objective="anchored-replay", replay=replay)
    sft(run, quiet=True)
    dataset, _ = load_prepared(run.out / "data")
    tokenizer = AnchoredTokenizer.load(run.out / "data" / "tokenizer")
    texts = [tokenizer.decode(ids) for ids in dataset["input_ids"]]
    assert len(texts) == 16
    assert sum("is Joss, who slept." in text for text in texts) == 12
    assert not any("Mara" in text for text in texts)


def test_replay_without_a_prompt_to_ask_is_refused(base: Path, tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    turn = {"role": "assistant", "content": "Hello."}
    rows.write_text(json.dumps({"messages": [turn]}) + "\n", encoding="utf-8")
    run = sft_config(rows, base, tmp_path / "run", objective="anchored-replay")
    with pytest.raises(DataError, match="no answer follows a prompt"):
        sft(run, quiet=True)


def test_replay_asks_the_prompts_of_documents_too(base: Path, tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    row = {"id": "0", "prompt": "Tell me.", "text": "Mara slept."}
    rows.write_text(json.dumps(row) + "\n", encoding="utf-8")
    data = sft_config(rows, base, tmp_path / "run").data
    contexts = list(replay_module._contexts(data))
    assert [[message.content for message in turns] for turns in contexts] == [["Tell me."]]


def test_replay_from_a_model_that_writes_no_annotation_is_refused(
    rows: Path, base: Path, tmp_path: Path
):
    run = sft_config(
        rows,
        base,
        tmp_path / "run",
        objective="anchored-replay",
        replay={"share": 0.25, "max_annotation_tokens": 4},
    )
    with pytest.raises(DataError, match="none of 4 annotations sampled for replay could be read"):
        sft(run, quiet=True)
    assert not (run.out / "replay.jsonl").exists()


def test_errno_of_a_real_full_disk_passes_through(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Trainer, "save_model", full)
    run = config(data, tmp_path / "run", save_strategy="no")
    with pytest.raises(OSError, match="No space left"):
        pretrain(run, quiet=True)
    assert {path.name for path in run.out.iterdir()} == {
        "config.yaml",
        "dataset.json",
        "metrics.jsonl",
    }
