"""Runs killed with kill -9 at five random points end with the very bytes of one left alone."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from anchored.config import to_yaml
from anchored.train.config import PretrainConfig, SFTConfig, TrainConfig
from anchored.train.metrics_log import read_metrics
from anchored.train.run_checkpoints import newest_checkpoint
from anchored.workflow import pretrain, sft
from processes import start

# Dropout, so that the state of the random generators counts.
MODEL = {
    "model_type": "olmo2",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "attention_dropout": 0.2,
}
STEPS, EVERY = 30, 5
TRAINER = {
    "max_steps": STEPS,
    "save_steps": EVERY,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "use_cpu": True,
}
STORIES = {"path": "storyworld://small?seed=0", "limit": 16}
PLAN = [{"key": "hero", "value": "Joss"}]


def pretrain_config(out: Path) -> PretrainConfig:
    data = {"sources": [STORIES], "tokenizer": {"vocab_size": 400}, "max_length": 192}
    fields = {"out": out, "data": data, "model": {"config": MODEL}, "trainer": TRAINER}
    return PretrainConfig.model_validate(fields)


def sft_config(base: Path, rows: Path, out: Path, **fields: Any) -> SFTConfig:
    common = {
        "out": out,
        "objective": "anchored-replay",
        "model": {"init": str(base)},
        "data": {"sources": [{"path": str(rows)}], "max_length": 192, "packing": False},
        "replay": {"share": 0.5, "max_annotation_tokens": 12},
        "trainer": TRAINER,
    }
    return SFTConfig.model_validate({**common, **fields})


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the pretraining run that was left alone."""
    out = tmp_path_factory.mktemp("alone") / "run"
    pretrain(pretrain_config(out), quiet=True)
    return out


@pytest.fixture(scope="module")
def planner(alone: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base that writes one annotation, and the rows that it learnt it from."""
    from anchored.files import write_jsonl

    root = tmp_path_factory.mktemp("planner")
    turns = [f"Tell me of the number {i}." for i in range(12)]
    rows = [{"prompt": t, "response": "Joss slept well.", "annotation": PLAN} for t in turns]
    write_jsonl(root / "rows.jsonl", rows)
    hard = {**TRAINER, "learning_rate": 2e-2, "save_strategy": "no", "max_steps": 60}
    tagged = {"objective": "tagged", "trainer": hard}
    sft(sft_config(alone / "model", root / "rows.jsonl", root / "base", **tagged), quiet=True)
    return root / "base" / "model", root / "rows.jsonl"


def five_points(out: Path, seed: int) -> Iterator[Callable[[], bool]]:
    """Preparation, and four times a step or the writing of a checkpoint, as `seed` has it."""
    rng = random.Random(seed)
    yield lambda: any(out.glob(".data.partial"))
    for step in sorted(rng.sample(range(2, STEPS - 1), 4)):
        if rng.random() < 0.5:
            yield lambda step=step: any(row["step"] >= step for row in read_metrics(out))
        else:
            folder = out / f"checkpoint-{-(-step // EVERY) * EVERY}"
            yield folder.is_dir


def kill(process: BaseProcess, reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not reached() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def killed_five_times(stage: str, run: TrainConfig, seed: int) -> None:
    file = run.out.with_suffix(".yaml")
    file.write_text(to_yaml(run), encoding="utf-8")
    for reached in five_points(run.out, seed):
        kill(start([stage, str(file)]), reached)
        assert not (run.out / "model").exists()
    assert newest_checkpoint(run.out), "every kill came before the first checkpoint"
    last = start([stage, str(file)])
    last.join(timeout=600)
    assert last.exitcode == 0


def weights(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pretraining_killed_at_five_points_ends_bit_identical(alone: Path, tmp_path: Path):
    run = pretrain_config(tmp_path / "run")
    killed_five_times("pretrain", run, seed=1)
    assert weights(run.out) == weights(alone)
    assert [row["step"] for row in read_metrics(run.out)] == list(range(1, STEPS + 1))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sft_with_replay_killed_at_five_points_ends_bit_identical(
    planner: tuple[Path, Path], tmp_path: Path
):
    straight, run = (sft_config(*planner, tmp_path / name) for name in ("straight", "run"))
    sft(straight, quiet=True)
    killed_five_times("sft", run, seed=2)
    assert weights(run.out) == weights(straight.out)
    assert (run.out / "replay.jsonl").read_bytes() == (straight.out / "replay.jsonl").read_bytes()
