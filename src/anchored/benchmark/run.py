"""`anchored evaluate`: sample models on benchmarks and compute their figures."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from anchored.benchmark import compare
from anchored.benchmark.benchmarks import Benchmark, load_benchmark
from anchored.benchmark.compare import Frontiers, Panel, Runs
from anchored.benchmark.generate import Place
from anchored.benchmark.jobs import (
    SAMPLES,
    Job,
    check_sources,
    claim_all,
    has_samples,
    plan,
    sample_all,
)
from anchored.benchmark.settings import EvaluateConfig
from anchored.config import to_yaml, versions
from anchored.data.generations import Generations, read_sets
from anchored.errors import AnchoredError, ConfigError
from anchored.files import CONFIG_NAME, atomic_write, read_jsonl, write_json
from anchored.scoring.backends import JOURNAL, check_readers, load_readers
from anchored.scoring.lengths import length_notes, truncation_notes
from anchored.scoring.measure import Measured, common_sizes
from anchored.scoring.score import by_prompt, shortcomings, write_failures
from anchored.scoring.shown import Shown, choose, fallen


@dataclass(frozen=True)
class Evaluated:
    """The content of `results.json`, and the texts that the report shows, by benchmark.

    `results["benchmarks"]` holds the return value of `benchmark_results` for each benchmark; the
    fields of the first benchmark are at the top level of `results` too.
    """

    results: dict[str, Any]
    shown: dict[str, Shown]


def run(config: EvaluateConfig) -> Evaluated:
    """Sample what is missing and compare; write results.json and the failures of a judge.

    Raises:
        ConfigError: a model, benchmark or backend is unknown or cannot be loaded, or `out`
            contains something else.
        DataError: existing samples are of other weights, or are not comparable.
        EndpointError: an endpoint does not answer.
    """
    benchmarks = _benchmarks(config)
    check_sources(config)
    check_readers(config.readers)
    jobs = plan(config, benchmarks)
    _check_own(config)
    with _released_if_empty(config.out):
        _claim(jobs, config)
        sample_all(jobs, config, Console(stderr=True))
    made = {
        "command": "evaluate",
        "config": config.model_dump(mode="json"),
        "versions": versions(),
        "seeds": list(config.seeds),
    }
    found, shown = {}, {}
    for one in benchmarks:
        found[one.name], shown[one.name] = benchmark_results(one, jobs, config)
    results = {**made, **found[benchmarks[0].name], "benchmarks": found}
    write_json(config.out / "results.json", results)
    return Evaluated(results, shown)


def _benchmarks(config: EvaluateConfig) -> list[Benchmark]:
    found = [load_benchmark(spec, config.limit) for spec in config.benchmarks]
    if len({one.name for one in found}) != len(found):
        names = ", ".join(one.name for one in found)
        raise ConfigError(f"benchmarks: {names}: two have the same name; rename a file")
    return [
        replace(
            one,
            samples=config.samples or one.samples,
            max_tokens=config.max_tokens or one.max_tokens,
        )
        for one in found
    ]


def _check_own(config: EvaluateConfig) -> None:
    """Reject a folder of another command."""
    saved = config.out / CONFIG_NAME
    others = config.out.is_dir() and any(config.out.iterdir())
    if others and not (saved.is_file() and (config.out / SAMPLES).is_dir()):
        raise ConfigError(f"{config.out}: not an evaluation's folder; choose an empty or new one")


def _claim(jobs: Sequence[Job], config: EvaluateConfig) -> None:
    """Claim the folders; the configuration, which may change between runs, is written last.

    In a new folder it is also written first, so that a run that resumes after a kill recognises the
    folder as its own.
    """
    saved = config.out / CONFIG_NAME
    (config.out / SAMPLES).mkdir(parents=True, exist_ok=True)
    if not saved.is_file():
        atomic_write(saved, to_yaml(config))
    claim_all(jobs, config)
    atomic_write(saved, to_yaml(config))


@contextmanager
def _released_if_empty(out: Path) -> Iterator[None]:
    """Remove the folder again if the body fails on its input before there is any sample."""
    try:
        yield
    except AnchoredError:
        made = any(has_samples(folder) for folder in out.glob(f"{SAMPLES}/*/*"))
        if not made and {path.name for path in out.iterdir()} == {CONFIG_NAME, SAMPLES}:
            shutil.rmtree(out)
        raise


def benchmark_results(
    benchmark: Benchmark, jobs: Sequence[Job], config: EvaluateConfig
) -> tuple[dict[str, Any], Shown]:
    """Return the results of one benchmark, and texts to show.

    Returns:
        `benchmark`, `temperature`, `prompts` (their number), `k` (samples per prompt), `backends`,
        `judge`, `models`, `comparisons`, `frontier` (of a sweep with a quality) and `notes`; and
        some texts of each model's first seed.

    Raises:
        ConfigError: a backend cannot be loaded.
        DataError: a file of samples cannot be read.
    """
    own = [job for job in jobs if job.benchmark.name == benchmark.name]
    sets = dict(zip(own, read_sets([job.path for job in own]), strict=True))
    panel = _panel(benchmark, sets, config)
    read = _read(panel, sets, config)
    runs, cut = compare.on_same_prompts(read)
    main = {name: by[config.main_temperature] for name, by in runs.items()}
    sweep = len(config.temperatures) > 1
    frontiers = compare.sweep_areas(panel, read) if sweep else compare.Frontiers(None, {})
    asked = next(iter(sets.values())).prompts
    models = {
        name: {
            **_model(panel, by, config),
            **_described(name, own, config),
            "by_prompt": by_prompt(asked, compare.pooled(_main(read[name], config))),
        }
        for name, by in runs.items()
    }
    _add_areas(models, frontiers)
    measured = [found for job, found in sets.items() if not job.place.held_out]
    answers = panel.readers.answers
    failures = answers.failures if answers else []
    write_failures(config.out / f"failures-{benchmark.name}.jsonl", failures)
    results = {
        "benchmark": benchmark.as_json(),
        "temperature": config.main_temperature,
        "prompts": len(benchmark.prompts),
        "k": benchmark.samples,
        "backends": panel.backends(measured),
        "judge": answers and answers.as_json(),
        "models": models,
        "comparisons": compare.compare_all(panel, main, config.roles, config.margins),
        "frontier": frontiers.described,
        "notes": [
            *shortcomings(len(benchmark.prompts), benchmark.samples, panel.readers),
            *compare.doubts(panel, config.roles),
            *_notes(models, frontiers),
            *truncation_notes(models),
            *length_notes(models, "Score the samples with --truncate-words {} for equal lengths."),
            *cut,
        ],
    }
    return results, _shown(sets, main, config, results)


def _main(by: Mapping[float, Runs], config: EvaluateConfig) -> list[Measured]:
    return [run.measured for run in by[config.main_temperature]]


def _shown(
    sets: Mapping[Job, Generations],
    runs: Mapping[str, Runs],
    config: EvaluateConfig,
    results: Mapping[str, Any],
) -> Shown:
    first = Place(config.main_temperature, config.seeds[0])
    texts = {job.model: found for job, found in sets.items() if job.place == first}
    named = [replace(texts[name], name=name) for name in runs]
    measured = {name: found[0].measured for name, found in runs.items()}
    return replace(choose(named, measured), fallen=tuple(fallen(named, measured, results)))


def _add_areas(models: Mapping[str, dict[str, Any]], frontiers: Frontiers) -> None:
    for name, (area, estimate) in frontiers.areas.items():
        models[name]["frontier_area"] = area
        if estimate:
            ends = {"low": estimate.low, "high": estimate.high}
            models[name]["intervals"]["frontier_area"] = ends


def _notes(models: Mapping[str, Mapping[str, Any]], frontiers: Frontiers) -> list[str]:
    unread = [
        f"{name}: {model['malformed']} annotations could not be read, and their answers are empty."
        for name, model in models.items()
        if model["malformed"]
    ]
    if frontiers.reason:
        unread.append(f"frontier_area is left out: {frontiers.reason}.")
    return unread


def _panel(benchmark: Benchmark, sets: Mapping[Job, Generations], config: EvaluateConfig) -> Panel:
    def held_out(name: str) -> list[str]:
        return [
            text
            for job, found in sets.items()
            if job.place.held_out and job.model == name
            for texts in found.texts
            for text in texts
        ]

    roles = config.roles
    classifier = (
        compare.train_classifier(held_out(roles.sft), held_out(roles.base)) if roles else None
    )
    measured = [found for job, found in sets.items() if not job.place.held_out]
    return Panel(
        load_readers(config.readers, measured, _journal(config), Console(stderr=True)),
        config.readers,
        benchmark.metrics,
        classifier,
    )


def _journal(config: EvaluateConfig) -> Path:
    """Return the file of the judge's answers, one for all benchmarks."""
    return Path(config.readers.journal or config.out / JOURNAL)


def _read(
    panel: Panel, sets: Mapping[Job, Generations], config: EvaluateConfig
) -> dict[str, dict[float, Runs]]:
    """Return one reading per seed, by model and temperature."""
    wanted = {job: found for job, found in sets.items() if not job.place.held_out}
    sizes = common_sizes(list(wanted.values()))
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading", total=len(wanted) * len(sizes))
        read = {
            (job.model, job.place): panel.read(found, sizes, lambda: bar.advance(task))
            for job, found in wanted.items()
        }
    return {
        name: {
            temperature: [read[name, Place(temperature, seed)] for seed in config.seeds]
            for temperature in config.temperatures
        }
        for name in config.order
    }


def _model(panel: Panel, by: Mapping[float, Runs], config: EvaluateConfig) -> dict[str, Any]:
    """Return the figures at the main temperature, and `by_temperature` if there are several."""
    found = {t: compare.figures(panel, runs, config.seeds) for t, runs in by.items()}
    main = {**found[config.main_temperature], "temperature": config.main_temperature}
    if len(found) == 1:
        return main
    sweep = [
        {"temperature": t, **{k: v for k, v in one.items() if k not in ("by_key", "by_seed")}}
        for t, one in found.items()
    ]
    return {**main, "by_temperature": sweep}


def _described(name: str, jobs: Sequence[Job], config: EvaluateConfig) -> dict[str, Any]:
    """Return where a model's samples are, and how many of them are malformed or unfinished."""
    own = [job for job in jobs if job.model == name and not job.place.held_out]
    main = [job for job in own if job.place.temperature == config.main_temperature]
    rows = [row for job in main for _, row in read_jsonl(job.path)]
    dtypes = sorted({row["dtype"] for row in rows if row.get("dtype")})
    return {
        "source": config.models[name].source,
        "dtype": ", ".join(dtypes) or None,
        "weights": sorted({job.weights for job in own}),
        "malformed": sum(row["malformed"] for row in rows),
        "finished": sum(row["finished"] for row in rows) / len(rows),
        "truncation_rate": sum(not row["finished"] for row in rows) / len(rows),
        "files": [str(job.path.relative_to(config.out)) for job in own],
    }
