"""What `import anchored` offers: lazily, documented by examples that run, and not shadowed."""

from __future__ import annotations

import doctest
import json
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import anchored
from anchored.annotation import Annotation
from anchored.errors import ConfigError, DataError
from anchored.sampling.engine import Sample
from anchored.sampling.run import run
from conftest import ROOT, foreign
from test_sample_run import SHORT, build

pytest.importorskip("vaderSentiment")
pytest.importorskip("sacrebleu")

HEAVY = {"torch", "transformers", "datasets", "numpy", "pydantic", "rich"}
CHAT = [{"role": "user", "content": "Tell me"}, {"role": "assistant", "content": "sea"}]
TREES = {"Name a tree.": ["An oak.", "The elm!"], "And a bird?": ["A wren.", "A wren."]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build(tmp_path_factory.mktemp("model"))


@pytest.fixture
def loaded(model: str) -> anchored.Model:
    return anchored.load(model)


@pytest.mark.parametrize("name", anchored.__all__)
def test_the_example_of_each_public_name_gives_what_it_shows(
    name: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "runs" / "my").mkdir(parents=True)
    (tmp_path / "runs" / "my" / "model").symlink_to(model)
    monkeypatch.chdir(tmp_path)
    found = doctest.DocTestFinder().find(getattr(anchored, name), name, globs={})
    examples = [test for test in found if test.examples]
    assert examples or name in ("Model", "Sample")  # shown by load and by Model.sample
    for test in examples:
        assert doctest.DocTestRunner().run(test).failed == 0


def test_importing_loads_nothing_heavy_and_names_are_there_to_complete():
    code = "import sys, json, anchored; print(json.dumps([dir(anchored), list(sys.modules)]))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    names, modules = json.loads(said.stdout)
    assert not HEAVY & set(modules)
    assert set(anchored.__all__) < set(names)
    with pytest.raises(AttributeError, match="'anchored' has no attribute 'smaple'"):
        anchored.smaple  # noqa: B018  # pyright: ignore


def test_no_module_has_a_public_name_which_importing_it_would_shadow():
    modules = {module.name for module in pkgutil.iter_modules(anchored.__path__)}
    assert not modules & set(anchored.__all__)


def test_the_names_that_type_checkers_see_are_those_that_are_loaded():
    body = Path(anchored.__file__).read_text(encoding="utf-8").partition("if TYPE_CHECK")[2]
    seen: dict[str, Any] = {}
    exec(
        body.partition(":\n")[2].partition("\n__version__")[0].replace("\n    ", "\n").strip(), seen
    )
    assert all(seen[name] is getattr(anchored, name) for name in anchored.__all__)


def test_samples_are_those_of_the_command(model: str, loaded: anchored.Model):
    config = SHORT.model_copy(update={"retries": 3})
    rows = run(model, prompts=["Tell me", "sea"], n=2, pins=[("mood", "calm")], config=config)
    options: dict[str, Any] = {"pin": {"mood": "calm"}, "max_new_tokens": 6}
    limited = {**options, "max_annotation_tokens": 4}
    found = loaded.sample(["Tell me", "sea"], n=2, **limited)
    assert [len(samples) for samples in found] == [2, 2]
    for row, sample in zip(rows, [*found[0], *found[1]], strict=True):
        assert isinstance(sample, Sample)
        assert (sample.response, sample.malformed) == (row["response"], row["malformed"])
    chat = [{"role": "user", "content": "Tell me"}]
    assert loaded.sample(chat, n=2, **limited)[0] == found[0]
    assert loaded.sample([chat, "sea"], n=2, **limited) == found
    assert anchored.sample(loaded, "Tell me", n=2, **limited) == found[:1]


def test_each_option_reaches_its_part_and_an_unknown_one_is_named(
    loaded: anchored.Model, monkeypatch: pytest.MonkeyPatch
):
    seen: list[Any] = []

    def asked(sampler: Any, requests: Any, config: Any) -> list[Sample]:
        seen.append((requests, config))
        return [Sample("x") for _ in requests]

    monkeypatch.setattr("anchored.api.with_progress", asked)
    loaded.sample(None, temperature=0.5, annotation_top_p=0.9, seed=3, prefill="Once")
    (request,), config = seen[0]
    assert (request.messages, request.annotated, request.prefill) == ((), True, "Once")
    assert (config.response.temperature, config.annotation.top_p, config.seed) == (0.5, 0.9, 3)
    assert config.annotation.temperature == 1.0
    loaded.sample("x", annotated=False)
    assert not seen[1][0][0].annotated
    with pytest.raises(ConfigError, match=r"^sample: temperature: "):
        loaded.sample("x", temperature=-1)
    with pytest.raises(ConfigError, match="option 'temprature' is unknown; use one of pin,"):
        loaded.sample("x", temprature=1)  # pyright: ignore
    with pytest.raises(ConfigError, match=r"^pin mood=sad: schema 'test' has mood = calm, very"):
        loaded.sample("x", pin={"mood": "sad"})
    with pytest.raises(DataError, match=r"^prompts\[1\]: messages: .* is not a conversat"):
        loaded.sample(["x", [{"role": "bot", "content": "y"}]])


def test_an_example_is_what_preparation_makes(loaded: anchored.Model, model: str):
    tokenizer = loaded.tokenizer
    example = anchored.build_example(CHAT, {"mood": "calm"}, tokenizer=tokenizer)
    control = tokenizer.control
    answer = [*tokenizer.encode("sea"), control.eos]
    key, value = tokenizer.encode("mood:"), tokenizer.encode(" calm")
    asked = [control.bos, control.user, *tokenizer.encode("Tell me"), control.assistant]
    assert example["input_ids"] == [*asked, control.open, *key, *value, control.close, *answer]
    assert example["labels"] == [-100] * (len(example["labels"]) - len(answer)) + answer
    assert set(example) == {"input_ids", "labels", "kinds"}
    own = [CHAT[0], {**CHAT[1], "annotation": [{"key": "mood", "value": "calm"}]}]
    assert anchored.build_example(own, tokenizer=model) == example
    assert anchored.build_example(own, tokenizer=tokenizer.hf) == example
    document = anchored.build_example("sea", Annotation(), tokenizer=model, objective="annotated")
    assert document["labels"] == [-100, control.open, control.close, *answer]
    with pytest.raises(DataError, match="annotation: missing, but objective 'anchored' puts one"):
        anchored.build_example(CHAT, tokenizer=model)
    with pytest.raises(ConfigError, match="objective 'sft': unknown; use one of plain, annotated"):
        anchored.build_example(CHAT, tokenizer=model, objective="sft")


def test_a_tokenizer_of_others_is_left_as_it_was():
    stock = foreign()
    size = len(stock)
    example = anchored.build_example(CHAT, {"mood": "calm"}, tokenizer=stock)
    assert len(stock) == size
    assert max(example["input_ids"]) == size + 1  # the closing token


def test_texts_in_any_form_score_the_same():
    rows = [{"prompt": prompt, "generations": texts} for prompt, texts in TREES.items()]
    flat = [{"prompt": row["prompt"], "response": t} for row in rows for t in row["generations"]]
    samples = {prompt: [Sample(text) for text in texts] for prompt, texts in TREES.items()}
    found = [
        anchored.score(given, attributes="none").results["models"]["texts"]
        for given in (TREES, rows, flat, samples)
    ]
    assert found[0]["distinct_k"] == 1.5
    assert [one.pop("truncation_rate") for one in found] == [None, None, None, 0.0]
    assert all(one == found[0] for one in found[1:])
    alone = anchored.score(["An oak.", "The elm!"], attributes="none").results
    assert (alone["prompts"], alone["k"], alone["models"]["texts"]["distinct_k"]) == (1, 2, 2.0)


def test_models_are_compared_and_shown():
    narrow = {prompt: [texts[0]] * 2 for prompt, texts in TREES.items()}
    found = anchored.score({"before": TREES, "<after>": narrow}, attributes="none")
    assert found.verdict.startswith("<after> gives 1.00 different answers in 2, before 1.50: ")
    assert "<after> minus before" in found.table
    assert found.by_prompt[["model", "prompt", "distinct_k"]].to_dict("list") == {
        "model": ["before", "before", "<after>", "<after>"],
        "prompt": [*TREES, *TREES],
        "distinct_k": [2.0, 1.0, 1.0, 1.0],
    }
    page = found._repr_html_()
    assert "<tr><td>distinct_k</td><td>" in page
    assert "&lt;after&gt;" in page and "<after>" not in page
    assert "file" not in found.results["models"]["before"]


def test_the_plots_are_those_of_the_report():
    texts = {"Tell me a story.": [f"{name} slept in Lisbon." for name in ("Mara", "Otto") * 4]}
    plots = anchored.score(texts).plot()
    assert plots.svgs and all(svg.startswith("<svg") for svg in plots.svgs)
    assert plots.svgs[0] in plots._repr_html_()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"a": "text"}, "a: 'text' is neither a list of texts"),
        ({"a": ["one"]}, "texts: there is one text per prompt"),
        ([{"prompt": "a"}], r"texts\[0\]: response: missing"),
        ([], "texts: has no rows"),
        ({"a": {"p": ["x", "y"]}, "b": {"q": ["x", "y"]}}, "b: has no prompt in common with a"),
    ],
)
def test_texts_that_do_not_compare_are_refused(given: Any, said: str):
    with pytest.raises(DataError, match=said):
        anchored.score(given, attributes="none")


def test_a_setting_of_score_is_checked_and_a_judge_needs_a_journal():
    with pytest.raises(ConfigError, match="score: "):
        anchored.score(TREES, embeder="static")
    with pytest.raises(ConfigError, match=r"journal: .* name a file"):
        anchored.score(TREES, equivalence="judge", judge={"url": "http://h/v1", "model": "m"})


def test_annotations_of_texts_follow_the_schema_given():
    texts = ["Mara sailed home to Lisbon.", "Otto slept in Lisbon."]
    schema = anchored.Schema.model_validate(
        {"name": "mine", "keys": [{"name": "location", "description": "where"}]}
    )
    found = anchored.annotate(texts, schema)
    assert [annotation.values("location") for annotation in found] == [("Lisbon",)] * 2
    assert anchored.annotate(texts[0], schema)[0].keys == ("location",)


def test_the_notebook_runs_on_tiny_data(model: str, tmp_path: Path):
    script = ROOT / "examples" / "notebook.py"
    lines = script.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 35
    imported = [line.split()[1] for line in lines if line.startswith(("import ", "from "))]
    assert set(imported) <= {"sys", "anchored", "datasets", "transformers"}
    command = [sys.executable, str(script), model]
    said = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert said.returncode == 0, said.stderr
    assert "after gives" in said.stdout
