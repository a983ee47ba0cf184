"""`anchored score`: files of generations in, a comparison of how diverse they are out."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from rich.console import Console
from rich.progress import Progress

from anchored.config import versions
from anchored.data.generations import Generations, read_sets
from anchored.errors import ConfigError, DataError
from anchored.files import claim, released_if_unused, write_json, write_jsonl
from anchored.judge.judging import Plan, projected
from anchored.metrics import collapse, lexical
from anchored.metrics.entropy import entropy, first_value, semantic_entropy
from anchored.metrics.statistics import holm, mean_interval, paired_difference
from anchored.metrics.table import ENTROPY_SAMPLES, Sampled
from anchored.scoring.attributes import AttributeReader
from anchored.scoring.backends import JOURNAL, ReadersConfig, inquiry, load_readers
from anchored.scoring.measure import Measured, Readers, common_sizes, on_common_prompts
from anchored.scoring.shown import Shown, choose


class ScoreConfig(ReadersConfig):
    """What to score and by which backends; saved with the result."""

    files: tuple[str, ...] = Field(min_length=1)
    n: int | None = Field(default=None, ge=2, description="texts a prompt: the first n of each")
    compare: Literal["first", "pairwise"] = "first"


@dataclass(frozen=True)
class Scored:
    """`results.json`, the texts that a report shows beside it, and the judge's failures."""

    results: dict[str, Any]
    shown: Shown
    failures: list[dict[str, Any]]


def run(config: ScoreConfig, out: Path | None) -> Scored:
    """Score the sets; write results.json and, where a judge failed, failures.jsonl into `out`.

    The same run again asks the judge only for what failed.

    Raises:
        ConfigError: a backend is unknown or cannot be loaded, `out` holds another run, or a judge
            has no file to keep its answers in.
        DataError: a file cannot be read, or the sets do not compare.
        EndpointError: a server does not answer at all; what it answered before is kept.
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
    """What the judge would be asked and cost, without asking it or writing anything.

    Raises:
        ConfigError: no judge is wanted.
        DataError: a file cannot be read, or the sets do not compare.
    """
    asked = inquiry(config)
    if asked is None:
        raise ConfigError("--dry-run: no judge is asked for; there is nothing to project")
    return projected(asked, _read(config), _journal(config, out))


def _journal(config: ScoreConfig, out: Path | None) -> Path | None:
    if config.journal:
        return Path(config.journal)
    if out is None and config.judged:
        raise ConfigError(
            f"{config.judged[0]} judge: its answers are paid for and must be kept; give --out or "
            "--journal"
        )
    return out and out / JOURNAL


def write_failures(path: Path, failures: Sequence[Mapping[str, Any]]) -> None:
    """Write the judgements that failed, one record per failure; without any there is no file."""
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
        return _compared(
            config, sets, readers, lambda done, total: bar.update(task, completed=done, total=total)
        )


def score(
    config: ScoreConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
    journal: Path | None = None,
) -> dict[str, Any]:
    """The figures of every set, with intervals, and the differences between sets.

    Args:
        config: files and backends.
        progress: called with the prompts done and the prompts of all sets.
        journal: where a judge's answers are kept; None forgets them.

    Returns:
        `models.<name>.<metric>` with `intervals`, `comparisons.<name>.against.<other>.<metric>`,
        `backends`, `judge`, `config`, `versions`, `seeds`, `notes`, `prompts` P and texts a prompt
        `k`.

    Raises:
        ConfigError: a backend is unknown or cannot be loaded.
        DataError: a file cannot be read, or the sets do not compare.
        EndpointError: a server does not answer at all.
    """
    return scored(config, progress, journal).results


def scored(
    config: ScoreConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
    journal: Path | None = None,
) -> Scored:
    """`score`, which see for arguments and errors, with what stands beside the results."""
    sets = _read(config)
    return _compared(config, sets, load_readers(config, sets, journal), progress)


def _compared(
    config: ScoreConfig,
    sets: Sequence[Generations],
    readers: Readers,
    progress: Callable[[int, int], None],
) -> Scored:
    prompts, k = len(sets[0].prompts), len(sets[0].texts[0])
    backends = readers.backends(sets)
    sizes = common_sizes(sets)
    steps = itertools.count(1)
    measured, lacking = on_common_prompts(
        {
            found.name: readers.measure(
                found, sizes, lambda: progress(next(steps), prompts * len(sets))
            )
            for found in sets
        }
    )
    results = {
        "command": "score",
        "config": config.model_dump(mode="json"),
        "versions": versions(),
        "seeds": [config.seed],
        "prompts": prompts,
        "k": k,
        "backends": backends,
        "judge": readers.answers and readers.answers.as_json(),
        "models": {
            found.name: _model(found, path, measured[found.name], readers, config)
            for found, path in zip(sets, config.files, strict=True)
        },
        "comparisons": _comparisons(measured, config),
        "notes": [*shortcomings(prompts, k, readers), *lacking],
    }
    failures = readers.answers.failures if readers.answers else []
    return Scored(results, choose(sets, measured), failures)


def _read(config: ScoreConfig) -> list[Generations]:
    sets = read_sets([Path(path) for path in config.files], config.n)
    if len(sets[0].texts[0]) < 2:
        raise DataError(
            f"{config.files[0]}: holds one text a prompt, and diversity needs two or more; "
            "sample each prompt several times, and write one row a prompt with generations"
        )
    return sets


def _model(
    found: Generations, path: str, measured: Measured, readers: Readers, config: ScoreConfig
) -> dict[str, Any]:
    texts = [text for answers in found.texts for text in answers]
    return {
        **{name: float(values.mean()) for name, values in measured.values.items()},
        "n": len(texts),
        "intervals": intervals(measured, config),
        "lengths": lexical.length_statistics(texts),
        "by_key": by_key(measured, readers.attributes, config),
        "file": path,
        "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
    }


def intervals(measured: Measured, config: ReadersConfig) -> dict[str, dict[str, float]]:
    """`{low, high}` of each figure that has an interval, over prompts or, with one, its texts."""
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
    """`{low, high}` of each figure by resampling its texts."""
    found = {
        name: collapse.interval(runs, statistic, config.resamples, config.seed)
        for name, (statistic, runs) in samples.items()
    }
    return {name: {"low": e.low, "high": e.high} for name, e in found.items()}


def of_share(ends: Mapping[str, float]) -> dict[str, float]:
    """The ends of a share's interval, which are shares too."""
    return {"low": max(ends["low"], 0.0), "high": min(ends["high"], 1.0)}


def by_key(
    measured: Measured,
    attributes: AttributeReader | None,
    config: ReadersConfig,
    runs: Sequence[Measured] = (),
) -> dict[str, Any]:
    """Entropy and most frequent values of each attribute over all texts of the set.

    What the prompts differ by is in these entropies; `within_prompts`, the mean over prompts, is
    without it, and is what `semantic_entropy` is the mean of. Of several seeds, which are `runs`,
    `measured` holds all texts; `within_prompts` is the mean over seeds.
    """
    readings = [reading for one in measured.observed for reading in one.readings]
    if attributes is None or not readings:
        return {}
    return {
        key: {
            "entropy": found.entropy,
            "miller_madow": found.miller_madow,
            "distinct": found.distinct,
            "top": [list(pair) for pair in found.top],
            "within_prompts": _within_prompts(runs or [measured], key, config),
        }
        for key, found in semantic_entropy(readings, attributes.keys).by_key.items()
    }


def _within_prompts(
    runs: Sequence[Measured], key: str, config: ReadersConfig
) -> dict[str, float] | None:
    """None for one prompt, and where prompts have too few texts for an entropy."""
    counted = [[one.readings for one in run.observed if one.readings] for run in runs]
    if len(counted[0]) < 2 or min(len(a) for run in counted for a in run) < ENTROPY_SAMPLES:
        return None
    values = [[entropy([first_value(r, key) for r in a]) for a in run] for run in counted]
    if len(values) == 1:
        return mean_interval(values[0], config.resamples, config.seed).as_json()
    by_seed = [[[value] for value in run] for run in values]
    return collapse.interval(by_seed, collapse.mean_of, config.resamples, config.seed).as_json()


def _comparisons(measured: Mapping[str, Measured], config: ScoreConfig) -> dict[str, Any]:
    """Each set minus the first or, pairwise, minus every set before it."""
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
    """First minus second, metric by metric: `{mean, low, high, p, p_holm, detectable}`."""
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
    """One prompt: an interval of the difference from its samples, and no p-value."""
    found = collapse.difference(runs, others, statistic, config.resamples, config.seed)
    return {**found.as_json(), "p": None, "p_holm": None, "detectable": None}


def shortcomings(prompts: int, k: int, readers: Readers) -> list[str]:
    """Notes on figures that are left out, or that say less than they seem to."""
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
