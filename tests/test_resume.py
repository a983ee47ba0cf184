"""A run that is killed with kill -9 and started again ends as one that was left alone."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import Trainer

from anchored.config import load_config, to_yaml
from anchored.data.prepare import PrepareConfig, load_prepared, prepare
from anchored.errors import ConfigError
from anchored.files import read_jsonl
from anchored.train.config import PretrainConfig
from anchored.train.layout import MAY_CHANGE
from anchored.train.run_checkpoints import newest_checkpoint
from anchored.workflow import pretrain

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
TIMED = ("tokens_per_second", "supervised_tokens_per_second", "mfu", "peak_tflops")

# Which one process may set otherwise when it goes on, each unlike it was.
CHANGED = {
    "activation_checkpointing": True,
    "gradient_checkpointing": True,
    "ddp_timeout": 9,
    "dataloader_num_workers": 1,
    "dataloader_persistent_workers": True,
    "dataloader_pin_memory": True,
    "dataloader_prefetch_factor": 3,
    "save_steps": 3,
    "save_total_limit": 1,
}

# Ends itself where a real kill -9 would hurt most.
CHILD = """
import os, signal, sys
from pathlib import Path
from transformers import Trainer
from anchored.config import load_config
from anchored.tokenizer import AnchoredTokenizer
from anchored.train.config import PretrainConfig
from anchored.workflow import pretrain

def dying(original, step):
    def method(self, *arguments, **named):
        original(self, *arguments, **named)
        if step is None or self.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
    return method

if sys.argv[2] == "checkpoint":
    original = Trainer._save_optimizer_and_scheduler
    Trainer._save_optimizer_and_scheduler = dying(original, int(sys.argv[3]))
else:
    AnchoredTokenizer.save = dying(AnchoredTokenizer.save, None)
pretrain(load_config(PretrainConfig, Path(sys.argv[1])), quiet=True)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("resume") / "data"
    config = {
        "out": out,
        "sources": [{"path": "storyworld://small?seed=0", "limit": 8}],
        "tokenizer": {"vocab_size": 400},
        "objective": "annotated",
        "max_length": 192,
    }
    return prepare(PrepareConfig.model_validate(config), Console(quiet=True))


def steps(data: Path) -> tuple[int, int]:
    """The step of the checkpoint that is killed, well inside epoch 2, and the last, in epoch 3."""
    epoch = -(-len(load_prepared(data)[0]) // 2)
    killed = 2 * (epoch // 2) + 4
    assert epoch < killed - 2 < killed < 2 * epoch, f"epochs of {epoch} steps are too short"
    return killed, 2 * epoch + 2


def config(data: Path, out: Path, **changed: Any) -> PretrainConfig:
    trainer = {
        "max_steps": steps(data)[1],
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_steps": 2,
        "save_total_limit": 99,
        "use_cpu": True,
    }
    return PretrainConfig.model_validate(
        {
            "out": out,
            "data": data,
            "model": {"config": MODEL},
            "muon_learning_rate": 0.02,
            "trainer": {**trainer, **changed},
        }
    )


def killed(config: PretrainConfig, *when: str) -> None:
    """Runs `config` in a process of its own until it is within that `checkpoint` or the `end`."""
    file = config.out.with_suffix(".yaml")
    file.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(PretrainConfig, file) == config
    child = subprocess.run([sys.executable, "-c", CHILD, str(file), *when], check=False)
    assert child.returncode == -signal.SIGKILL


def metrics(out: Path) -> list[dict[str, Any]]:
    rows = [row for _, row in read_jsonl(out / "metrics.jsonl")]
    return [{name: row[name] for name in row if name not in TIMED} for row in rows]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight") / "run"
    pretrain(config(data, out), quiet=True)
    return out


def assert_same_run(resumed: Path, straight: Path) -> None:
    assert metrics(resumed) == metrics(straight)
    found, expected = weights(resumed), weights(straight)
    assert found.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())


def test_killed_inside_epoch_2_within_a_checkpoint_and_resumed_equals_the_straight_run(
    data: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The newest checkpoint has weights and optimizer but no more: it is passed over."""
    run, (step, end) = config(data, tmp_path / "run"), steps(data)
    killed(run, "checkpoint", str(step))
    assert (run.out / f"checkpoint-{step}" / "optimizer.pt").is_file()
    assert newest_checkpoint(run.out) == str(run.out / f"checkpoint-{step - 2}")
    assert metrics(run.out)[-1]["step"] == step
    with (run.out / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 1')  # a line cut short
    begun: list[int] = []
    training_step = Trainer.training_step

    def counted(trainer: Trainer, *arguments: Any) -> Any:
        begun.append(trainer.state.global_step)
        return training_step(trainer, *arguments)

    monkeypatch.setattr(Trainer, "training_step", counted)
    pretrain(run, quiet=True)
    assert begun[0] == step - 2, "not resumed but run from the start"
    assert_same_run(run.out, straight)
    assert [row["step"] for row in metrics(run.out)] == list(range(1, end + 1))


def test_killed_within_the_final_save_leaves_no_half_model_and_resumes(
    data: Path, straight: Path, tmp_path: Path
):
    run = config(data, tmp_path / "run")
    killed(run, "end")
    assert not (run.out / "model").exists()
    pretrain(run, quiet=True)
    assert_same_run(run.out, straight)
    assert {path.name for path in run.out.iterdir()} == {path.name for path in straight.iterdir()}


def test_a_finished_run_is_not_run_again(data: Path, straight: Path):
    before = (straight / "model" / "model.safetensors").stat().st_mtime_ns
    assert pretrain(config(data, straight), quiet=True) == straight / "model"
    assert (straight / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_what_changes_nothing_learnt_may_change_half_way(
    data: Path, straight: Path, tmp_path: Path
):
    """From inside epoch 1 into epoch 3, with dropout, bit by bit as if unchanged."""
    layouts = {"per_device_train_batch_size", "gradient_accumulation_steps", "fsdp", "fsdp_config"}
    assert {f"trainer.{name}" for name in {*CHANGED, *layouts}} == set(MAY_CHANGE)
    half, out = steps(data)[0] // 4 * 2, tmp_path / "run"
    later = [f"checkpoint-{step}" for step in range(half + 1, steps(data)[1] + 1)]
    shutil.copytree(straight, out, ignore=shutil.ignore_patterns("model", *later))
    assert newest_checkpoint(out) == str(out / f"checkpoint-{half}")
    assert half < -(-len(load_prepared(data)[0]) // 2)
    pretrain(config(data, out, **CHANGED), quiet=True)
    assert_same_run(out, straight)
    with pytest.raises(ConfigError, match=r"trainer\.learning_rate"):
        pretrain(config(data, out, **CHANGED, learning_rate=1e-4), quiet=True)


@pytest.mark.parametrize("contents", [None, "", '{"global_step": 8, "best', "not json"])
def test_a_checkpoint_without_a_whole_state_is_passed_over(tmp_path: Path, contents: str | None):
    for name, state in (("checkpoint-4", '{"global_step": 4}'), ("checkpoint-8", contents)):
        (tmp_path / name).mkdir()
        if state is not None:
            (tmp_path / name / "trainer_state.json").write_text(state, encoding="utf-8")
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")


def test_a_checkpoint_that_another_process_was_writing_is_passed_over(tmp_path: Path):
    for step in (4, 8):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(f'{{"global_step": {step}}}', encoding="utf-8")
        for rank in range(2):
            torch.save({"cpu": torch.get_rng_state()}, folder / f"rng_state_{rank}.pth")
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")
    torn = tmp_path / "checkpoint-8" / "rng_state_1.pth"
    torn.write_bytes(torn.read_bytes()[:-100])
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")


def test_the_newest_checkpoint_is_that_of_the_highest_step_not_of_the_last_name(tmp_path: Path):
    for step in (90, 100):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(f'{{"global_step": {step}}}', encoding="utf-8")
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-100")
    assert newest_checkpoint(tmp_path / "checkpoint-90") is None
