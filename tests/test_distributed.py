"""Two processes train as one with twice the batch, and say the same about it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file
from torch.testing import assert_close

from anchored.config import to_yaml
from anchored.data.prepare import PrepareConfig, prepare
from anchored.train.monitor import read_metrics
from anchored.train.run import PretrainConfig, pretrain

MODEL = {
    "model_type": "olmo2",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def config(data: Path, out: Path, batch_size: int) -> PretrainConfig:
    trainer = {
        "max_steps": 3,
        "per_device_train_batch_size": batch_size,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_steps": 2,
        "use_cpu": True,
    }
    monitor = {"prompts": ["", "A story?"], "every": 2, "samples": 3, "max_new_tokens": 8}
    return PretrainConfig.model_validate(
        {
            "out": out,
            "data": data,
            "model": {"config": MODEL},
            "trainer": trainer,
            "monitor": {**monitor, "budget": None},
        }
    )


@pytest.mark.slow
def test_torchrun_with_two_processes_equals_one_with_twice_the_batch(tmp_path: Path):
    source = {"path": "storyworld://small?seed=0", "limit": 12}
    prepared = {
        "out": tmp_path / "data",
        "sources": [source],
        "tokenizer": {"vocab_size": 400},
        "max_length": 192,
    }
    data = prepare(PrepareConfig.model_validate(prepared), Console(quiet=True))
    one, two = config(data, tmp_path / "one", 4), config(data, tmp_path / "two", 2)
    pretrain(one, quiet=True)

    file = tmp_path / "two.yaml"
    file.write_text(to_yaml(two), encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run([*launch, "-m", "anchored", "pretrain", str(file)], check=True, timeout=240)

    assert_close(weights(two.out), weights(one.out), atol=1e-5, rtol=0)
    for ours, theirs in zip(read_metrics(two.out), read_metrics(one.out), strict=True):
        for name in ("step", "tokens", "supervised_share"):
            assert ours[name] == theirs[name]
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert ours["loss_by_kind"] == pytest.approx(theirs["loss_by_kind"], abs=1e-5)
        for name in (
            "semantic_entropy",
            "dissimilarity",
            "kept",
            "kept_high",
        ):  # half the samples each
            assert ours.get(f"collapse/{name}") == theirs.get(f"collapse/{name}")
    assert "collapse/kept" in read_metrics(two.out)[1]


def weights(out: Path) -> dict[str, Any]:
    return load_file(out / "model" / "model.safetensors")
