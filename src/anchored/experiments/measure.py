"""Compute the figures of `results.json` from the raw samples of a study's models.

The figures are those of `anchored evaluate`, by the same functions. A study's prompts all ask for
the same thing, so its metrics are computed over all texts of a seed together; only dissimilarity
stays within prompts. A study adds the figures of the annotations that its models write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from anchored.annotation import Annotation
from anchored.benchmark.compare import (
    Margins,
    Panel,
    Reading,
    Roles,
    compare_all,
    figures,
    gap,
    mean,
    runs_of,
)
from anchored.data.generations import Generations
from anchored.metrics import entropy
from anchored.metrics.entropy import adherence, annotation_drift, annotation_entropy
from anchored.metrics.equivalence import Exact
from anchored.metrics.table import METRICS
from anchored.models.embedders import StaticEmbedder
from anchored.scoring.attributes import AttributeReader
from anchored.scoring.backends import ReadersConfig
from anchored.scoring.measure import Readers, common_sizes

Row = Mapping[str, Any]
Figures = dict[str, float | None]
BASE, SFT, ANNOTATED_BASE = "base", "standard", "annotated_base"
GAP_METRIC = "semantic_entropy_miller_madow"  # the default metric of `gap_closed`
TOGETHER = ("semantic_entropy", GAP_METRIC, "vendi", "distinct_2")
MEASURED = (*TOGETHER, "dissimilarity")


@dataclass(frozen=True)
class SeedSamples(Reading):
    """One model's samples of one seed, ordered by prompt, and what was read from them."""

    rows: list[Row]

    @property
    def readings(self) -> list[entropy.Reading]:
        """The attributes of each text."""
        return [reading for one in self.measured.observed for reading in one.readings]

    @property
    def keys(self) -> tuple[str, ...]:
        """The attributes that are read."""
        return self.measured.observed[0].keys

    @cached_property
    def annotations(self) -> list[Annotation]:
        """The annotations that the model wrote before its texts, of the texts that have one."""
        return [Annotation.from_rows(row["annotation"]) for row in self._annotated(self.rows)]

    @cached_property
    def annotated_readings(self) -> list[entropy.Reading]:
        """The attributes of each text that follows one of `annotations`."""
        return self._annotated(self.readings)

    def _annotated(self, items: Sequence[Any]) -> list[Any]:
        pairs = zip(self.rows, items, strict=True)
        return [item for row, item in pairs if row["annotation"] is not None]


def panel(attributes: AttributeReader, metrics: tuple[str, ...] = (GAP_METRIC,)) -> Panel:
    """Return everything that reads a study's samples.

    Args:
        attributes: the reader of attributes.
        metrics: the metrics of `gap_closed`, the main one first.
    """
    readers = Readers(
        embedder=StaticEmbedder(),
        equivalence=Exact(),
        attributes=attributes,
        quality=None,
        metrics=tuple(METRICS[name] for name in MEASURED),
        tokenize="13a",
        together=frozenset(TOGETHER),
    )
    return Panel(readers, ReadersConfig(), metrics, classifier=None)


def read(panel: Panel, rows: Sequence[Row], shown: Mapping[str, Sequence[Any]]) -> SeedSamples:
    """Read one seed's samples.

    Args:
        panel: what reads them.
        rows: raw samples.
        shown: for each share, such as `adoption`, whether each row counts towards it; None for
            rows that the share does not apply to.
    """
    places: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        places.setdefault(row["prompt"], []).append(i)
    by_prompt = list(places.values())
    nothing = (None,) * len(by_prompt)
    texts = tuple(tuple(rows[i]["response"] for i in prompt) for prompt in by_prompt)
    found = Generations("samples", tuple(places), texts, nothing, nothing)
    flags = {
        name: [[None if flags[i] is None else float(flags[i]) for i in p] for p in by_prompt]
        for name, flags in shown.items()
    }
    measured = panel.readers.measure(found, common_sizes([found]), lambda: None)
    return SeedSamples(measured, flags, [rows[i] for prompt in by_prompt for i in prompt])


def of_annotations(samples: SeedSamples) -> Figures:
    """Return the figures of the annotations that one model wrote at one seed."""
    annotations, keys = samples.annotations, samples.keys
    return {
        "annotation_entropy": annotation_entropy(annotations, keys).mean if annotations else None,
        "adherence": adherence(annotations, samples.annotated_readings, keys).mean,
        "malformed": sum(row["malformed"] for row in samples.rows),
    }


def of_model(
    panel: Panel,
    seeds: Sequence[SeedSamples],
    own: Sequence[Figures],
    before: Sequence[Annotation],
) -> dict[str, Any]:
    """Return one model's entry in `models`, except for its samples.

    Args:
        panel: what read the samples.
        seeds: the model's samples, by seed.
        own: figures that only this study has, by seed.
        before: annotations of the annotated base, from which drift is measured.
    """
    own = [{**of_annotations(seed), **more} for seed, more in zip(seeds, own, strict=True)]
    found = figures(panel, seeds, [seed.rows[0]["seed"] for seed in seeds])
    annotations = [annotation for seed in seeds for annotation in seed.annotations]
    drift = annotation_drift(before, annotations, seeds[0].keys) if annotations else None
    return {
        **found,
        **{name: mean(more[name] for more in own) for name in own[0]},
        "annotation_drift": drift,
        "by_seed": [
            {**one, "n": len(seed.rows), **more}
            for one, seed, more in zip(found["by_seed"], seeds, own, strict=True)
        ],
    }


def comparisons(
    panel: Panel, models: Mapping[str, Sequence[SeedSamples]]
) -> dict[str, dict[str, Any]]:
    """Compare all models with the base and standard SFT; each entry has a `gap_closed`."""
    found = compare_all(panel, models, Roles(BASE, SFT), Margins())
    return {name: one for name, one in found.items() if name != SFT}


def kept(
    panel: Panel,
    init: Sequence[SeedSamples],
    sft: Sequence[SeedSamples],
    run: Sequence[SeedSamples],
) -> dict[str, Any]:
    """Return what `run`, trained from `init`, keeps of the gap that `init` closes.

    (D_run - D_sft) / (D_init - D_sft) by semantic entropy, with its 95 % interval.
    """
    start, end, kept_by = (runs_of(seeds, GAP_METRIC) for seeds in (init, sft, run))
    assert start and end and kept_by, "a study always measures the metric of its gaps"
    return gap(start, end, kept_by, panel.settings)["gap_closed"]
