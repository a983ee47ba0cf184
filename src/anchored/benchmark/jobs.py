"""List the files of samples that an evaluation needs, and make the missing ones."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from anchored.benchmark.benchmarks import Benchmark
from anchored.benchmark.generate import (
    ENDPOINT,
    Answerer,
    ModelSource,
    Place,
    is_complete,
    load_answerer,
    made_before,
    make,
    sample_config,
    weights_of,
)
from anchored.benchmark.settings import EvaluateConfig
from anchored.config import Config
from anchored.files import CONFIG_NAME, claim
from anchored.models.precision import Dtype
from anchored.sampling.engine import SampleConfig
from anchored.scoring.backends import check_folder

SAMPLES = "samples"
PROBE = 16  # tokens per sequence that the speed is estimated from


class Settings(Config):
    """Everything but place and weights that samples depend on; a folder belongs to one of these."""

    source: str
    annotation: bool
    pins: tuple[str, ...]
    ask: str
    dtype: Dtype
    benchmark: str
    prompts_sha256: str
    samples: int
    max_tokens: int
    sample: SampleConfig


@dataclass(frozen=True, slots=True)
class Job:
    """One file of samples to be made."""

    model: str
    source: ModelSource
    benchmark: Benchmark
    place: Place
    folder: Path
    weights: str

    @property
    def path(self) -> Path:
        """The path of the file."""
        return self.folder / self.place.file

    @property
    def total(self) -> int:
        """The number of samples in the file."""
        return len(self.benchmark.prompts) * self.benchmark.samples


def check_sources(config: EvaluateConfig) -> None:
    """Check that every model's folder exists, before any model is loaded.

    Raises:
        ConfigError: a folder does not exist.
    """
    for model in config.models.values():
        if not model.source.startswith(ENDPOINT):
            for source in dict.fromkeys(model.of_seed(seed) for seed in config.seeds):
                check_folder(f"model {source!r}", source)


def plan(config: EvaluateConfig, benchmarks: Sequence[Benchmark]) -> list[Job]:
    """List every file of samples, with those of one model and seed next to each other.

    Base and SFT have additional held-out samples, which the adoption classifier is trained on.
    """
    held_out = (config.roles.base, config.roles.sft) if config.roles else ()
    jobs = []
    for name, seed in itertools.product(config.order, config.seeds):
        source = config.models[name]
        weights = weights_of(source, seed)
        places = [Place(temperature, seed) for temperature in config.temperatures]
        if name in held_out:
            places.append(Place(config.main_temperature, seed, held_out=True))
        for benchmark, place in itertools.product(benchmarks, places):
            folder = config.out / SAMPLES / name / benchmark.name
            jobs.append(Job(name, source, benchmark, place, folder, weights))
    return jobs


def claim_all(jobs: Sequence[Job], config: EvaluateConfig) -> None:
    """Claim each folder of samples for these settings; a folder without samples is taken over.

    Raises:
        ConfigError: a folder has samples that were made with other settings.
    """
    for folder, job in {job.folder: job for job in jobs}.items():
        if not has_samples(folder):
            (folder / CONFIG_NAME).unlink(missing_ok=True)
            for path in folder.glob("*.jsonl*"):  # empty, of a run that ended before a first chunk
                path.unlink()
        claim(folder, _settings(job, config))


def has_samples(folder: Path) -> bool:
    """Return True if a model's folder for a benchmark has at least one sample."""
    return any(path.stat().st_size for path in folder.glob("*.jsonl*"))


def sample_all(jobs: Sequence[Job], config: EvaluateConfig, console: Console) -> None:
    """Print the amount of work, then make every missing file.

    Raises:
        ConfigError: a model cannot be loaded.
        DataError: a file has samples of other weights.
        EndpointError: an endpoint does not answer.
    """
    pending = [job for job in jobs if not is_complete(job.path, job.weights)]
    chunk = config.sample.batch_size
    done = {job.path: made_before(job.path, job.total, chunk) for job in jobs}
    total = sum(job.total for job in jobs)
    missing = total - sum(done.values())
    console.print(
        f"evaluate: {len(config.models)} models, {total} samples, {total - missing} of them there",
        highlight=False,
        soft_wrap=True,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    shown = console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not shown) as bar:
        task = bar.add_task("sampling", total=missing)
        for i, (answerer, group) in enumerate(_by_model(pending, config)):
            if i == 0:
                said = _estimate(answerer, group[0], config, pending, done)
                console.print(said, highlight=False, soft_wrap=True)
            for job in group:
                bar.update(task, description=f"{job.model}, {job.benchmark.name}")
                settings = sample_config(config.sample, job.benchmark, job.place)
                make(
                    job.path,
                    answerer,
                    job.benchmark,
                    settings,
                    job.model,
                    lambda n: bar.advance(task, n),
                )


def _by_model(
    pending: Sequence[Job], config: EvaluateConfig
) -> Iterator[tuple[Answerer, list[Job]]]:
    """Yield each model with all its jobs; only one model is in memory at a time."""
    for _, jobs in itertools.groupby(pending, lambda job: (job.model, job.place.seed)):
        group = list(jobs)
        first = group[0]
        yield (
            load_answerer(first.source, first.place.seed, first.weights, config.concurrency),
            group,
        )


def _settings(job: Job, config: EvaluateConfig) -> Settings:
    return Settings(
        source=job.source.source,
        annotation=job.source.annotation,
        pins=job.source.pins,
        ask=job.source.ask,
        dtype=job.source.dtype,
        benchmark=job.benchmark.name,
        prompts_sha256=job.benchmark.sha256,
        samples=job.benchmark.samples,
        max_tokens=job.benchmark.max_tokens,
        sample=config.sample,
    )


def _estimate(
    answerer: Answerer,
    job: Job,
    config: EvaluateConfig,
    pending: Sequence[Job],
    done: Mapping[Path, int],
) -> str:
    """Return an upper bound of the tokens to sample and of the time, from this model's speed."""
    tokens = sum((one.total - done[one.path]) * one.benchmark.max_tokens for one in pending)
    most = f"at most {tokens:,} tokens of responses"
    if job.source.source.startswith(ENDPOINT):
        return f"{most}; how long depends on the endpoint"
    settings = sample_config(config.sample, job.benchmark, job.place)
    probe = settings.model_copy(
        update={"max_response_tokens": PROBE, "max_annotation_tokens": PROBE, "retries": 0}
    )
    prompts = job.benchmark.asked[: config.sample.batch_size]
    started = time.monotonic()
    answerer.answer(job.benchmark, prompts, 0, probe, lambda done: None)
    speed = PROBE * len(prompts) / (time.monotonic() - started)
    minutes = tokens / speed / 60
    return f"{most}; at most about {minutes:.2g} minutes at the speed of {job.model}"
