"""`anchored score`: compare how diverse the texts in files of generations are."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field
from rich.console import Console
from rich.progress import Progress

from anchored.config import versions
from anchored.data.generations import Generations, read_sets
from anchored.errors import ConfigError, DataError
from anchored.files import claim, released_if_unused, write_json, write_jsonl
from anchored.judge.judging import Plan, projected
from anchored.metrics import collapse, lexical
from anchored.metrics.entropy import Reading, entropy, first_value, semantic_entropy
from anchored.metrics.statistics import holm, mean_interval, paired_difference
from anchored.metrics.table import ENTROPY_SAMPLES, Sampled
from anchored.models.embedders import StaticEmbedder
from anchored.scoring.attributes import AttributeReader
from anchored.scoring.backends import JOURNAL, ReadersConfig, inquiry, load_readers
from anchored.scoring.between import between
from anchored.scoring.lengths import Cut, length_notes, measure_cut, truncation_notes
from anchored.scoring.measure import Measured, Readers, common_sizes, on_common_prompts
from anchored.scoring.shown import Shown, choose, fallen

UNREAD = 0.1  # share of texts without a known word above which a note says so


class ComparisonConfig(ReadersConfig):
    """How sets of texts are compared, and with which backends."""

    n: int | None = Field(default=None, ge=2, description="texts per prompt: the first n of each")
    compare: Literal["first", "pairwise"] = "first"
    truncate_words: int | None = Field(
        default=None, ge=1, description="also measure the first so many words of every text"
    )
    between: bool = Field(
        default=False, description="also measure how similar the sets' answers are to each other"
    )


class ScoreConfig(ComparisonConfig):
    """The files to score and the backends; saved with the result."""

    files: tuple[str, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Scored:
    """The content of `results.json`, the texts for the report, and the judge's failures."""

    results: dict[str, Any]
    shown: Shown
    failures: list[dict[str, Any]]


def run(config: ScoreConfig, out: Path | None) -> Scored:
    """Score the sets; write results.json and, if a judge failed, failures.jsonl into `out`.

    If the same run is repeated, the judge is asked only for what failed.

    Raises:
        ConfigError: a backend is unknown or cannot be loaded, `out` contains another run, or a
            judge has no file to keep its answers in.
        DataError: a file cannot be read, or the sets are not comparable.
        EndpointError: a server does not answer at all; its earlier answers are kept.
    """
    journal = _journal(config, out)
    if out is None:
        return _with_progress(config, journal)
    claim(out, config)
    with released_if_unused(out):
        found = _with_progress(config, journal)
    write_json(out / "results.json", found.results)
    write_failures(out / "failures.jsonl", found.failures)
    return found


def project(config: ScoreConfig, out: Path | None) -> Plan:
    """Project the judge's questions and cost, without asking it or writing anything.

    Raises:
        ConfigError: no field needs a judge.
        DataError: a file cannot be read, or the sets are not comparable.
    """
    asked = inquiry(config)
    if asked is None:
        raise ConfigError(
            "--dry-run: there is nothing to project without a judge; add --equivalence judge, "
            "--quality judge or --attributes judge"
        )
    return projected(asked, _read(config), _journal(config, out))


def _journal(config: ScoreConfig, out: Path | None) -> Path | None:
    if config.journal:
        return Path(config.journal)
    if out is None and config.judged:
        raise ConfigError(
            f"{config.judged[0]} judge: its paid answers need a file to be kept in; give --out or "
            "--journal"
        )
    return out and out / JOURNAL


def write_failures(path: Path, failures: Sequence[Mapping[str, Any]]) -> None:
    """Write one record per failed judgement; without failures, remove the file."""
    if failures:
        write_jsonl(path, failures)
    else:
        path.unlink(missing_ok=True)


def _with_progress(config: ScoreConfig, journal: Path | None) -> Scored:
    console = Console(stderr=True)
    sets = _read(config)
    readers = load_readers(config, sets, journal, console)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("scoring", total=None)
        return compared(
            config,
            sets,
            readers,
            lambda done, total: bar.update(task, completed=done, total=total),
            config.files,
        )


def score(
    config: ScoreConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
    journal: Path | None = None,
) -> dict[str, Any]:
    """Return the figures of every set, with intervals, and the differences between sets.

    Args:
        config: files and backends.
        progress: called with the number of prompts done and the total over all sets.
        journal: file to keep a judge's answers in; None discards them.

    Returns:
        `models.<name>.<metric>` with `intervals`, `comparisons.<name>.against.<other>.<metric>`,
        `at_equal_length` (`models` and `comparisons` of the texts' first words), `between`,
        `backends`, `judge`, `config`, `versions`, `seeds`, `notes`, the number of `prompts` and the
        number of texts per prompt, `k`.

    Raises:
        ConfigError: a backend is unknown or cannot be loaded.
        DataError: a file cannot be read, or the sets are not comparable.
        EndpointError: a server does not answer at all.
    """
    return scored(config, progress, journal).results


def scored(
    config: ScoreConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
    journal: Path | None = None,
) -> Scored:
    """Run `score`, but return everything of `Scored`; arguments and errors are the same."""
    sets = _read(config)
    return compared(config, sets, load_readers(config, sets, journal), progress, config.files)


def compared(
    config: ComparisonConfig,
    sets: Sequence[Generations],
    readers: Readers,
    progress: Callable[[int, int], None],
    files: Sequence[str] = (),
) -> Scored:
    """Score sets that are already in memory.

    Args:
        config: how to compare them.
        sets: the result of `side_by_side`.
        readers: the backends.
        progress: called with the number of prompts done and the total over all sets.
        files: the files that the sets were read from, if any.

    Raises:
        DataError: a set lacks what a backend reads.
    """
    _check_two_texts(sets)
    prompts, k = len(sets[0].prompts), len(sets[0].texts[0])
    backends = readers.backends(sets)
    sizes = common_sizes(sets)
    steps, passes = itertools.count(1), 2 if config.truncate_words else 1

    def step() -> None:
        progress(next(steps), prompts * len(sets) * passes)

    whole = {found.name: readers.measure(found, sizes, step) for found in sets}
    measured, lacking = on_common_prompts(whole)
    models = {
        found.name: _model(found, measured[found.name], readers, config)
        | (_origin(path) if path else {})
        | {"by_prompt": by_prompt(found.prompts, whole[found.name])}
        for found, path in itertools.zip_longest(sets, files)
    }
    cut = config.truncate_words and measure_cut(sets, readers, config.truncate_words, step)
    results = {
        "command": "score",
        "config": config.model_dump(mode="json"),
        "versions": versions(),
        "seeds": [config.seed],
        "prompts": prompts,
        "k": k,
        "backends": backends,
        "judge": readers.answers and readers.answers.as_json(),
        "models": models,
        "comparisons": _comparisons(measured, config),
        "at_equal_length": _at_equal_length(cut, readers, config) if cut else None,
        "between": between(measured, config) if config.between else None,
        "notes": [
            *(note for found in sets for note in found.notes),
            *(*shortcomings(prompts, k, readers), *unread_notes(whole, readers), *lacking),
            *truncation_notes(models),
            *([] if cut else length_notes(models)),
        ],
    }
    failures = readers.answers.failures if readers.answers else []
    shown = replace(choose(sets, measured), fallen=tuple(fallen(sets, measured, results)))
    return Scored(results, shown, failures)


def _at_equal_length(cut: Cut, readers: Readers, config: ComparisonConfig) -> dict[str, Any]:
    """Return the figures of the texts' first words, in the same form as those of whole texts."""
    return {
        "words": cut.words,
        "models": {
            found.name: _model(found, cut.measured[found.name], readers, config)
            for found in cut.sets
        },
        "comparisons": _comparisons(cut.measured, config),
        "notes": list(cut.notes),
    }


def _read(config: ScoreConfig) -> list[Generations]:
    sets = read_sets([Path(path) for path in config.files], config.n, config.seed)
    _check_two_texts(sets, config.files[0])
    return sets


def _check_two_texts(sets: Sequence[Generations], name: str = "texts") -> None:
    if len(sets[0].texts[0]) < 2:
        raise DataError(
            f"{name}: there is one text per prompt, and diversity needs at least two; sample each "
            "prompt several times, and write one record per prompt with its generations"
        )


def _origin(path: str) -> dict[str, str]:
    return {"file": path, "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}


def by_prompt(prompts: Sequence[str], measured: Measured) -> list[dict[str, Any]]:
    """Return each prompt with its figures; None where a judge failed."""
    columns = {name: values.tolist() for name, values in measured.values.items()}
    return [
        {
            "prompt": prompt,
            **{name: v[p] if math.isfinite(v[p]) else None for name, v in columns.items()},
        }
        for p, prompt in enumerate(prompts)
    ]


def _model(
    found: Generations, measured: Measured, readers: Readers, config: ReadersConfig
) -> dict[str, Any]:
    texts = [text for answers in found.texts for text in answers]
    return {
        **{name: float(values.mean()) for name, values in measured.values.items()},
        "n": len(texts),
        "intervals": intervals(measured, config),
        "truncation_rate": found.truncation_rate,
        "lengths": lexical.length_statistics(texts),
        "by_key": by_key(measured, readers.attributes, config),
    }


def intervals(measured: Measured, config: ReadersConfig) -> dict[str, dict[str, float]]:
    """Return `{low, high}` of each figure with an interval, over prompts or one prompt's texts."""
    if measured.samples:
        return sampled_intervals(measured.samples, config)
    found = {
        name: mean_interval(values, config.resamples, config.seed)
        for name, values in measured.values.items()
    }
    return {name: {"low": e.low, "high": e.high} for name, e in found.items()}


def sampled_intervals(
    samples: Mapping[str, Sampled], config: ReadersConfig
) -> dict[str, dict[str, float]]:
    """Return `{low, high}` of each figure by resampling its texts."""
    found = {
        name: collapse.interval(runs, statistic, config.resamples, config.seed)
        for name, (statistic, runs) in samples.items()
    }
    return {name: {"low": e.low, "high": e.high} for name, e in found.items()}


def of_share(ends: Mapping[str, float]) -> dict[str, float]:
    """Clip the ends of a share's interval to 0..1."""
    return {"low": max(ends["low"], 0.0), "high": min(ends["high"], 1.0)}


def by_key(
    measured: Measured,
    attributes: AttributeReader | None,
    config: ReadersConfig,
    runs: Sequence[Measured] = (),
) -> dict[str, Any]:
    """Return entropy and most frequent values of each attribute over all texts of the set.

    These entropies include the differences between prompts. `within_prompts`, the mean over
    prompts, does not; `semantic_entropy` is its mean over attributes. With several seeds, given as
    `runs`, `measured` holds the texts of all seeds and entropies are means over seeds.
    """
    runs = runs or [measured]
    if attributes is None or not _readings(measured):
        return {}
    pooled = semantic_entropy(_readings(measured), attributes.keys).by_key
    by_run = [semantic_entropy(_readings(run), attributes.keys).by_key for run in runs]
    return {
        key: {
            "entropy": float(np.mean([found[key].entropy for found in by_run])),
            "miller_madow": float(np.mean([found[key].miller_madow for found in by_run])),
            "distinct": found.distinct,
            "top": [list(pair) for pair in found.top],
            "within_prompts": _within_prompts(runs, key, config),
        }
        for key, found in pooled.items()
    }


def _readings(measured: Measured) -> list[Reading]:
    return [reading for one in measured.observed for reading in one.readings]


def _within_prompts(
    runs: Sequence[Measured], key: str, config: ReadersConfig
) -> dict[str, float] | None:
    """Return the mean over prompts; None for one prompt, or with too few texts for an entropy."""
    counted = [[one.readings for one in run.observed if one.readings] for run in runs]
    if len(counted[0]) < 2 or min(len(a) for run in counted for a in run) < ENTROPY_SAMPLES:
        return None
    values = [[entropy([first_value(r, key) for r in a]) for a in run] for run in counted]
    if len(values) == 1:
        return mean_interval(values[0], config.resamples, config.seed).as_json()
    by_seed = [[[value] for value in run] for run in values]
    return collapse.interval(by_seed, collapse.mean_of, config.resamples, config.seed).as_json()


def _comparisons(measured: Mapping[str, Measured], config: ComparisonConfig) -> dict[str, Any]:
    """Compare each set with the first or, if pairwise, with every set before it."""
    names = list(measured)
    found: dict[str, Any] = {}
    for i, name in enumerate(names[1:], 1):
        others = names[:1] if config.compare == "first" else names[:i]
        found[name] = {
            "against": {
                other: differences(measured[name], measured[other], config) for other in others
            }
        }
    return found


def differences(first: Measured, second: Measured, config: ReadersConfig) -> dict[str, Any]:
    """Return first minus second per metric: `{mean, low, high, p, p_holm, detectable}`."""
    if first.samples:
        return {
            name: _of_samples(runs, second.samples[name][1], statistic, config)
            for name, (statistic, runs) in first.samples.items()
        }
    found = {
        name: paired_difference(
            values, second.values[name], config.resamples, seed=config.seed
        ).as_json()
        for name, values in first.values.items()
    }
    adjusted = holm([one["p"] for one in found.values()])
    return {
        name: {**one, "p_holm": p} for (name, one), p in zip(found.items(), adjusted, strict=True)
    }


def _of_samples(runs: Any, others: Any, statistic: Any, config: ReadersConfig) -> dict[str, Any]:
    """Return one prompt's difference with an interval from its samples, and no p-value."""
    found = collapse.difference(runs, others, statistic, config.resamples, config.seed)
    return {**found.as_json(), "p": None, "p_holm": None, "detectable": None}


def shortcomings(prompts: int, k: int, readers: Readers) -> list[str]:
    """Return notes on figures that are left out, or that say less than they seem to."""
    notes = []
    if prompts == 1:
        notes.append(
            "One prompt: intervals come from resampling its texts, and only some figures have one; "
            "they say nothing about other prompts."
        )
    if readers.attributes and k < ENTROPY_SAMPLES:
        notes.append(
            f"semantic_entropy is left out: it takes {ENTROPY_SAMPLES} texts a prompt, there are "
            f"{k}."
        )
    if readers.answers and (failed := len(readers.answers.failures)):
        notes.append(
            f"The judge failed on {failed} of {len(readers.answers.rows)} questions; entropies are "
            "over as many texts of each prompt as every set has answers for."
        )
    return notes


def unread_notes(measured: Mapping[str, Measured], readers: Readers) -> list[str]:
    """Return a note on each set of which the static embedder knows no word of many texts."""
    if not isinstance(readers.embedder, StaticEmbedder):
        return []
    notes = []
    for name, one in measured.items():
        unread = StaticEmbedder.wordless(np.concatenate(one.vectors))
        if unread.mean() > UNREAD:
            notes.append(
                f"{name}: the embedder knows no word of {unread.sum()} of {len(unread)} texts and "
                "takes them for equal, so dissimilarity, nearest_distance and vendi are too low; "
                "they may be empty or of another script: choose another --embedder."
            )
    return notes
