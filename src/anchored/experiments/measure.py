"""From raw samples of the storyworld to the figures of `results.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anchored.annotation import Annotation
from anchored.metrics.collapse import compare, entropy_of, interval, mean_of
from anchored.metrics.embedding import mean_dissimilarity, vendi
from anchored.metrics.entropy import (
    adherence,
    annotation_drift,
    annotation_entropy,
    semantic_entropy,
)
from anchored.metrics.lexical import distinct_n
from anchored.models.embedders import StaticEmbedder
from anchored.storyworld import Reading, Storyworld

Row = Mapping[str, Any]
BASE, SFT, ANNOTATED_BASE = "base", "standard", "annotated_base"


@dataclass(frozen=True)
class Story:
    """One sampled story, read back; `far`: its attributes lie far from SFT's narrow values."""

    row: Row
    reading: Reading
    annotation: Annotation | None
    far: bool

    @classmethod
    def read(cls, world: Storyworld, row: Row) -> Story:
        """Reads the response of a raw sample."""
        reading = world.read(row["response"])
        rows = row["annotation"]
        annotation = None if rows is None else Annotation.from_rows(rows)
        return cls(row, reading, annotation, world.far(reading.attributes))

    def as_json(self) -> dict[str, Any]:
        """The form in `results.json`."""
        return {
            "seed": self.row["seed"],
            "prompt": self.row["prompt"],
            "annotation": None if self.annotation is None else str(self.annotation),
            "response": self.row["response"],
            "attributes": self.reading.attributes,
            "well_formed": self.reading.well_formed,
            "consistent": self.reading.consistent,
            "adopted": self.reading.adopted,
            "far": self.far,
        }


def measure(world: Storyworld, rows: Mapping[str, Sequence[Sequence[Row]]]) -> dict[str, Any]:
    """`models` and `comparisons` of `results.json`.

    Args:
        world: the storyworld that the models were trained on.
        rows: by model name, for each seed, its raw samples: stories and answers.
    """
    embedder = StaticEmbedder()
    stories = {
        name: [[Story.read(world, row) for row in seed if row["kind"] == "story"] for seed in seeds]
        for name, seeds in rows.items()
    }
    before = [s.annotation for seed in stories[ANNOTATED_BASE] for s in seed if s.annotation]
    models = {}
    for name, seeds in stories.items():
        answers = [[row for row in seed if row["kind"] == "question"] for seed in rows[name]]
        models[name] = _model(world, embedder, seeds, answers, before)
    return {"models": models, "comparisons": _comparisons(world, stories)}


def kept_of(
    world: Storyworld, rows: Mapping[str, Sequence[Sequence[Row]]], init: str, name: str
) -> dict[str, Any]:
    """What `name`, trained from `init`, keeps of the gap that `init` closes.

    (D_name - D_sft) / (D_init - D_sft) by semantic entropy, with its 95 % interval.
    """
    start, sft, run = (
        _attributes(
            [[Story.read(world, r) for r in seed if r["kind"] == "story"] for seed in seeds]
        )
        for seeds in (rows[init], rows[SFT], rows[name])
    )
    return compare(start, sft, run, entropy_of(world.attributes)).as_json()["gap_closed"]


def _model(
    world: Storyworld,
    embedder: StaticEmbedder,
    seeds: Sequence[Sequence[Story]],
    answers: Sequence[Sequence[Row]],
    before: Sequence[Annotation],
) -> dict[str, Any]:
    by_seed = [
        {"seed": stories[0].row["seed"], **_figures(world, embedder, stories, asked)}
        for stories, asked in zip(seeds, answers, strict=True)
    ]
    pooled = [story for stories in seeds for story in stories]
    entropies = [
        semantic_entropy([s.reading.attributes for s in stories], world.attributes)
        for stories in seeds
    ]
    annotations = [story.annotation for story in pooled if story.annotation is not None]
    return {
        **{name: mean([seed[name] for seed in by_seed]) for name in by_seed[0] if name != "seed"},
        "n": by_seed[0]["n"],
        "annotation_drift": annotation_drift(before, annotations, world.attributes)
        if annotations
        else None,
        "intervals": _intervals(world, seeds),
        "by_key": {
            key: {
                "entropy": mean([e.by_key[key].entropy for e in entropies]),
                "miller_madow": mean([e.by_key[key].miller_madow for e in entropies]),
                "top": _top(pooled, world, key),
            }
            for key in world.attributes
        },
        "by_seed": by_seed,
        "samples": [story.as_json() for story in pooled],
    }


def _top(stories: Sequence[Story], world: Storyworld, key: str) -> list[list[Any]]:
    pooled = semantic_entropy([s.reading.attributes for s in stories], world.attributes)
    return [list(pair) for pair in pooled.by_key[key].top]


def _figures(
    world: Storyworld, embedder: StaticEmbedder, stories: Sequence[Story], answers: Sequence[Row]
) -> dict[str, float | None]:
    """The scalar figures of one model and seed; None where one does not apply."""
    readings = [story.reading for story in stories]
    attributes = [reading.attributes for reading in readings]
    entropy = semantic_entropy(attributes, world.attributes)
    planned = [story for story in stories if story.annotation is not None]
    plans = [story.annotation for story in planned if story.annotation is not None]
    texts = [story.row["response"] for story in stories]
    vectors = embedder.embed(texts)
    return {
        "n": len(stories),
        "semantic_entropy": entropy.mean,
        "semantic_entropy_miller_madow": entropy.mean_miller_madow,
        "annotation_entropy": annotation_entropy(plans, world.attributes).mean if plans else None,
        "adherence": adherence(
            plans, [story.reading.attributes for story in planned], world.attributes
        ).mean,
        "adoption": mean([reading.adopted for reading in readings]),
        "adoption_far": mean([story.reading.adopted for story in stories if story.far]),
        "n_far": sum(story.far for story in stories),
        "well_formed": mean([reading.well_formed for reading in readings]),
        "consistent": mean([reading.consistent for reading in readings]),
        "answer_accuracy": mean([world.right(a["prompt"], a["response"]) for a in answers]),
        "dissimilarity": mean_dissimilarity(_by_prompt(stories, vectors)),
        "vendi": vendi(vectors),
        "distinct_2": distinct_n(texts, 2),
        "malformed": sum(story.row["malformed"] for story in stories),
    }


def _by_prompt(stories: Sequence[Story], items: Sequence[Any] | np.ndarray) -> list[list[Any]]:
    groups: dict[str, list[Any]] = {}
    for story, item in zip(stories, items, strict=True):
        groups.setdefault(story.row["prompt"], []).append(item)
    return list(groups.values())


def _intervals(world: Storyworld, seeds: Sequence[Sequence[Story]]) -> dict[str, dict[str, float]]:
    names = {"adopted": "adoption", "well_formed": "well_formed", "consistent": "consistent"}
    entropy = interval(_attributes(seeds), entropy_of(world.attributes, corrected=False))
    found = {"semantic_entropy": {"low": entropy.low, "high": entropy.high}}
    for flag, name in names.items():
        flags = [_by_prompt(s, [float(getattr(t.reading, flag)) for t in s]) for s in seeds]
        share = interval(flags, mean_of)
        found[name] = {"low": max(share.low, 0.0), "high": min(share.high, 1.0)}
    return found


def _attributes(seeds: Sequence[Sequence[Story]]) -> list[list[list[dict[str, str]]]]:
    return [_by_prompt(s, [story.reading.attributes for story in s]) for s in seeds]


def _comparisons(
    world: Storyworld, stories: Mapping[str, Sequence[Sequence[Story]]]
) -> dict[str, Any]:
    runs = {name: _attributes(seeds) for name, seeds in stories.items()}
    statistic = entropy_of(world.attributes)
    return {
        name: compare(runs[BASE], runs[SFT], run, statistic).as_json()
        for name, run in runs.items()
        if name not in (BASE, SFT)
    }


def mean(values: Sequence[float | bool | None]) -> float | None:
    """Mean of what is there; None where nothing is."""
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None
