"""The experiment on real text: its corpus, its configurations, its figures."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

from anchored import experiments
from anchored.config import Config, load_config
from anchored.corpus.offline_run import AnnotateConfig
from anchored.data.prepare import PrepareConfig
from anchored.errors import ConfigError
from anchored.experiments.demo_config import BASES, TREATMENTS
from anchored.train.config import PretrainConfig, SFTConfig
from studies.real_text import OPENING, RealTextConfig, _load, _request, plan
from studies.tales import REQUESTS, TAUGHT_STYLE, CorpusConfig, _opening, build_corpus

CONFIGS = Path(__file__).parents[1] / "configs" / "stories"
CLASSES: dict[str, type[Config]] = {
    "annotate": AnnotateConfig,
    "annotate-sft": AnnotateConfig,
    "prepare-annotated": PrepareConfig,
    "prepare-plain": PrepareConfig,
    "prepare-reference": PrepareConfig,
    "pretrain-annotated": PretrainConfig,
    "pretrain-plain": PretrainConfig,
    "pretrain-reference": PretrainConfig,
    "sft": SFTConfig,
    "experiment": RealTextConfig,
    "quick": RealTextConfig,
}


def experiment(name: str) -> RealTextConfig:
    stages = f"stages={json.dumps(str(CONFIGS))}"
    return load_config(RealTextConfig, CONFIGS / f"{name}.yaml", [stages])


def test_every_configuration_of_the_folder_loads_as_its_stage() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*CLASSES, "schema"}
    for name, cls in CLASSES.items():
        load_config(cls, CONFIGS / f"{name}.yaml")


@pytest.mark.parametrize("name", ["experiment", "quick"])
def test_overrides_of_the_experiments_fit_their_stages(name: str) -> None:
    config = experiment(name)
    assert set(config.overrides) <= set(CLASSES)
    for stage in config.overrides:
        _load(config, CLASSES[stage], stage)


def test_the_plan_has_each_stage_once_and_every_need_in_it(tmp_path: Path) -> None:
    config = experiment("experiment")
    stages = plan(config, tmp_path)
    names = [stage.name for stage in stages]
    assert len(names) == len(set(names))
    assert all(set(stage.needs) <= set(names) for stage in stages)
    seeds = len(config.seeds)
    assert len(names) == 6 + len(BASES) + 1 + seeds * (len(TREATMENTS) + 7)


def test_prompts_to_measure_with_are_none_of_those_trained_on() -> None:
    asked = {*experiment("experiment").prompts, *experiment("quick").prompts}
    styles = (TAUGHT_STYLE, "bedtime story", "campfire story", "short story", "slice-of-life story")
    assert not asked & {request.format(style) for request in REQUESTS for style in styles}


def test_only_a_base_is_prefilled_with_the_opening() -> None:
    assert _request(OPENING, is_base=True, annotated=True).prefill == OPENING
    assert _request(OPENING, is_base=True, annotated=True).messages == ()
    assert _request(OPENING, is_base=False, annotated=True).prefill == ""
    assert _request(OPENING, is_base=False, annotated=True).messages[0].content == OPENING


def test_an_opening_is_whole_paragraphs_and_nothing_is_lost() -> None:
    text = "One.\n\nTwo is here.\n\nThree is longer than the rest."
    assert _opening(text, 22) == ("One.\n\nTwo is here.", "Three is longer than the rest.")
    assert _opening("A sentence. Another one.", 14) == ("A sentence.", "Another one.")


def test_the_corpus_keeps_the_tales_that_sft_teaches_out_of_pretraining(
    shared_data: Path, tmp_path: Path
) -> None:
    config = CorpusConfig(story_chars=200_000, book_chars=13_000, mixed_chars=50_000, held_out=30)
    build_corpus(config, shared_data, tmp_path / "corpus")
    rows = {
        path.stem: [json.loads(line) for line in path.open(encoding="utf-8")]
        for path in (tmp_path / "corpus").iterdir()
    }
    assert [len(rows[name]) for name in ("held_out", "sft")] == [30, 2696]
    assert not any("generated-child" in row["id"] for row in rows["documents"])
    assert sum(len(row["text"]) for row in rows["documents"]) > 263_000
    assert max(len(row["response"]) for row in rows["sft"]) <= 400
    assert not {r["id"] for r in rows["sft"]} & {r["id"] for r in rows["held_out"]}


@pytest.mark.parametrize(
    ("name", "config"), [("real-text", "stories/experiment"), ("dpo", "storyworld/dpo")]
)
def test_a_study_of_the_repository_is_found_in_its_checkout_and_nowhere_else(
    name: str, config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = CONFIGS.parent / f"{config}.yaml"
    module = import_module(experiments.STUDIES[name])
    ran = lambda config, out: {"study": config.experiment, "out": out}  # noqa: E731
    monkeypatch.setattr(module, "STUDY", (module.STUDY[0], ran))
    assert experiments.run(path, tmp_path) == {"study": name, "out": tmp_path}
    monkeypatch.setattr(experiments, "CHECKOUT", tmp_path)
    with pytest.raises(ConfigError) as refused:
        experiments.run(path, tmp_path)
    assert str(refused.value) == (
        f"{path}: experiment: {name!r} is not part of the installed package; run it from a "
        "checkout of the repository, installed with pip install -e '.[all]'"
    )


def test_a_study_that_is_nowhere_is_refused_with_those_there_are(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("experiment: tales\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"'tales' is not one of storyworld, real-text, dpo"):
        experiments.run(path, tmp_path / "out")
