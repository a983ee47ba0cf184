"""Samples for `anchored evaluate`: made once, resumed to the byte, asked or continued."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from anchored.benchmark import generate as module
from anchored.benchmark.benchmarks import Benchmark, Prompt, load_benchmark
from anchored.benchmark.generate import (
    EndpointAnswerer,
    ModelSource,
    Place,
    SampledAnswerer,
    is_complete,
    load_answerer,
    made_before,
    make,
    sample_config,
    weights_of,
)
from anchored.errors import ConfigError, DataError, EndpointError
from anchored.files import read_jsonl, write_json
from anchored.sampling import sampler as sampling
from anchored.sampling.engine import Request, Sample, SampleConfig
from anchored.sampling.sampler import load
from anchored.segments import Message
from test_sample_run import build

SETTINGS = SampleConfig(max_annotation_tokens=4, retries=1, batch_size=3)
TURN = Message("user", "Tell me")

# Ends itself in the middle of the second chunk, where a real kill -9 would hurt most.
CHILD = """
import os, signal, sys
from pathlib import Path
from anchored.benchmark import generate
sys.path.insert(0, sys.argv[3])
from test_generate import SETTINGS, mine, made_by

def dying(original):
    def sync(descriptor):
        original(descriptor)
        if Path(sys.argv[2] + generate.PARTIAL).read_bytes().count(b"\\n") == 6:
            size = os.fstat(descriptor).st_size
            os.truncate(sys.argv[2] + generate.PARTIAL, size - 40)
            os.kill(os.getpid(), signal.SIGKILL)
    return sync

os.fsync = dying(os.fsync)
made_by(sys.argv[1], Path(sys.argv[2]))
"""


def mine(samples: int = 4, max_tokens: int = 6, opening: str | None = None) -> Benchmark:
    prompts = tuple(Prompt((Message("user", text),)) for text in ("Tell me", "mood"))
    return Benchmark("mine", prompts, "here", samples, max_tokens, ("dissimilarity",), opening)


def made_by(model: str, path: Path, place: Place = Place(1.0, 0)) -> list[dict[str, Any]]:  # noqa: B008
    source = ModelSource(source=model)
    answerer = load_answerer(source, place.seed, weights_of(source, 0), 8)
    make(path, answerer, mine(), sample_config(SETTINGS, mine(), place), "m")
    return [row for _, row in read_jsonl(path)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build(tmp_path_factory.mktemp("annotated"))


@pytest.fixture(scope="module")
def whole(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "T1-seed0.jsonl"
    made_by(model, path)
    return path


def requests_of(
    monkeypatch: pytest.MonkeyPatch, model: ModelSource, benchmark: Benchmark, folder: str
) -> tuple[list[Request], list[dict[str, Any]]]:
    """What the engine is asked for, and the rows; it answers each with its prefill and a word."""
    seen: list[Request] = []

    def answer(_: Any, tokenizer: Any, requests: Any, *rest: Any) -> list[Sample]:
        seen.extend(requests)
        return [Sample(f"{request.prefill}rain") for request in requests]

    monkeypatch.setattr(sampling, "sample", answer)
    answerer = SampledAnswerer(model, load(folder), "w")
    return seen, answerer.answer(benchmark, benchmark.asked, 0, SETTINGS, lambda done: None)


def test_rows_are_what_score_reads_and_name_model_and_weights(model: str, whole: Path) -> None:
    rows = [row for _, row in read_jsonl(whole)]
    assert [row["prompt"] for row in rows] == ["Tell me"] * 4 + ["mood"] * 4
    assert {(row["model"], row["weights"]) for row in rows} == {
        ("m", weights_of(ModelSource(source=model), 0))
    }
    assert {row["dtype"] for row in rows} == {"float32"}
    assert set(rows[0]) == {
        "model", "weights", "dtype", "prompt", "annotation", "response", "attempts", "malformed",
        "finished",
    }  # fmt: skip


def test_killed_in_the_middle_of_a_chunk_and_resumed_it_is_the_same_to_the_byte(
    model: str, whole: Path, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "T1-seed0.jsonl"
    command = [sys.executable, "-c", CHILD, model, str(path), str(Path(__file__).parent)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    left = Path(f"{path}{module.PARTIAL}").read_bytes()
    assert not path.exists()
    assert left.count(b"\n") == 5  # three whole rows of the first chunk, a torn one in the second
    assert made_before(path, 8, 3) == 3
    made_by(model, path)
    assert path.read_bytes() == whole.read_bytes()
    assert [one.name for one in path.parent.iterdir()] == ["T1-seed0.jsonl"]


def test_only_what_is_missing_is_sampled(
    model: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "T1-seed0.jsonl"
    lines = whole.read_bytes().split(b"\n")
    Path(f"{path}{module.PARTIAL}").write_bytes(b"\n".join(lines[:6]) + b"\n")
    places = []
    monkeypatch.setattr(
        sampling,
        "sample",
        lambda _, __, requests, *rest: [
            places.append(rest[-1] + i) or Sample("x") for i in range(len(requests))
        ],
    )
    made_by(model, path)
    assert places == [6, 7]


def test_places_have_streams_of_their_own() -> None:
    places = [Place(1.0, seed, held) for seed in range(3) for held in (False, True)]
    found = [sample_config(SETTINGS, mine(), place) for place in places]
    assert len({one.seed for one in found}) == 6
    assert {one.max_response_tokens for one in found} == {6}
    assert sample_config(SETTINGS, mine(), Place(0.6, 0)).response.temperature == 0.6
    assert [place.file for place in (Place(0.6, 1), Place(1.0, 0, True))] == [
        "T0.6-seed1.jsonl", "T1-seed0-held-out.jsonl"
    ]  # fmt: skip


def test_samples_of_other_weights_are_refused(whole: Path) -> None:
    with pytest.raises(DataError, match=r"has samples of weights .*, but the model now has"):
        is_complete(whole, "other")


def test_weights_are_known_by_the_folders_contents(tmp_path: Path) -> None:
    source = ModelSource(source=f"{tmp_path}/{{seed}}")
    for seed, text in ((0, "a"), (1, "b")):
        write_json(tmp_path / str(seed) / "config.json", text)
    assert weights_of(source, 0) != weights_of(source, 1)
    assert weights_of(ModelSource(source="org/name"), 0) == "org/name"


def test_a_chat_model_is_asked_with_an_annotation_first(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, rows = requests_of(monkeypatch, ModelSource(source=model), mine(), model)
    assert seen[0].messages == (TURN,)
    assert seen[0].annotated
    assert seen[0].prefill == ""
    assert rows[0]["response"] == "rain"


def test_annotations_off_and_pinned(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    off = ModelSource(source=model, annotation=False)
    assert not requests_of(monkeypatch, off, mine(), model)[0][0].annotated
    pinned = ModelSource(source=model, pins=("mood=Calm", "topic=sea"))
    tags = requests_of(monkeypatch, pinned, mine(), model)[0][0].pinned
    assert [(tag.key, tag.value) for tag in tags] == [("mood", "calm"), ("topic", "sea")]
    with pytest.raises(ConfigError, match="schema 'test' has the keys mood, topic"):
        load_answerer(ModelSource(source=model, pins=("mod=calm",)), 0, "w", 1)


def test_a_pretrained_model_goes_on_from_the_prompt_which_is_no_part_of_its_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build(tmp_path)
    record = json.loads((tmp_path / "anchored.json").read_text())
    write_json(tmp_path / "anchored.json", {**record, "objective": "annotated"})
    seen, rows = requests_of(monkeypatch, ModelSource(source=folder), mine(), folder)
    assert (seen[0].messages, seen[0].prefill) == ((), "Tell me\n\n")
    assert seen[0].annotated
    assert rows[0]["response"] == "rain"


def test_the_opening_of_a_story_is_part_of_it(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ModelSource(source=model, ask="prefill")
    seen, rows = requests_of(monkeypatch, asked, mine(opening="Once "), model)
    assert seen[0].prefill == "Once "
    assert rows[0]["response"] == "Once rain"
    seen, _ = requests_of(monkeypatch, asked, load_benchmark("stories"), model)
    assert seen[0].prefill == "Once upon a time"


def test_a_pin_without_a_value_is_refused() -> None:
    with pytest.raises(ValueError, match="write each pin as key=value"):
        ModelSource(source="x", pins=("mood",))


# --- endpoints ----------------------------------------------------------------------------------


pytest.importorskip("aiohttp")
pytest.importorskip("openai")

from fake_server import Answer, serving  # noqa: E402


def through(url: str, path: Path, **fields: Any) -> list[dict[str, Any]]:
    model = ModelSource(source=f"endpoint:{url}#small", **fields)
    answerer = load_answerer(model, 0, weights_of(model, 0), 2)
    make(path, answerer, mine(), sample_config(SETTINGS, mine(), Place(0.7, 1)), "m")
    return [row for _, row in read_jsonl(path)]


def test_an_endpoint_is_asked_as_often_as_the_benchmark_says(tmp_path: Path) -> None:
    answers = lambda seen: Answer(f"<think>x</think>{seen.prompt}!", finish_reason="length")  # noqa: E731
    with serving(answers) as server:
        rows = through(server.url, tmp_path / "a.jsonl")
        assert server.most_at_once <= 2
        bodies = [seen.body for seen in server.seen]
        assert [row["response"] for row in rows] == ["Tell me!"] * 4 + ["mood!"] * 4
        assert {row["finished"] for row in rows} == {False}
        assert {row["weights"] for row in rows} == {f"endpoint:{server.url}#small"}
        assert {row["dtype"] for row in rows} == {None}
    assert {body["temperature"] for body in bodies} == {0.7}
    assert {body["max_tokens"] for body in bodies} == {6}
    assert len({body["seed"] for body in bodies}) == 8
    assert "min_p" not in bodies[0]


def test_a_base_model_behind_an_endpoint_completes(tmp_path: Path) -> None:
    with serving(lambda seen: Answer(" rain")) as server:
        rows = through(server.url, tmp_path / "a.jsonl", ask="prefill")
        assert {seen.path for seen in server.seen} == {"/v1/completions"}
        assert {seen.prompt for seen in server.seen} == {"Tell me\n\n", "mood\n\n"}
    assert {row["response"] for row in rows} == {" rain"}


def test_an_endpoint_that_fails_leaves_the_chunks_before_and_is_gone_on_with(
    tmp_path: Path,
) -> None:
    path, count = tmp_path / "a.jsonl", iter(range(100))
    broken = lambda seen: Answer("a") if next(count) < 4 else Answer(status=401)  # noqa: E731
    with serving(broken) as server:
        with pytest.raises(EndpointError, match="401"):
            through(server.url, path)
        assert made_before(path, 8, 3) == 3
        server.script = lambda seen: Answer("b")
        rows = through(server.url, path)
    assert [row["response"] for row in rows] == ["a"] * 3 + ["b"] * 5


def test_an_endpoint_without_a_name_or_with_pins_is_refused() -> None:
    with pytest.raises(ConfigError, match="write endpoint:URL#NAME"):
        EndpointAnswerer(ModelSource(source="x"), "endpoint:http://127.0.0.1:1/v1", 1)
    with pytest.raises(ConfigError, match="does not accept pins"):
        EndpointAnswerer(ModelSource(source="x", pins=("a=b",)), "endpoint:http://h/v1#m", 1)


def test_two_runs_do_not_write_one_file(model: str, tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    with path.with_name(path.name + module.PARTIAL).open("ab") as other:
        module._lock(other, path)
        with pytest.raises(ConfigError, match="another run is writing this file"):
            made_by(model, path)
    assert len(made_by(model, path)) == 8
