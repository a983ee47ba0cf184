"""Compute each model's figures on a benchmark, and how much of a collapse is undone.

All texts are read with the backends of `anchored score`. A figure is the mean over prompts of one
value per prompt; semantic entropy and dissimilarity are within a prompt's texts, never between
prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anchored.config import Config
from anchored.data.generations import Generations
from anchored.metrics import collapse, lexical
from anchored.metrics.adoption import MINIMUM, AdoptionClassifier
from anchored.metrics.frontier import Sweep, common_box, frontier_area
from anchored.metrics.table import METRICS, Sampled, joined
from anchored.scoring.backends import ReadersConfig
from anchored.scoring.measure import Measured, Readers, on_common_prompts
from anchored.scoring.score import by_key, differences, intervals, of_share, sampled_intervals

FloatArray = NDArray[np.float64]
QUALITIES = tuple(name for name, metric in METRICS.items() if metric.better)
TOLD_APART = 0.8  # below this AUC a note says that the classifier's verdicts are doubtful


class Margins(Config):
    """How far a treatment may fall behind SFT before its diversity no longer counts.

    Args:
        adoption: margin as a share of answers.
        quality: margin in points of the score from 1 to 10.
        perplexity: margin as a share of SFT's perplexity. It is not zero, since varied text is less
            predictable than text that repeats itself.
    """

    adoption: float = 0.05
    quality: float = 0.5
    perplexity: float = 0.2


@dataclass(frozen=True, slots=True)
class Roles:
    """The models that a collapse is measured between."""

    base: str
    sft: str


@dataclass(frozen=True)
class Reading:
    """What was read from one model's texts at one temperature and seed.

    Attributes:
        measured: the figures.
        shown: for each share, such as `adoption`, whether text i of prompt p counts towards it:
            1 if it does, 0 if not, None if the share does not apply to it. A share that is not
            known is missing.
    """

    measured: Measured
    shown: Mapping[str, Sequence[Sequence[float | None]]]

    def shares(self) -> dict[str, float | None]:
        """Return each share of the texts that it applies to; None if there are none."""
        found = {}
        for name, by_prompt in self.shown.items():
            flags = [flag for flags in by_prompt for flag in flags if flag is not None]
            found[name] = sum(flags) / len(flags) if flags else None
        return found


Runs = Sequence[Reading]  # one per seed


@dataclass(frozen=True)
class Panel:
    """Everything that reads the texts of one benchmark.

    Args:
        readers: the backends of `anchored score`.
        settings: the resamples of the intervals and their seed.
        metrics: the diversity metrics, the main one first.
        classifier: the classifier of adoption; None if it could not be trained.
    """

    readers: Readers
    settings: ReadersConfig
    metrics: tuple[str, ...]
    classifier: AdoptionClassifier | None

    def read(self, found: Generations, sizes: Sequence[int], step: Callable[[], None]) -> Reading:
        """Read one set; `sizes` are the bytes to cut each prompt's texts to before compression."""
        measured = self.readers.measure(found, sizes, step)
        if self.classifier is None:
            return Reading(measured, {})
        adopted = [self.classifier.adopted(texts).astype(float).tolist() for texts in found.texts]
        return Reading(measured, {"adoption": adopted})

    def backends(self, sets: Sequence[Generations]) -> dict[str, Any]:
        """Return the name and version of everything that the figures depend on."""
        return {
            **self.readers.backends(sets),
            "adoption": {
                "name": "classifier of SFT answers against base continuations, both held out",
                **{k: round(v, 4) for k, v in asdict(self.classifier.quality).items()},
            }
            if self.classifier
            else None,
        }


def on_same_prompts(
    runs: Mapping[str, Mapping[float, Runs]],
) -> tuple[Mapping[str, Mapping[float, Runs]], list[str]]:
    """Restrict each figure to the prompts that have it in every run, with notes on those cut."""
    places = [(name, t, i) for name, by in runs.items() for t in by for i in range(len(by[t]))]
    flat = {repr(place): runs[place[0]][place[1]][place[2]].measured for place in places}
    measured, notes = on_common_prompts(flat)
    cut = {
        name: {
            t: [replace(run, measured=measured[repr((name, t, i))]) for i, run in enumerate(found)]
            for t, found in by.items()
        }
        for name, by in runs.items()
    }
    return cut, notes


def train_classifier(sft: Sequence[str], base: Sequence[str]) -> AdoptionClassifier | None:
    """Train on held-out answers; return None if too few of them are distinct."""
    if min(len(set(sft)), len(set(base))) < MINIMUM:
        return None
    return AdoptionClassifier.train(sft, base)


def figures(panel: Panel, runs: Runs, seeds: Sequence[int]) -> dict[str, Any]:
    """Return one model's figures at one temperature: means over seeds, with intervals.

    Returns:
        `<metric>`, `n`, `lengths`, `intervals`, `by_key` and `by_seed`, as in `results.json`.
    """
    seeds_measured = [run.measured for run in runs]
    measured = pooled(seeds_measured)
    return {
        **{name: float(values.mean()) for name, values in measured.values.items()},
        **shares(runs),
        "n": sum(len(one.texts) for one in runs[0].measured.observed),
        "lengths": lexical.length_statistics([t for one in measured.observed for t in one.texts]),
        "intervals": {
            **intervals(measured, panel.settings),
            **_share_intervals(runs, panel.settings),
        },
        "by_key": by_key(measured, panel.readers.attributes, panel.settings, seeds_measured),
        "by_seed": [
            {
                "seed": seed,
                **{name: float(v.mean()) for name, v in run.measured.values.items()},
                **run.shares(),
            }
            for seed, run in zip(seeds, runs, strict=True)
        ],
    }


def pooled(seeds: Sequence[Measured]) -> Measured:
    """Pool several seeds into one: values are averaged, observations are joined prompt by prompt.

    With several seeds, intervals come from prompts and seeds, so the items to resample are kept.
    """
    if len(seeds) == 1:
        return seeds[0]
    first, prompts = seeds[0], range(len(seeds[0].observed))
    names = first.samples or (first.values if len(prompts) > 1 else ())
    return replace(
        first,
        values={name: np.mean([m.values[name] for m in seeds], axis=0) for name in first.values},
        samples={name: _resampled(seeds, name) for name in names},
        observed=[joined([m.observed[p] for m in seeds]) for p in prompts],
    )


def _resampled(seeds: Sequence[Measured], name: str) -> Sampled:
    """Return the statistic and runs of a metric over all seeds."""
    if name in seeds[0].samples:
        statistic = seeds[0].samples[name][0]
        return statistic, [run for m in seeds for run in m.samples[name][1]]
    return collapse.mean_of, [[[value] for value in m.values[name].tolist()] for m in seeds]


def compare_all(
    panel: Panel, runs: Mapping[str, Runs], roles: Roles | None, margins: Margins
) -> dict[str, Any]:
    """Return `comparisons`: each model against SFT and base or, without roles, against the first.

    Returns:
        `<name>.against.<other>.<metric>` for all but the first. With roles, every treatment also
        has `metric` with the `gap_closed` and `collapse_reduction` computed from it, the same for
        the other metrics as `by_<metric>`, and `short_of`.
    """
    measured = {name: pooled([run.measured for run in found]) for name, found in runs.items()}
    first, *others = runs

    def against(name: str, other: str) -> dict[str, Any]:
        found = differences(measured[name], measured[other], panel.settings)
        return {"against": {other: found}}

    if roles is None:
        return {name: against(name, first) for name in others}
    return {roles.sft: against(roles.sft, roles.base)} | {
        name: {
            **_gaps(panel, runs[roles.base], runs[roles.sft], runs[name]),
            **against(name, roles.sft),
            "short_of": short_of(runs[name], runs[roles.sft], margins),
        }
        for name in runs
        if name not in (roles.base, roles.sft)
    }


def short_of(treatment: Runs, sft: Runs, margins: Margins) -> list[dict[str, Any]]:
    """List where a treatment falls behind SFT by more than the margin.

    Means are compared, not the ends of their intervals.

    Returns:
        One `{metric, value, sft, margin}` per metric that falls behind.
    """
    found = []
    ours, theirs = _judged(treatment), _judged(sft)
    for metric in ours:
        value, reached, margin = ours[metric], theirs[metric], getattr(margins, metric)
        if _behind(metric, value, reached) > margin:
            found.append({"metric": metric, "value": value, "sft": reached, "margin": margin})
    return found


def _behind(metric: str, value: float, reached: float) -> float:
    """Return how much worse than `reached` a value is, in the unit of the metric's margin."""
    declared = METRICS.get(metric)  # adoption is not in METRICS; higher is better
    if declared is None:
        return reached - value
    change = value / reached - 1 if declared.is_ratio else value - reached
    return -declared.better * change


def _judged(runs: Runs) -> dict[str, float]:
    """Return adoption and the quality metrics that were measured."""
    values = pooled([run.measured for run in runs]).values
    known = [name for name in QUALITIES if name in values]
    adoption = shares(runs).get("adoption")
    adopted = {} if adoption is None else {"adoption": adoption}
    return {**adopted, **{name: float(values[name].mean()) for name in known}}


def _gaps(panel: Panel, base: Runs, sft: Runs, treatment: Runs) -> dict[str, Any]:
    found = {}
    for metric in panel.metrics:
        of_base, of_sft, of_treatment = (runs_of(side, metric) for side in (base, sft, treatment))
        if of_base and of_sft and of_treatment:
            found[metric] = gap(of_base, of_sft, of_treatment, panel.settings)
    main, *others = found
    return {
        "metric": main,
        **found[main],
        **{f"by_{metric}": found[metric] for metric in others},
    }


def gap(base: Sampled, sft: Sampled, treatment: Sampled, settings: ReadersConfig) -> dict[str, Any]:
    """Return `gap_closed` and `collapse_reduction` by one statistic, as in `results.json`."""
    statistic, of_base = base
    return collapse.compare(
        of_base, sft[1], treatment[1], statistic, settings.resamples, settings.seed
    ).as_json()


def runs_of(runs: Runs, metric: str) -> Sampled | None:
    """Return what to resample for a diversity metric: texts, if its statistic takes weights.

    Otherwise the prompts' values are resampled. The result is None if there is only one prompt to
    do so, or if the metric was not measured.
    """
    measured = [run.measured for run in runs]
    if metric not in measured[0].values:
        return None
    if metric in measured[0].samples:
        return _resampled(measured, metric)
    declared = METRICS.get(metric)
    if declared and declared.resampling:
        observed = [filter(declared.has_readings, one.observed) for one in measured]
        return declared.sampled([list(prompts) for prompts in observed])
    return _resampled(measured, metric) if len(measured[0].observed) > 1 else None


@dataclass(frozen=True, slots=True)
class Frontiers:
    """A description of the frontiers and each model's area, or the reason why there are none."""

    described: dict[str, Any] | None
    areas: Mapping[str, tuple[float, collapse.Estimate | None]]
    reason: str | None = None


def sweep_areas(panel: Panel, runs: Mapping[str, Mapping[float, Runs]]) -> Frontiers:
    """Return the `frontier_area` of each model; `runs` are by model and temperature, with NaNs."""
    all_runs = [run for by in runs.values() for found in by.values() for run in found]
    known = set.intersection(*(set(run.measured.values) for run in all_runs))
    quality = next((name for name in QUALITIES if name in known), None)
    if quality is None:
        return Frontiers(
            None, {}, "it takes a quality of every model's texts; choose one with --quality"
        )
    metric = next(name for name in panel.metrics if name in known)
    raw = {name: _sweep(by, quality, metric) for name, by in runs.items()}
    there = np.logical_and.reduce(
        [np.isfinite(one.quality + one.diversity).all(axis=0) for one in raw.values()]
    )
    if not there.any():
        return Frontiers(None, {}, f"no prompt has {quality} and {metric} for every model")
    sweeps = {n: Sweep(one.quality[:, there], one.diversity[:, there]) for n, one in raw.items()}
    box = common_box(list(sweeps.values()))
    if box is None:
        return Frontiers(None, {}, f"all models are the same in {quality} or {metric}")
    settings = panel.settings
    described = {
        "diversity": metric,
        "quality": f"minus the log of {quality}" if METRICS[quality].is_ratio else quality,
        "prompts": int(there.sum()),
        "box": {"quality": list(box.quality), "diversity": list(box.diversity)},
    }
    areas = {
        name: frontier_area(sweep, box, settings.resamples, settings.seed)
        for name, sweep in sweeps.items()
    }
    return Frontiers(described, areas)


def _sweep(by_temperature: Mapping[float, Runs], quality: str, metric: str) -> Sweep:
    """Return means over seeds by temperature and prompt; higher is better, and ratios are logs."""

    def values(name: str) -> FloatArray:
        return np.array(
            [
                np.mean([run.measured.values[name] for run in found], axis=0)
                for found in by_temperature.values()
            ]
        )

    found = values(quality)
    if METRICS[quality].is_ratio:
        found = np.log(found)
    return Sweep(METRICS[quality].better * found, values(metric))


def doubts(panel: Panel, roles: Roles | None) -> list[str]:
    """Return notes on what makes the comparison uncertain."""
    if roles is None:
        return []
    if panel.classifier is None:
        return [
            f"adoption is not known: fewer than {MINIMUM} distinct held-out answers of "
            f"{roles.base} or {roles.sft} to learn from; gap_closed is not shown without it."
        ]
    if panel.classifier.quality.auc < TOLD_APART:
        return [
            f"adoption is doubtful: the classifier tells {roles.sft} from {roles.base} with an AUC "
            f"of {panel.classifier.quality.auc:.2f} only, so SFT taught little that its form shows."
        ]
    return []


def shares(runs: Runs) -> dict[str, float | None]:
    """Return each share as its mean over seeds; None if it applies to no text."""
    by_run = [run.shares() for run in runs]
    return {name: mean(found[name] for found in by_run) for name in by_run[0]}


def _share_intervals(runs: Runs, settings: ReadersConfig) -> dict[str, dict[str, float]]:
    """Return the interval of each share that applies to every text."""
    complete = [
        name
        for name in runs[0].shown
        if all(flag is not None for run in runs for flags in run.shown[name] for flag in flags)
    ]
    sampled = {name: (collapse.mean_of, [run.shown[name] for run in runs]) for name in complete}
    return {name: of_share(ends) for name, ends in sampled_intervals(sampled, settings).items()}


def mean(values: Iterable[float | bool | None]) -> float | None:
    """Return the mean of the values that are not None; None if there are none."""
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None
