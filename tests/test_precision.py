"""In which precision a model is sampled: that of its training, or what the caller says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from anchored import cli
from anchored.files import read_jsonl, write_json
from anchored.models import precision
from anchored.models.precision import sampling_dtype
from anchored.models.record import read_record
from anchored.sampling.sampler import load
from test_sample_run import build


@pytest.fixture
def model(tmp_path: Path) -> str:
    return build(tmp_path)


@pytest.fixture(autouse=True)
def on_a_cpu_with_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "bfloat16_is_native", lambda: True)


def trained_with(model: str, /, **config: Any) -> str:
    write_json(Path(model) / "anchored.json", {**read_record(model), "config": config})
    return model


def saved_in(model: str, dtype: str) -> str:
    (Path(model) / "anchored.json").unlink()
    path = Path(model) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": dtype}))
    return model


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({"model": {"dtype": "float32"}, "trainer": {}}, torch.float32),
        ({"model": {"dtype": "bfloat16"}, "trainer": {}}, torch.bfloat16),
        ({"model": {"dtype": "float32"}, "trainer": {"bf16": True}}, torch.bfloat16),
        ({"model": {"dtype": "float32"}, "trainer": {"bf16": False}}, torch.float32),
        ({"data": {}}, torch.float32),  # another trainer's record: the saved precision
        ({"data": {}, "trainer": {"bf16": True}}, torch.bfloat16),
    ],
)
def test_a_model_of_ours_is_sampled_in_the_precision_of_its_training(
    model: str, config: dict[str, Any], dtype: torch.dtype
):
    assert sampling_dtype(trained_with(model, **config)) is dtype


def test_a_model_of_others_is_sampled_in_the_precision_it_was_saved_in(model: str):
    assert sampling_dtype(saved_in(model, "bfloat16")) is torch.bfloat16
    assert sampling_dtype(saved_in(build(Path(model).parent / "b"), "float32")) is torch.float32


def test_a_cpu_that_would_emulate_a_precision_takes_float32(
    model: str, monkeypatch: pytest.MonkeyPatch
):
    half = {"model": {"dtype": "float16"}}
    assert sampling_dtype(trained_with(model, **half)) is torch.float32
    trained_with(model, trainer={"bf16": True})
    monkeypatch.setattr(precision, "bfloat16_is_native", lambda: False)
    assert sampling_dtype(model) is torch.float32
    assert sampling_dtype(model, "bfloat16") is torch.bfloat16  # told so


def test_a_gpu_takes_every_precision_and_a_device_map_says_where_the_model_goes(
    model: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    trained_with(model, trainer={"fp16": True})
    assert sampling_dtype(model, device_map="auto") is torch.float16
    assert sampling_dtype(model, device_map="cpu") is torch.float32


def test_the_model_computes_in_it_and_says_so(model: str):
    trained_with(model, trainer={"bf16": True})
    source = load(model)
    assert (source.model.dtype, source.dtype) == (torch.bfloat16, "bfloat16")
    source = load(model, "float32", device_map="cpu")
    assert (source.model.dtype, source.dtype) == (torch.float32, "float32")
    assert str(source.model.device) == "cpu"


def test_evaluate_samples_in_the_precision_it_is_told_and_reports_it(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("sacrebleu")
    prompts = tmp_path / "mine.txt"
    prompts.write_text("Rain\nSun\n")
    words = ["evaluate", f"a={model}", "--benchmark", str(prompts), "--out", str(tmp_path / "out")]
    few = ["--samples", "2", "--max-new-tokens", "2", "--attributes", "none"]
    assert cli.main([*words, *few, "--dtype", "bfloat16"]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["models"]["a"]["dtype"] == "bfloat16"
    rows = read_jsonl(tmp_path / "out" / "samples" / "a" / "mine" / "T1-seed0.jsonl")
    assert {row["dtype"] for _, row in rows} == {"bfloat16"}
    assert "Sampled in: a bfloat16\n" in capsys.readouterr().out
    assert cli.main([*words, *few, "--dtype", "float32"]) == 2
    assert "holds a run with dtype = 'bfloat16'" in capsys.readouterr().err
