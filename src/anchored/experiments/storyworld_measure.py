"""Measure a model's samples with the storyworld's exact parser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from anchored.annotation import Annotation
from anchored.benchmark.compare import mean
from anchored.data.generations import Generations
from anchored.experiments.measure import (
    ANNOTATED_BASE,
    SFT,
    Figures,
    Row,
    SeedSamples,
    comparisons,
    kept,
    of_model,
    panel,
    read,
)
from anchored.storyworld import Reading, Storyworld

Rows = Mapping[str, Sequence[Sequence[Row]]]  # raw samples, by model and seed


class StoryworldReader:
    """An `AttributeReader` that uses the storyworld's parser."""

    def __init__(self, world: Storyworld) -> None:
        self.world = world
        self.parse = cache(world.read)

    @property
    def keys(self) -> tuple[str, ...]:
        """See `AttributeReader`."""
        return self.world.attributes

    def as_json(self) -> dict[str, Any]:
        """Return the parser, its world and the attributes."""
        return {"name": "storyworld parser", "schema": self.world.size, "keys": list(self.keys)}

    def read(self, found: Generations, p: int) -> list[Annotation | None]:
        """See `AttributeReader`; the parser can read any text."""
        return [Annotation.of(self.parse(text).attributes) for text in found.texts[p]]

    def counted(self, p: int) -> None:
        """See `AttributeReader`."""
        return None


class StoryReaders:
    """Everything that reads the samples of models of one storyworld."""

    def __init__(self, world: Storyworld) -> None:
        self.world = world
        self.parser = StoryworldReader(world)
        self.panel = panel(self.parser)

    def stories(self, rows: Sequence[Row]) -> SeedSamples:
        """Return the stories among one seed's samples, with a flag per story for each share."""
        told = [row for row in rows if row["kind"] == "story"]
        parsed = [self.parser.parse(row["response"]) for row in told]
        shown = {
            "adoption": [reading.adopted for reading in parsed],
            "adoption_far": [one.adopted if self._is_far(one) else None for one in parsed],
            "well_formed": [reading.well_formed for reading in parsed],
            "consistent": [reading.consistent for reading in parsed],
        }
        return read(self.panel, told, shown)

    def own_figures(self, stories: SeedSamples, rows: Sequence[Row]) -> Figures:
        """Return the figures that only a storyworld has, of one model and seed."""
        asked = [row for row in rows if row["kind"] == "question"]
        far = [flag for flags in stories.shown["adoption_far"] for flag in flags]
        return {
            "n_far": sum(flag is not None for flag in far),
            "answer_accuracy": mean(self.world.right(a["prompt"], a["response"]) for a in asked),
        }

    def as_json(self, row: Row) -> dict[str, Any]:
        """Return a story's form in `results.json`."""
        reading = self.parser.parse(row["response"])
        tags = row["annotation"]
        return {
            "seed": row["seed"],
            "prompt": row["prompt"],
            "annotation": None if tags is None else str(Annotation.from_rows(tags)),
            "response": row["response"],
            "attributes": reading.attributes,
            "well_formed": reading.well_formed,
            "consistent": reading.consistent,
            "adopted": reading.adopted,
            "far": self._is_far(reading),
        }

    def _is_far(self, reading: Reading) -> bool:
        """Return True if a story's attributes are far from SFT's narrow values."""
        return self.world.far(reading.attributes)


def measure(world: Storyworld, rows: Rows) -> dict[str, Any]:
    """Return `models` and `comparisons` of `results.json`.

    Args:
        world: the storyworld that the models were trained on.
        rows: raw samples, stories and answers to questions.
    """
    readers = StoryReaders(world)
    stories = {name: [readers.stories(seed) for seed in seeds] for name, seeds in rows.items()}
    before = [tags for seed in stories[ANNOTATED_BASE] for tags in seed.annotations]
    models = {}
    for name, seeds in stories.items():
        own = [readers.own_figures(*both) for both in zip(seeds, rows[name], strict=True)]
        models[name] = {
            **of_model(readers.panel, seeds, own, before),
            "samples": [readers.as_json(row) for seed in seeds for row in seed.rows],
        }
    return {"models": models, "comparisons": comparisons(readers.panel, stories)}


def kept_of(world: Storyworld, rows: Rows, init: str, name: str) -> dict[str, Any]:
    """Return what `name`, trained from `init`, keeps of the gap that `init` closes."""
    readers = StoryReaders(world)
    start, sft, run = ([readers.stories(s) for s in rows[model]] for model in (init, SFT, name))
    return kept(readers.panel, start, sft, run)
