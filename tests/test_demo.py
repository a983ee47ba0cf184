"""The demo end to end, as small as it gets: every stage real, in real worker processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anchored import cli, experiments
from anchored.config import load_config, read_yaml
from anchored.errors import ConfigError
from anchored.experiments import demo, demo_config

TINY = [
    "pretrain.tokens=150000",
    "light.examples=24",
    "light.epochs=1",
    "samples_per_prompt=2",
    "max_response_tokens=24",
    "replay.max_annotation_tokens=64",
]
FIGURES = {
    "semantic_entropy",
    "annotation_entropy",
    "adherence",
    "adoption",
    "adoption_far",
    "well_formed",
    "consistent",
    "answer_accuracy",
    "dissimilarity",
    "samples",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("demo") / "run"
    study = out.parent / "study.yaml"
    study.write_text("experiment: storyworld\n", encoding="utf-8")
    return out, experiments.run(study, out, TINY)


def test_results_follow_the_contract(finished: tuple[Path, dict[str, Any]]) -> None:
    out, results = finished
    assert json.loads((out / "results.json").read_text(encoding="utf-8")) == results
    assert list(results["models"]) == [*demo_config.BASES, *demo_config.TREATMENTS]
    for model in results["models"].values():
        assert set(model) >= FIGURES
        assert len(model["samples"]) == model["n"] == 24
    assert set(results["comparisons"]) == {
        "annotated_base",
        "anchored",
        "anchored_replay",
        "tagged",
    }
    for comparison in results["comparisons"].values():
        assert set(comparison["gap_closed"]) >= {"mean", "low", "high"}
        assert set(comparison["collapse_reduction"]) >= {"mean", "low", "high"}
    assert results["seconds"] > 0
    assert results["config"]["pretrain"]["tokens"] == 150_000
    assert results["versions"]["torch"]


def test_report_and_table_are_written(finished: tuple[Path, dict[str, Any]]) -> None:
    out, _ = finished
    assert "<table" in (out / "report.html").read_text(encoding="utf-8")
    assert "gap_closed" in (out / "table.md").read_text(encoding="utf-8")


def test_json_on_request_is_all_of_stdout(
    finished: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, results = finished
    assert cli.main(["demo", "--out", str(out), "--json", *TINY]) == 0
    assert json.loads(capsys.readouterr().out)["models"] == results["models"]


def test_a_second_run_trains_nothing(finished: tuple[Path, dict[str, Any]]) -> None:
    out, results = finished
    models = sorted(out.rglob("model.safetensors"))
    before = [path.stat().st_mtime_ns for path in models]
    again = demo.run(load_config(demo_config.DemoConfig, None, TINY), out)
    assert [path.stat().st_mtime_ns for path in models] == before
    assert again["models"] == results["models"]
    assert again["comparisons"] == results["comparisons"]


def test_the_folder_of_another_run_is_refused(finished: tuple[Path, dict[str, Any]]) -> None:
    out, _ = finished
    with pytest.raises(ConfigError, match=r"holds a run with regime = 'broad'"):
        demo.run(load_config(demo_config.DemoConfig, None, [*TINY, "regime=narrow"]), out)


def test_all_treatments_see_the_same_examples_and_replay_adds_steps() -> None:
    config = load_config(
        demo_config.DemoConfig,
        None,
        ["light.examples=1200", "light.epochs=2", "light.batch_size=16", "replay.share=0.25"],
    )
    steps = {name: demo.sft_steps(config, name) for name in demo_config.TREATMENTS}
    assert steps == {"standard": 150, "anchored": 150, "anchored_replay": 200, "tagged": 150}


def test_the_studies_in_configs_load_and_plan_every_stage_they_need(tmp_path: Path) -> None:
    for path in (Path(__file__).parents[1] / "configs" / "storyworld").glob("*.yaml"):
        if read_yaml(path)["experiment"] != "storyworld":
            continue
        config = load_config(demo_config.DemoConfig, path)
        stages = demo.plan(config, tmp_path)
        names = {stage.name for stage in stages}
        assert len(names) == len(stages)
        assert all(names.issuperset(stage.needs) for stage in stages)
        trained, sampled = {*config.pretrained, *config.treatments}, config.models
        assert len(names) == 2 + len(config.seeds) * (len(trained) + len(sampled))


@pytest.mark.parametrize("names", [["anchored"], ["standard", "base"]])
def test_treatments_have_a_standard_and_no_name_of_a_base(names: list[str]) -> None:
    treatments = json.dumps({name: {"objective": "standard", "base": "base"} for name in names})
    with pytest.raises(ConfigError, match="`standard` is required, and no treatment may have"):
        load_config(demo_config.DemoConfig, None, [f"treatments={treatments}"])


def test_replayed_documents_come_on_top_of_the_examples() -> None:
    treatments = {
        "standard": {"base": "base", "objective": "standard"},
        "more": {"objective": "anchored-replay", "documents": 0.5, "replay": {"share": 0.5}},
    }
    given = [f"treatments={json.dumps(treatments)}", "light.examples=100", "light.epochs=1"]
    config = load_config(demo_config.DemoConfig, None, [*given, "light.batch_size=1"])
    assert demo.sft_steps(config, "standard") == 100
    assert demo.sft_steps(config, "more") == 300  # 100 examples, 100 annotations, 100 documents


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("preset=7b", "preset '7b' is not one of"),
        ("max_length=8", "max_length"),
        ("light.batch_size=0", "light.batch_size"),
    ],
)
def test_a_wrong_value_is_named_before_any_work(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(demo_config.DemoConfig, None, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('pretrained={"base": {"objective": "plain"}}', "`base` and `annotated_base` are required"),
        ("pretrained.base.init=annotated_base", r"base\.init: 'annotated_base' is not one of the"),
        ("treatments.standard.base=baes", r"treatments\.standard\.base: 'baes' is not one of base"),
    ],
)
def test_a_base_that_is_not_there_is_named(override: str, message: str) -> None:
    bases = {name: base.model_dump() for name, base in demo_config.BASES.items()}
    treatments = {name: one.model_dump() for name, one in demo_config.TREATMENTS.items()}
    given = [f"pretrained={json.dumps(bases)}", f"treatments={json.dumps(treatments)}"]
    with pytest.raises(ConfigError, match=message):
        load_config(demo_config.DemoConfig, None, [*given, override])
