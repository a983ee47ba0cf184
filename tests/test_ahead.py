"""The data of a run can be prepared before it, by the file of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anchored.cli import main
from anchored.config import to_yaml
from anchored.train import run
from anchored.train.config import PretrainConfig, SFTConfig

DATA = {
    "sources": [{"path": "storyworld://small?seed=0", "limit": 30}],
    "tokenizer": {"vocab_size": 500},
    "max_length": 128,
}


def written(folder: Path, stage: Any = PretrainConfig, **fields: Any) -> str:
    settings = {"max_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True}
    common = {"out": folder / "run", "data": DATA, "model": {"preset": "0.5m"}}
    config = stage.model_validate({**common, "trainer": settings, **fields})
    file = folder / "run.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    return str(file)


def test_prepare_takes_the_file_of_a_run_and_the_run_takes_what_it_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = written(tmp_path)
    assert main(["prepare", file]) == 0
    assert (tmp_path / "run" / "data" / "manifest.json").is_file()
    assert main(["prepare", file]) == 0, "once more does nothing"

    def again(*_: Any) -> None:
        raise AssertionError("prepared twice")

    monkeypatch.setattr(run, "prepare", again)
    # How many rows each device takes is not known yet when the data are prepared.
    assert main(["pretrain", file, "trainer.gradient_accumulation_steps=2"]) == 0
    assert (tmp_path / "run" / "model" / "config.json").is_file()


@pytest.mark.parametrize(
    ("stage", "fields", "says"),
    [
        (PretrainConfig, {"data": "some/data"}, "data: some/data: already a prepared folder"),
        (SFTConfig, {"objective": "anchored-replay"}, "objective: anchored-replay samples from"),
        (SFTConfig, {}, "model.init: missing; SFT starts from"),
    ],
)
def test_prepare_refuses_a_run_without_data_of_its_own_to_prepare(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    stage: Any,
    fields: dict[str, Any],
    says: str,
):
    assert main(["prepare", written(tmp_path, stage, **fields)]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["prepare", "plan", "sft"])
def test_an_unknown_objective_is_one_line_wherever_the_file_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
):
    file = written(tmp_path, SFTConfig)
    assert main([command, file, "objective=gme"]) == 2
    said = capsys.readouterr().err
    assert f"{file}: objective: 'gme': use one of plain, annotated" in said


@pytest.mark.parametrize("stage", [PretrainConfig, SFTConfig])
def test_data_prepared_ahead_are_those_that_the_run_would_prepare(tmp_path: Path, stage: Any):
    """Neither names a tokenizer: it is that of what they start from."""
    assert main(["pretrain", written(tmp_path)]) == 0
    data = {name: DATA[name] for name in ("sources", "max_length")}
    fields = {"data": data, "model": {"init": str(tmp_path / "run" / "model")}}
    manifests = []
    for out in ("ahead", "by_the_run"):
        file = written(tmp_path, stage, out=tmp_path / out, **fields)
        if out == "ahead":
            assert main(["prepare", file]) == 0
        else:
            assert main(["sft" if stage is SFTConfig else "pretrain", file]) == 0
        manifest = json.loads((tmp_path / out / "data" / "manifest.json").read_text("utf-8"))
        assert manifest["config"].pop("out") == str(tmp_path / out / "data")
        manifests.append(manifest)
    assert manifests[0] == manifests[1]
    assert manifests[0]["objective"] == ("anchored" if stage is SFTConfig else "annotated")
