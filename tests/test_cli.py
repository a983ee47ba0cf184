"""The command line: what each command calls, its exit status, and its one line of error."""

from __future__ import annotations

import argparse
import errno
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from anchored import __version__, cli, config
from anchored.cli import corpus, evaluation, training
from anchored.cli.options import (
    Option,
    add_options,
    as_overrides,
    fields_given,
    names_in_errors,
    nested,
)
from anchored.config import Config
from anchored.errors import DataError

COMMANDS = (
    "demo",
    "experiment",
    "schema",
    "annotate",
    "distil",
    "prepare",
    "pretrain",
    "sft",
    "sample",
    "score",
    "capability",
    "inspect",
)
HEAVY = {"torch", "transformers", "datasets", "sklearn", "numpy", "pydantic", "yaml", "rich"}


class Called:
    """Stands in for a stage: keeps what it was called with, returns or raises what it is told."""

    def __init__(self, result: Any = None) -> None:
        self.result = result

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.args, self.kwargs = args, kwargs
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


@pytest.fixture
def stage(monkeypatch):
    def stage(name: str, **members: Any) -> None:
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**members))

    return stage


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err[:-1]


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\nfrom anchored.cli import main\n"
        "try: main(sys.argv[1:])\n"
        f"except SystemExit as end: print(end.code, {HEAVY!r} & set(sys.modules), file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert run.stderr == "0 set()\n"
    assert run.stdout.startswith("usage: anchored")


def test_every_command_has_its_handler():
    for name in COMMANDS:
        more = {
            "demo": [],
            "experiment": [__file__, "--out", "x"],
            "capability": ["m", "--task", "t", "--out", "x"],
            "schema": ["suggest", __file__],
            "distil": [__file__, "--out", "x"],
        }
        options = cli.parse([name, *more.get(name, [__file__])])
        action = "_suggest" if name == "schema" else ""
        assert options.handler.__name__ == f"_run_{name}{action}"


def test_version_names_what_results_depend_on(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    out = capsys.readouterr().out
    assert out.startswith(f"anchored {__version__}")
    for name in ("python", "torch", "transformers", "datasets"):
        assert f", {name} " in out


def test_the_module_runs_like_the_command():
    command = [sys.executable, "-m", "anchored", "prepare", "nowhere.yaml"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (2, "")
    message = "argument CONFIG: 'nowhere.yaml': no such file (see anchored prepare --help)"
    assert run.stderr == f"anchored prepare: error: {message}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "anchored: error: the following arguments are required: COMMAND"),
        (
            ["inspect"],
            "anchored inspect: error: the following arguments are required: DATASET|MODEL",
        ),
        (["sample", "m", "-n", "0"], "argument -n: '0' is not a whole number above 0"),
        (["sample", "m", "--pin", "mood"], "argument --pin: 'mood': write key=value"),
        (["demo", "--regime", "wide"], "argument --regime: invalid choice: 'wide'"),
        (["demo", "--sed", "1"], "anchored: error: unrecognized arguments: --sed"),
        (["inspect", "a", "b"], "anchored: error: unrecognized arguments: b"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    line = error_line(capsys)
    assert message in line
    assert line.endswith("--help)")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DataError("a.jsonl: line 3:\n  not JSON"), "a.jsonl: line 3: not JSON"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/x"),
            "out/x: No space left on device",
        ),
        (OSError("disk on fire"), "disk on fire"),
    ],
)
def test_the_users_faults_are_one_line_and_status_2(stage, capsys, error, message):
    stage("anchored.inspection.inspect", Shown=SimpleNamespace, run=Called(error))
    assert cli.main(["inspect", "x"]) == 2
    assert error_line(capsys) == f"anchored: error: {message}"


def test_an_interrupt_is_130_and_a_bug_keeps_its_traceback(stage, capsys):
    stage("anchored.inspection.inspect", Shown=SimpleNamespace, run=Called(KeyboardInterrupt()))
    assert cli.main(["inspect", "x"]) == 130
    assert error_line(capsys) == "anchored: interrupted"
    stage("anchored.inspection.inspect", Shown=SimpleNamespace, run=Called(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["inspect", "x"])


def test_a_reader_that_leaves_early_is_no_fault():
    code = (
        "import sys, types\nfrom anchored.cli import main\n"
        "stub = types.SimpleNamespace(run=lambda *a, **k: print('x' * 10**7), Shown=dict)\n"
        "sys.modules['anchored.inspection.inspect'] = stub\nsys.exit(main(['inspect', 'x']))"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdout.close()
        assert run.stderr.read() == b""
    assert run.returncode == 0


class DemoConfig(Config):
    seeds: tuple[int, ...]
    regime: str
    strength: str
    a: dict[str, int]
    c: int


def test_demo_passes_its_dials_and_prints_results_on_request(stage, capsys):
    run = Called({"seconds": 1.5})
    stage("anchored.experiments", demo=SimpleNamespace(run=run, DemoConfig=DemoConfig))
    arguments = ["demo", "a.b=1", "--seeds", "3", "--regime", "narrow", "--json", "c=2"]
    assert cli.main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == {"seconds": 1.5}
    config = DemoConfig(seeds=(0, 1, 2), regime="narrow", strength="light", a={"b": 1}, c=2)
    assert run.args == (config, Path("runs/demo"))


def test_experiment_is_chosen_by_its_configuration(tmp_path, capsys):
    config = tmp_path / "study.yaml"
    config.write_text("experiment: haiku\n")
    assert cli.main(["experiment", str(config), "--out", str(tmp_path / "out")]) == 2
    assert error_line(capsys) == (
        f"anchored: error: {config}: experiment: 'haiku' is not one of storyworld, real-text, dpo"
    )
    assert not (tmp_path / "out").exists()


def test_experiment_says_which_field_of_its_configuration_is_wrong(tmp_path, capsys):
    config = tmp_path / "study.yaml"
    config.write_text("experiment: storyworld\nseedz: [0]\n")
    assert cli.main(["experiment", str(config), "--out", str(tmp_path / "out")]) == 2
    assert "seedz" in error_line(capsys)


class AnnotateConfig(Config):
    source: str
    out: Path
    annotator: str = "offline"
    schema_name: str = "general"


def test_annotate_takes_rows_or_a_configuration(stage, tmp_path, capsys):
    run = Called({"chunks": 2})
    stage("anchored.corpus.offline_run", AnnotateConfig=AnnotateConfig, run=run)
    assert cli.main(["annotate", "a.jsonl", "--out", "o: 1", "--schema", "code", "--json"]) == 0
    assert run.args == (AnnotateConfig(source="a.jsonl", out=Path("o: 1"), schema_name="code"),)
    assert json.loads(capsys.readouterr().out) == {"chunks": 2}
    path = tmp_path / "run.yaml"
    path.write_text("source: b.jsonl\nout: o\nschema_name: math\n")
    assert cli.main(["annotate", str(path), "--out", "p", "annotator=none"]) == 0
    expected = {"source": "b.jsonl", "out": "p", "annotator": "none", "schema_name": "math"}
    assert run.args == (AnnotateConfig.model_validate(expected),)
    assert cli.main(["annotate", "a.jsonl"]) == 2
    assert error_line(capsys) == "anchored: error: command line: --out: missing; give it"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "annotate a.jsonl --out o --annotator endpoint --url localhost --model m",
            "--url: 'localhost': not an address",
        ),
        ("annotate a.jsonl --out o --annotator endpoint --model m", "--url: missing; give it"),
        ("annotate a.jsonl --out o workers=0", "workers: 0: input should be greater"),
        (
            "evaluate m --benchmark stories --out o --temperature nan",
            "--temperature: ['NaN']: give finite numbers",
        ),
        ("evaluate m --benchmark stories --out o --threshold 2", "--threshold: 2"),
        ("evaluate m --out o", "--benchmark: missing; give it"),
        ("score {file} --vendi-q -1", "--vendi-q: -1.0: input should be greater"),
        ("score {file} --judge-url http://h --judge-model m --timeout 0", "--timeout: 0.0"),
        ("sample m --prompt p --temperature inf", "--temperature: inf: input should be a finite"),
        ("sample m --prompt p --annotation-min-p 1", "--annotation-min-p: 1.0"),
    ],
)
def test_an_error_names_the_flag_where_one_was_given(
    arguments: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "texts.jsonl"
    file.write_text('{"prompt": "p", "generations": ["a", "b"]}\n')
    assert cli.main(arguments.format(file=file).split()) == 2
    assert error_line(capsys).startswith(f"anchored: error: command line: {message}")
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_field_of_a_file_is_named_as_it_stands_there(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("source: b.jsonl\nout: o\nendpoint: {url: localhost}\nannotator: endpoint\n")
    assert cli.main(["annotate", str(path), "--model", "m"]) == 2
    assert error_line(capsys).startswith(f"anchored: error: {path}: endpoint.url: 'localhost': no")


@pytest.mark.parametrize(
    "command", ["sample m", "distil a.jsonl --out o", "capability m --task t --out o"]
)
def test_a_seed_is_a_whole_number(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([*command.split(), "--seed", "-1"])
    assert end.value.code == 2
    assert "--seed: '-1' is not a whole number" in error_line(capsys)


class RunConfig(Config):
    steps: int


def test_prepare_prints_its_manifest_on_request(stage, tmp_path, capsys):
    (tmp_path / "manifest.json").write_text('{"rows": 3}')
    prepare = Called(tmp_path)
    members = {"PrepareConfig": RunConfig, "prepare": prepare, "MANIFEST": "manifest.json"}
    stage("anchored.data.prepare", **members)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"steps": 1}))
    assert cli.main(["prepare", str(path), "steps=2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"rows": 3}
    assert prepare.args[0] == RunConfig(steps=2)
    assert prepare.args[1].stderr is True


@pytest.mark.parametrize("name", ["pretrain", "sft"])
def test_training_prints_where_the_model_is(stage, tmp_path, capsys, name):
    train = Called(tmp_path / "model")
    record = Called({"objective": "anchored"})
    stage("anchored.train.config", PretrainConfig=RunConfig, SFTConfig=RunConfig)
    stage("anchored.workflow", **{name: train})
    stage("anchored.models.record", read_record=record)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"steps": 1}))
    assert cli.main([name, str(path), "steps=5"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'model'}\n"
    assert train.args == (RunConfig(steps=5),)
    assert cli.main([name, str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "model": str(tmp_path / "model"),
        "objective": "anchored",
    }


def test_sample_turns_flags_into_two_samplings(monkeypatch):
    stage = pytest.importorskip("anchored.sampling.run")
    run = Called()
    monkeypatch.setattr(stage, "run", run)
    flags = ["--temperature", "0.7", "--annotation-min-p", "0.1", "--max-new-tokens", "9"]
    flags += ["--dtype", "bfloat16", "--device-map", "auto"]
    pins = ["--pin", "mood=a=b", "--pin", "mood=c", "--prompt", "x", "--prompt", "y"]
    assert cli.main(["sample", "m", "-n", "4", *flags, *pins, "--no-annotation"]) == 0
    assert run.args == ("m",)
    config = run.kwargs.pop("config")
    assert run.kwargs == {
        "prompts": ["x", "y"],
        "n": 4,
        "pins": [("mood", "a=b"), ("mood", "c")],
        "prefill": "",
        "annotated": False,
        "out": None,
        "as_json": False,
        "dtype": "bfloat16",
        "device_map": "auto",
    }
    assert (config.response.temperature, config.annotation.temperature) == (0.7, 1.0)
    assert (config.response.min_p, config.annotation.min_p) == (0.0, 0.1)
    assert (config.max_response_tokens, config.seed) == (9, 0)


class CapabilityConfig(Config):
    models: tuple[str, ...]
    tasks: tuple[str, ...]
    pins: tuple[tuple[str, str], ...] = ()
    annotation: str = "sampled"
    seed: int


def test_capability_passes_models_and_tasks_and_leaves_defaults_alone(stage, capsys):
    run, report = Called({"tasks": 2}), Called()
    stage("anchored.benchmark.capability", CapabilityConfig=CapabilityConfig, run=run)
    stage("anchored.report.capability_table", report_capability=report)
    tasks = ["--task", "x", "--task", "y"]
    assert cli.main(["capability", "a", "b", *tasks, "--out", "o", "--json"]) == 0
    expected = CapabilityConfig(models=("a", "b"), tasks=("x", "y"), seed=0)
    assert run.args[:2] == (expected, Path("o"))
    assert report.args[:2] == ({"tasks": 2}, Path("o"))
    assert json.loads(capsys.readouterr().out) == {"tasks": 2}
    pins = ["--annotation", "given", "--pin", "mood=calm"]
    assert cli.main(["capability", "a", "--task", "x", *pins, "--out", "o"]) == 0
    assert (run.args[0].annotation, run.args[0].pins) == ("given", (("mood", "calm"),))


def test_inspect_passes_what_to_show(stage):
    run = Called()
    stage("anchored.inspection.inspect", Shown=SimpleNamespace, run=run)
    assert cli.main(["inspect", "x", "-n", "7", "--row", "2", "--html", "a.html", "--json"]) == 0
    assert run.args == (Path("x"), SimpleNamespace(first=2, count=7, split="train"))
    assert run.kwargs == {"html": Path("a.html"), "as_json": True}


def test_a_seed_of_score_is_a_whole_number(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text("{}\n")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["score", str(path), "--seed", "-1"])
    assert "argument --seed: '-1' is not a whole number" in error_line(capsys)


def test_an_option_is_given_when_its_value_is_zero_and_not_when_it_is_absent():
    table = (
        Option("--price-in", "", field="endpoint.price_in", type=float),
        Option("--pin", "", field="pins", repeatable=True, default=[]),
        Option("--pairwise", "", field="compare", value=lambda _: "pairwise", switch=True),
        Option("--out", ""),
    )
    parser = argparse.ArgumentParser()
    add_options(parser, table)
    assert fields_given(table, parser.parse_args(["--out", "o"])) == {}
    parsed = parser.parse_args(["--price-in", "0", "--pin", "a", "--pin", "b", "--pairwise"])
    found = fields_given(table, parsed)
    assert nested(found) == {
        "endpoint": {"price_in": 0.0},
        "pins": ["a", "b"],
        "compare": "pairwise",
    }
    assert as_overrides(found)[:2] == ["endpoint.price_in=0.0", 'pins=["a", "b"]']
    assert names_in_errors(table, under="x.")["x.endpoint.price_in"] == "--price-in"


def test_every_option_sets_a_field_that_its_configuration_has():
    from anchored.benchmark.capability import CapabilityConfig
    from anchored.benchmark.settings import EvaluateConfig
    from anchored.corpus.choose import ChooseConfig
    from anchored.corpus.distil import DistilConfig
    from anchored.corpus.endpoint_run import EndpointAnnotateConfig
    from anchored.corpus.offline_run import AnnotateConfig
    from anchored.experiments.demo import DemoConfig
    from anchored.sampling.engine import SampleConfig
    from anchored.scoring.score import ScoreConfig
    from anchored.tags.quality import TagsConfig
    from anchored.tags.suggest import SuggestConfig

    tables = [
        (training._DEMO, [DemoConfig]),
        (training._SAMPLE, [SampleConfig]),
        (corpus._SUGGEST, [SuggestConfig]),
        (corpus._ANNOTATE, [AnnotateConfig, EndpointAnnotateConfig]),
        (corpus._ANNOTATE_ENDPOINT, [EndpointAnnotateConfig]),
        (corpus._DISTIL, [DistilConfig, ChooseConfig]),
        (corpus._INSPECT, [TagsConfig]),
        (evaluation._READERS + evaluation._JUDGE + evaluation._SCORE, [ScoreConfig]),
        (evaluation._EVALUATE, [EvaluateConfig]),
        (evaluation._CAPABILITY, [CapabilityConfig]),
    ]
    unknown = [
        (classes[0].__name__, option.name)
        for table, classes in tables
        for option in table
        if option.field
        and not any(
            option.field.rpartition(".")[2]
            in config._fields_at(cls, (*option.field.split(".")[:-1],))
            for cls in classes
        )
    ]
    assert unknown == []
