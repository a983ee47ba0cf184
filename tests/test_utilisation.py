"""Utilisation: what the peak is measured on, and what `metrics.jsonl` says against it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from anchored.models.build import olmo2_config
from anchored.step.losses import LossByKind
from anchored.train import metrics_log
from anchored.train.metrics_log import (
    Monitor,
    measure_matmul_peak,
    read_metrics,
    training_flops,
)


@pytest.mark.parametrize(("kind", "size", "at_once"), [("cpu", 1024, 1), ("meta", 8192, 10)])
def test_an_accelerator_is_timed_over_many_large_products(
    monkeypatch: pytest.MonkeyPatch, kind: str, size: int, at_once: int
):
    calls: list[Any] = []
    clock = iter(range(100))
    monkeypatch.setattr(torch, "mm", lambda a, b: calls.append(a.shape))
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: calls.append("wait"))
    monkeypatch.setattr(metrics_log, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    found = measure_matmul_peak(torch.device(kind), torch.float32)  # each time takes a second
    wait = [] if kind == "cpu" else ["wait"]
    assert calls == 6 * [*wait, *at_once * [(size, size)], *wait]
    assert found == at_once * 2 * size**3


def test_metrics_state_the_parameters_flops_against_the_peak_of_one_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(olmo2_config("0.5m", 1000, eos_token_id=0))
    losses, clock = LossByKind(), iter((0.0, 10.0))
    monkeypatch.setattr(losses, "take", lambda: ({}, 50, 200))
    monkeypatch.setattr(metrics_log, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    arguments = SimpleNamespace(world_size=4, fp16=False)
    state = SimpleNamespace(is_world_process_zero=True, global_step=1)
    watch = Monitor(tmp_path, model, losses, peak=8e12)
    watch.on_log(arguments, state, None, {"loss": 1.0, "epoch": 0.1, "learning_rate": 1e-3})
    (row,) = read_metrics(tmp_path)
    assert row["peak_tflops"] == 2.0
    assert row["mfu"] * 4 * row["peak_tflops"] * 1e12 == training_flops(model, 200, 50) / 10
