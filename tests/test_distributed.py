"""Several processes train as one with as many rows a step, from each other's checkpoints too."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.testing import assert_close

from anchored.annotation import Annotation
from anchored.config import to_yaml
from anchored.data.prepare import PrepareConfig, prepare
from anchored.errors import ConfigError
from anchored.models.build import ModelConfig, build_model, load_model
from anchored.sampling.engine import Sample
from anchored.sampling.sampler import LocalSampler
from anchored.tokenizer import AnchoredTokenizer
from anchored.train.config import PretrainConfig, SFTConfig, TrainConfig
from anchored.train.layout import check_layout
from anchored.train.metrics_log import read_metrics
from anchored.train.run import wait_for
from anchored.train.run_checkpoints import SHARDED_WEIGHTS
from anchored.workflow import pretrain, sft
from processes import run_ranks

MODEL = {
    "model_type": "olmo2",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
ONE = {"per_device_train_batch_size": 4}
TWO = {"per_device_train_batch_size": 2}
SHARDED = {**TWO, "fsdp": True}
ACCUMULATED = {**TWO, "gradient_accumulation_steps": 2}
Launch = Callable[[PretrainConfig], None]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prepared = {
        "out": tmp_path_factory.mktemp("distributed") / "data",
        "sources": [{"path": "storyworld://small?seed=0", "limit": 24}],
        "tokenizer": {"vocab_size": 400},
        "max_length": 192,
    }
    return prepare(PrepareConfig.model_validate(prepared), Console(quiet=True))


def config(data: Path, out: Path, **trainer: Any) -> PretrainConfig:
    common = {
        "max_steps": 6,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_steps": 2,
        "save_total_limit": 9,
        "use_cpu": True,
    }
    watched = {"every": 2, "samples": 3, "max_new_tokens": 8, "budget": None}
    fields = {
        "out": out,
        "data": data,
        "model": {"config": MODEL},
        "trainer": {**common, **trainer},
        "monitor": None if trainer.get("fsdp") else {"prompts": ["", "A story?"], **watched},
    }
    return PretrainConfig.model_validate(fields)


def alone(run: PretrainConfig) -> None:
    pretrain(run, quiet=True)


def on_two_ranks(run: TrainConfig) -> None:
    stage = "sft" if isinstance(run, SFTConfig) else "pretrain"
    run_ranks([stage, str(written(run))])


def by_torchrun(run: PretrainConfig) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launch, "-m", "anchored", "pretrain", str(written(run))]
    subprocess.run(command, check=True, timeout=240)


def written(run: TrainConfig) -> Path:
    file = run.out.with_suffix(".yaml")
    file.write_text(to_yaml(run), encoding="utf-8")
    return file


LAYOUTS: dict[str, tuple[Launch, dict[str, Any]]] = {
    "one": (alone, ONE),
    "accumulated": (alone, ACCUMULATED),
    "ddp": (by_torchrun, TWO),
    "fsdp": (on_two_ranks, SHARDED),
}


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an unbroken run in a layout, each run once."""
    root = tmp_path_factory.mktemp("finished")

    def run(layout: str) -> Path:
        launch, trainer = LAYOUTS[layout]
        if not (root / layout).exists():
            launch(config(data, root / layout, **trainer))
        return root / layout

    return run


def weights(out: Path) -> dict[str, Any]:
    model: Any = load_model(out / "model", AnchoredTokenizer.load(out / "model"))
    return model.state_dict()


def assert_same_training(found: Path, expected: Path) -> None:
    assert_close(weights(found), weights(expected), atol=1e-5, rtol=0)
    for ours, theirs in zip(read_metrics(found), read_metrics(expected), strict=True):
        for name in ("step", "tokens", "supervised_share"):
            assert ours[name] == theirs[name]
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert ours["loss_by_kind"] == pytest.approx(theirs["loss_by_kind"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
def test_two_processes_equal_one_with_twice_the_batch(finished: Callable[[str], Path], layout: str):
    found = finished(layout)
    sharded = (found / "checkpoint-2" / SHARDED_WEIGHTS).is_file()
    assert sharded == (layout == "fsdp"), "trained in another way than asked for"
    assert_same_training(found, finished("one"))


@pytest.mark.slow
@pytest.mark.skipif(torch.accelerator.is_available(), reason="one device, taken by both")
def test_processes_on_a_cpu_find_each_other_without_being_told(
    finished: Callable[[str], Path], data: Path, tmp_path: Path
):
    run = config(data, tmp_path / "run", **TWO, max_steps=1, lr_scheduler_type="constant")
    trainer = {name: value for name, value in run.trainer.items() if name != "use_cpu"}
    on_two_ranks(run.model_copy(update={"trainer": trainer, "monitor": None}))
    (found,), expected = read_metrics(tmp_path / "run"), read_metrics(finished("one"))[0]
    assert found["tokens"] == expected["tokens"]
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5)


@pytest.mark.slow
def test_two_processes_that_sample_half_each_see_the_diversity_that_one_sees(
    finished: Callable[[str], Path],
):
    ours, theirs = read_metrics(finished("ddp")), read_metrics(finished("one"))
    for name in ("semantic_entropy", "dissimilarity", "kept", "kept_high"):
        figures = [row.get(f"collapse/{name}") for row in theirs]
        assert [row.get(f"collapse/{name}") for row in ours] == figures
        assert any(figure is not None for figure in figures)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [("ddp", "accumulated"), ("fsdp", "accumulated"), ("one", "fsdp"), ("fsdp", "fsdp")],
)
def test_a_run_goes_on_exactly_in_another_layout(
    finished: Callable[[str], Path], data: Path, tmp_path: Path, before: str, after: str
):
    out = tmp_path / "run"
    shutil.copytree(finished(before), out)
    for later in ("model", "checkpoint-6", "checkpoint-4"):
        shutil.rmtree(out / later)
    launch, trainer = LAYOUTS[after]
    launch(config(data, out, **trainer))
    assert_same_training(out, finished("one"))


@pytest.mark.slow
def test_sharded_bfloat16_accumulates_counts_and_reports_in_float32(
    finished: Callable[[str], Path], data: Path, tmp_path: Path
):
    sharded = {**SHARDED, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    on_two_ranks(config(data, tmp_path / "run", **sharded, bf16=True))
    found, exact = (
        [r["loss"] for r in read_metrics(at)] for at in (tmp_path / "run", finished("one"))
    )
    assert found == pytest.approx(exact, abs=2e-3)


def sft_config(base: Path, out: Path, **trainer: Any) -> SFTConfig:
    common = {"max_steps": 4, "learning_rate": 1e-2, "logging_steps": 1, "use_cpu": True}
    stories = {"path": "storyworld://small/sft?seed=0&count=8"}
    fields = {
        "out": out,
        "objective": "anchored-replay",
        "replay": {"share": 0.5},
        "model": {"init": str(base)},
        "data": {"sources": [stories], "max_length": 384, "packing": False},
        "trainer": {**common, **trainer},
    }
    return SFTConfig.model_validate(fields)


@pytest.fixture(scope="module")
def fine_tuned(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and the folder of its anchored SFT with replayed annotations, by one process."""
    root = tmp_path_factory.mktemp("sft")
    tokenizer = AnchoredTokenizer.load(data / "tokenizer")
    untied = {**MODEL, "tie_word_embeddings": False}
    build_model(ModelConfig(config=untied), tokenizer, 0).save_pretrained(root / "base")
    tokenizer.save(root / "base")

    def canned(self: LocalSampler, requests: Any, config: Any) -> list[Any]:
        return [Sample("", Annotation.of({"hero": "Joss"})) for _ in requests]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalSampler, "sample", canned)
        sft(sft_config(root / "base", root / "one", **ONE), quiet=True)
    return root / "base", root / "one"


@pytest.mark.slow
@pytest.mark.parametrize("layout", [TWO, SHARDED], ids=["ddp", "fsdp"])
def test_replay_against_the_base_on_two_processes_equals_that_on_one(
    fine_tuned: tuple[Path, Path], tmp_path: Path, layout: dict[str, Any]
):
    base, one = fine_tuned
    out = tmp_path / "run"
    out.mkdir()
    shutil.copytree(one / "data", out / "data")
    for file in ("replay.jsonl", "config.yaml"):
        shutil.copyfile(one / file, out / file)
    on_two_ranks(sft_config(base, out, **layout))
    assert_same_training(out, one)


def test_another_number_of_rows_a_step_is_refused(
    finished: Callable[[str], Path], data: Path, tmp_path: Path
):
    out = tmp_path / "run"
    shutil.copytree(finished("one"), out)
    with pytest.raises(ConfigError) as refused:
        alone(config(data, out, per_device_train_batch_size=3))
    assert str(refused.value) == (
        f"{out}: trained with 4 rows per step on 1 process, now 3 on 1 process; set "
        "trainer.per_device_train_batch_size times trainer.gradient_accumulation_steps to 4, or "
        "choose another output folder"
    )


def arguments(**fields: Any) -> Any:
    given = {"n_gpu": 0, "world_size": 2, "fsdp": True, "fsdp_config": {}, "train_batch_size": 1}
    return SimpleNamespace(**{**given, **fields})


@pytest.mark.parametrize(
    ("fields", "adapter", "environment", "message"),
    [
        ({"world_size": 1}, False, {"WORLD_SIZE": "2"}, "2 processes were started (WORLD_SIZE)"),
        (
            {"n_gpu": 4},
            False,
            {},
            "4 devices but one process; start one process per device",
        ),
        ({"deepspeed_plugin": SimpleNamespace(zero_stage=3)}, False, {}, "trainer.deepspeed"),
        ({}, True, {}, "model.lora: not supported with trainer.fsdp"),
        ({"fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}}, False, {}, "trainer.fsdp_c"),
        ({"fsdp": None}, True, {"ACCELERATE_USE_FSDP": "true"}, "model.lora"),
        ({"fsdp": None}, False, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "FSDP_STATE"),
        (
            {"fsdp": None, "fsdp_config": {"state_dict_type": "FULL_STATE_DICT"}},
            False,
            {"ACCELERATE_USE_FSDP": "true", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"},
            "FSDP_STATE_DICT_TYPE",
        ),
    ],
    ids=[
        "alone",
        "devices",
        "zero-3",
        "adapter",
        "shards",
        "launched",
        "launched-2",
        "launched-shards",
    ],
)
def test_layouts_that_would_fail_later_are_refused(
    fields: dict[str, Any],
    adapter: bool,
    environment: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    check_layout(arguments(), False, None)
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        check_layout(arguments(**fields), adapter, None)


def test_the_other_processes_wait_for_the_data_at_no_barrier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.distributed, "barrier", None)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            (tmp_path / "data").mkdir()

    monkeypatch.setattr("anchored.train.run.time.sleep", sleep)
    wait_for(tmp_path / "data")
    assert len(slept) == 3


def test_evaluation_inside_a_run_is_refused(data: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"^trainer\.eval_strategy: 'steps': a run has no data"):
        alone(config(data, tmp_path / "run", eval_strategy="steps", eval_steps=1))
    assert not (tmp_path / "run").exists()


def test_checkpoints_without_an_optimizer_are_refused(data: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"^trainer\.save_only_model"):
        alone(config(data, tmp_path / "run", save_only_model=True))
    assert not (tmp_path / "run").exists()


def test_sharding_by_one_process_is_refused_before_any_work(data: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"^trainer\.fsdp: sharding needs several processes"):
        alone(config(data, tmp_path / "run", fsdp=True))
    assert not (tmp_path / "run").exists()
