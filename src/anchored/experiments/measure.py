"""Compute the figures of `results.json` from the raw samples of a study's models.

Metrics are those of the table of metrics, and texts are read with the readers of `anchored score`
and `anchored evaluate`. A study's prompts all ask for the same thing, so its entropies are taken
over all texts of a seed, not prompt by prompt as in those two commands. Dissimilarity is always
within prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from anchored.annotation import Annotation
from anchored.benchmark.compare import gap
from anchored.data.generations import Generations
from anchored.metrics.collapse import mean_of
from anchored.metrics.entropy import (
    Reading,
    adherence,
    annotation_drift,
    annotation_entropy,
    semantic_entropy,
)
from anchored.metrics.table import METRICS, Observed, Sampled, joined
from anchored.scoring.backends import ReadersConfig
from anchored.scoring.measure import Readers
from anchored.scoring.score import of_share, sampled_intervals

Row = Mapping[str, Any]
Figures = dict[str, float | None]
BASE, SFT, ANNOTATED_BASE = "base", "standard", "annotated_base"
GAP_METRIC = "semantic_entropy_miller_madow"  # the default metric of `gap_closed`
SETTINGS = ReadersConfig()  # resamples and seed of intervals


@dataclass(frozen=True)
class SeedSamples:
    """One model's samples of one seed, and what was read from them, prompt by prompt.

    Attributes:
        rows: the raw samples.
        observed: what was read from each prompt's texts, in the order of `rows`.
        shown: for each share, such as `adoption`, whether each text counts towards it; None for
            texts that the share does not apply to.
    """

    rows: list[Row]
    observed: list[Observed]
    shown: Mapping[str, Sequence[bool | None]]

    @cached_property
    def together(self) -> Observed:
        """All texts, joined as if of one prompt."""
        return joined(self.observed)

    @cached_property
    def annotations(self) -> list[Annotation]:
        """The annotations that the model wrote before its texts, of the texts that have one."""
        return [Annotation.from_rows(row["annotation"]) for row in self._annotated(self.rows)]

    @cached_property
    def annotated_readings(self) -> list[Reading]:
        """The attributes of each text that follows one of `annotations`."""
        return self._annotated(self.together.readings)

    def share(self, name: str) -> float | None:
        """Return the share of texts that count, among those it applies to."""
        return mean(self.shown[name])

    def by_prompt(self, name: str) -> list[list[float]]:
        """Return the flags of a share that applies to every text, prompt by prompt."""
        flags = iter(self.shown[name])
        return [[float(next(flags) or 0) for _ in one.texts] for one in self.observed]

    def _annotated(self, items: Sequence[Any]) -> list[Any]:
        pairs = zip(self.rows, items, strict=True)
        return [item for row, item in pairs if row["annotation"] is not None]


def observe(readers: Readers, rows: Sequence[Row]) -> tuple[list[Row], list[Observed]]:
    """Read raw samples; return the rows ordered by prompt, and what was read from each prompt."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["prompt"], []).append(row)
    texts = tuple(tuple(row["response"] for row in group) for group in groups.values())
    nothing = (None,) * len(texts)
    found = Generations("samples", tuple(groups), texts, nothing, nothing)
    observed = [readers.observe(found, p)[0] for p in range(len(texts))]
    return [row for group in groups.values() for row in group], observed


def semantics(samples: SeedSamples) -> Figures:
    """Return the entropies and adherence of one model and seed."""
    together, annotations = samples.together, samples.annotations
    return {
        "n": len(samples.rows),
        **{name: METRICS[name].function(together) for name in ("semantic_entropy", GAP_METRIC)},
        "annotation_entropy": annotation_entropy(annotations, together.keys).mean
        if annotations
        else None,
        "adherence": adherence(annotations, samples.annotated_readings, together.keys).mean,
    }


def spread(samples: SeedSamples) -> Figures:
    """Return how dissimilar one model's texts of one seed are, and how varied their words."""
    distance = METRICS["dissimilarity"]
    return {
        "dissimilarity": mean([distance.function(one) for one in samples.observed]),
        **{name: METRICS[name].function(samples.together) for name in ("vendi", "distinct_2")},
        "malformed": sum(row["malformed"] for row in samples.rows),
    }


def of_model(
    seeds: Sequence[SeedSamples],
    by_seed: Sequence[Figures],
    before: Sequence[Annotation],
    uncertain: Sequence[str],
) -> dict[str, Any]:
    """Return one model's entry in `models`, except for its samples.

    Args:
        seeds: the model's samples, by seed.
        by_seed: the model's figures, by seed.
        before: annotations of the annotated base, from which drift is measured.
        uncertain: names of the figures that get an interval.
    """
    annotations = [annotation for seed in seeds for annotation in seed.annotations]
    keys = seeds[0].together.keys
    return {
        **{name: mean([figures[name] for figures in by_seed]) for name in by_seed[0]},
        "n": by_seed[0]["n"],
        "annotation_drift": annotation_drift(before, annotations, keys) if annotations else None,
        "intervals": _intervals({name: _resampled(seeds, name) for name in uncertain}),
        "by_key": _by_key(seeds, keys),
        "by_seed": [
            {"seed": seed.rows[0]["seed"], **figures}
            for seed, figures in zip(seeds, by_seed, strict=True)
        ],
    }


def _resampled(seeds: Sequence[SeedSamples], name: str) -> Sampled:
    """Return what to resample for a metric over all texts of a seed, or for a share."""
    if name in METRICS:
        return METRICS[name].sampled_together([seed.observed for seed in seeds])
    return mean_of, [seed.by_prompt(name) for seed in seeds]


def _intervals(sampled: Mapping[str, Sampled]) -> dict[str, dict[str, float]]:
    found = sampled_intervals(sampled, SETTINGS)
    return {n: ends if n in METRICS else of_share(ends) for n, ends in found.items()}


def _by_key(seeds: Sequence[SeedSamples], keys: Sequence[str]) -> dict[str, Any]:
    each = [semantic_entropy(seed.together.readings, keys).by_key for seed in seeds]
    pooled = semantic_entropy([r for seed in seeds for r in seed.together.readings], keys)
    return {
        key: {
            "entropy": mean([found[key].entropy for found in each]),
            "miller_madow": mean([found[key].miller_madow for found in each]),
            "top": [list(pair) for pair in pooled.by_key[key].top],
        }
        for key in keys
    }


def comparisons(
    models: Mapping[str, Sequence[SeedSamples]], metric: str = GAP_METRIC
) -> dict[str, dict[str, Any]]:
    """Return `gap_closed` and `collapse_reduction` for all models but base and standard SFT."""
    runs = {name: _resampled(seeds, metric) for name, seeds in models.items()}
    return {
        name: gap(runs[BASE], runs[SFT], run, SETTINGS)
        for name, run in runs.items()
        if name not in (BASE, SFT)
    }


def kept(
    init: Sequence[SeedSamples], sft: Sequence[SeedSamples], run: Sequence[SeedSamples]
) -> dict[str, Any]:
    """Return what `run`, trained from `init`, keeps of the gap that `init` closes.

    (D_run - D_sft) / (D_init - D_sft) by semantic entropy, with its 95 % interval.
    """
    start, end, kept_by = (_resampled(seeds, GAP_METRIC) for seeds in (init, sft, run))
    return gap(start, end, kept_by, SETTINGS)["gap_closed"]


def mean(values: Iterable[float | bool | None]) -> float | None:
    """Return the mean of the values that are not None; None if there are none."""
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None
