"""`anchored sample`: models of several origins, pinned tags, and what is shown and written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM

from anchored import cli
from anchored.annotation import Annotation, Key, Schema
from anchored.benchmark.generate import ModelSource, _continues
from anchored.errors import ConfigError, TokenizerMismatch
from anchored.files import write_json
from anchored.models.build import olmo2_config
from anchored.models.record import read_record
from anchored.sampling import engine, sampler
from anchored.sampling.engine import Sample, SampleConfig, Sampling
from anchored.sampling.run import run
from anchored.sampling.sampler import load
from anchored.segments import Message
from anchored.tokenizer import CONTROL_TOKENS, RECORD, AnchoredTokenizer

SCHEMA = Schema(
    name="test",
    keys=(
        Key(name="mood", description="", values=("calm", "very merry")),
        Key(name="topic", description="", many=True),
    ),
)
SHORT = SampleConfig(max_annotation_tokens=4, max_response_tokens=6, retries=1)
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[assistant]"


def build(
    folder: Path, annotated: bool = True, schema: Schema | None = SCHEMA, record: bool = True
) -> str:
    """A tiny model folder, as `anchored pretrain` leaves it."""
    tokenizer = AnchoredTokenizer.train(["mood: calm topic: sea [user] Tell me"], 300)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(olmo2_config("0.5m", len(tokenizer))).save_pretrained(folder)
    tokenizer.save(folder)
    if record:
        known = {"annotated": annotated, "schema": schema and schema.model_dump(mode="json")}
        write_json(folder / "anchored.json", {**known, "tokenizer": tokenizer.fingerprint})
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return build(tmp_path_factory.mktemp("annotated"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> str:
    return build(tmp_path_factory.mktemp("plain"), annotated=False, schema=None)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> str:
    """A model folder of somebody else's: no control tokens, no chat template."""
    folder = tmp_path_factory.mktemp("foreign")
    build(folder, record=False)
    (folder / RECORD).unlink()
    (folder / "chat_template.jinja").unlink()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text(encoding="utf-8")
        for token in CONTROL_TOKENS.values():
            text = text.replace(token, token.replace("|", "!"))
        (folder / name).write_text(text, encoding="utf-8")
    return str(folder)


@pytest.fixture
def requests(monkeypatch) -> list:
    """The requests that `sample` is called with; it answers each with the same sample."""
    seen: list = []

    def answer(model, tokenizer, given, *rest):
        seen.extend(given)
        return [Sample(" Rain.", Annotation.of({"mood": "calm"})) for _ in given]

    monkeypatch.setattr(sampler, "sample", answer)
    return seen


def test_n_samples_a_prompt_with_the_annotation_first(model, requests):
    rows = run(model, prompts=["a", "b"], n=2, prefill="Once", config=SHORT)
    assert [row["prompt"] for row in rows] == ["a", "a", "b", "b"]
    assert [request.messages for request in requests[1:3]] == [
        (Message("user", "a"),),
        (Message("user", "b"),),
    ]
    assert all(request.annotated and request.prefill == "Once" for request in requests)


def test_no_annotation_for_who_does_not_want_it_or_has_a_plain_model(model, plain, requests):
    run(model, prompts=["a"], annotated=False)
    run(plain, prompts=["a"])
    assert [request.annotated for request in requests] == [False, False]


def test_without_prompt_documents_are_sampled(model, requests):
    rows = run(model, n=2, prefill="Once")
    assert [request.messages for request in requests] == [(), ()]
    assert [row["prompt"] for row in rows] == [None, None]


def test_pins_take_the_schemas_spelling(model, requests):
    run(model, pins=[("mood", "Very_Merry"), ("topic", "sea"), ("topic", "rain")])
    expected = [("mood", "very merry"), ("topic", "sea"), ("topic", "rain")]
    assert requests[0].pinned == Annotation.of(expected)


@pytest.mark.parametrize(
    ("pins", "message"),
    [
        ([("mod", "calm")], "--pin mod=calm: schema 'test' has the keys mood, topic"),
        ([("mood", "sad")], "--pin mood=sad: schema 'test' has mood = calm, very merry"),
        ([("mood", "calm")] * 2, "--pin mood=calm: schema 'test' takes at most 1; pin no more"),
    ],
)
def test_pins_outside_the_schema_are_refused_with_what_there_is(model, pins, message):
    with pytest.raises(ConfigError) as error:
        run(model, pins=pins)
    assert str(error.value) == message


def test_pins_need_an_annotation(model, plain):
    with pytest.raises(ConfigError, match="was not trained with annotations"):
        run(plain, pins=[("mood", "calm")])
    with pytest.raises(ConfigError, match="nothing to pin under --no-annotation"):
        run(model, pins=[("mood", "calm")], annotated=False)


def test_rows_as_json_and_in_a_file(model, requests, tmp_path, capsys):
    out = tmp_path / "new" / "samples.jsonl"
    rows = run(model, prompts=["ä"], n=2, out=out, as_json=True)
    expected = {
        "prompt": "ä",
        "annotation": [{"key": "mood", "value": "calm"}],
        "response": " Rain.",
        "attempts": 1,
        "malformed": False,
        "finished": True,
    }
    assert rows == [expected, expected]
    assert json.loads(capsys.readouterr().out) == rows
    assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] == rows
    assert [path.name for path in out.parent.iterdir()] == ["samples.jsonl"]


def test_a_folder_as_output_is_refused_before_sampling(model, requests, tmp_path):
    with pytest.raises(ConfigError, match="is a folder; name a file"):
        run(model, out=tmp_path)
    assert requests == []


def test_on_the_terminal_annotation_then_response(model, requests, capsys):
    run(model, prompts=["[b]Tell"], n=2)
    one = "mood: calm\n Rain.\n\n"
    assert capsys.readouterr().out == f"> [b]Tell\n\n{one}{one}"


def test_the_command_samples_from_a_real_folder(model, capsys):
    flags = ["--max-new-tokens", "5", "--temperature", "0", "--seed", "3", "--json"]
    pins = ["--pin", "mood=calm", "--pin", "topic=sea"]
    assert cli.main(["sample", model, "--prompt", "Tell me", "-n", "2", *pins, *flags]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["prompt"] for row in rows] == ["Tell me"] * 2
    assert all(row["malformed"] or row["annotation"][0]["value"] == "calm" for row in rows)


def test_a_wrong_pin_is_one_line_and_status_2(model, capsys):
    assert cli.main(["sample", model, "--pin", "mod=calm"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "anchored: error: --pin mod=calm: schema 'test' has the keys mood, topic"
    )


def test_a_model_that_is_not_there_is_one_line_and_status_2(tmp_path, capsys):
    assert cli.main(["sample", str(tmp_path / "none"), "--prompt", "x"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("anchored: error: model '")
    assert error.count("\n") == 1


def test_record_says_annotated_and_schema(model, plain):
    assert (load(model).annotated, load(model).schema) == (True, SCHEMA)
    assert (load(plain).annotated, load(plain).schema) == (False, None)


def in_the_hubs_cache(folder: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A hub id whose files are those of `folder`, fetched before."""
    commit, repository = "0" * 40, cache / "models--owner--name"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return "owner/name"


def test_a_model_on_the_hub_is_known_by_its_record_too(
    model, requests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    name = in_the_hubs_cache(model, tmp_path, monkeypatch)
    record = tmp_path / "models--owner--name" / "snapshots" / ("0" * 40) / "anchored.json"
    write_json(record, {**read_record(name), "objective": "annotated"})
    source = load(name)
    assert (source.chat, source.annotated, source.schema) == ("anchored", True, SCHEMA)
    run(name, prompts=["Tell me"], pins=[("mood", "calm")])
    assert requests[0].annotated
    assert _continues(ModelSource(source=name), source)
    asked: list[str] = []
    monkeypatch.setattr(sampler, "find_record", asked.append)
    with pytest.raises(ConfigError, match=r"model 'owner/none': no such folder, and not found on"):
        load("owner/none")
    assert asked == []
    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    record.unlink()
    assert (load(name).chat, load(name).annotated) == ("anchored", False)


def test_another_tokenizer_beside_the_model_is_refused(tmp_path):
    folder = build(tmp_path)
    AnchoredTokenizer.train(["quite another text"], 290).save(tmp_path)
    with pytest.raises(TokenizerMismatch):
        load(folder)


def test_foreign_model_takes_no_prompt_but_a_beginning(foreign):
    assert load(foreign).chat == "none"
    with pytest.raises(ConfigError, match="has no chat format; give it a text to continue"):
        run(foreign, prompts=["Tell me"])
    greedy = SHORT.model_copy(update={"response": Sampling(temperature=0)})
    assert run(foreign, prefill="Tell", config=greedy)[0]["response"].startswith("Tell")


def test_foreign_model_with_a_template_gets_its_own_format(foreign, requests, tmp_path):
    source = sampler.AutoTokenizer.from_pretrained(foreign)
    source.chat_template = TEMPLATE
    AutoModelForCausalLM.from_pretrained(foreign).save_pretrained(tmp_path)
    source.save_pretrained(tmp_path)
    run(str(tmp_path), prompts=["Tell me"])
    (ids,) = engine._prefixes(requests, load(str(tmp_path)).tokenizer)
    assert source.decode(ids) == "[user]Tell me[assistant]"


def test_control_tokens_without_a_record_mean_our_format(model, tmp_path):
    folder = build(tmp_path, record=False)
    assert (load(folder).chat, load(folder).annotated) == ("anchored", False)
    (tmp_path / RECORD).unlink()
    assert load(folder).chat == "anchored"
