"""`anchored score`: files of generations in, a comparison of how diverse they are out."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer
from rich.console import Console
from rich.progress import Progress

from anchored.annotation import Schema
from anchored.config import Config, versions
from anchored.errors import ConfigError, DataError
from anchored.evaluate import collapse, lexical
from anchored.evaluate.embedders import Embedder, load_embedder
from anchored.evaluate.entropy import semantic_entropy
from anchored.evaluate.equivalence import (
    OVERLAP,
    V1_CLASSIFIER,
    V1_THRESHOLD,
    Classifier,
    EmbeddingThreshold,
    Equivalence,
    Exact,
    WordOverlap,
)
from anchored.evaluate.generations import Generations, read_sets
from anchored.evaluate.measure import (
    ENTROPY_SAMPLES,
    Attributes,
    Measured,
    Readers,
    calibration_sample,
    common_sizes,
)
from anchored.evaluate.statistics import holm, mean_interval, paired_difference
from anchored.files import atomic_write, claim, released_if_unused, write_json
from anchored.report.score_table import markdown, rich_tables

# Cosines of the static embedder at which its classes agree best with v1.0's: docs/results.
EMBEDDING_THRESHOLDS = {"static": 0.9}
EQUIVALENCES = "exact, overlap, embedding, classifier, classifier:<folder or hub id> or given"

Order = Annotated[float, PlainSerializer(lambda q: "inf" if math.isinf(q) else q, when_used="json")]


class ReadersConfig(Config):
    """By which backends texts are read, and how intervals are made.

    `threshold` is the embedding's cosine, the word overlap's share or the classifier's probability.
    """

    embedder: str = "static"
    equivalence: str = "overlap"
    threshold: float | None = Field(default=None, ge=-1, le=1)
    quality: Literal["given", "none"] = "none"
    attributes: Literal["offline", "none"] = "offline"
    schema_name: str = "general"
    calibration: str | None = Field(
        default=None, description="of the annotator; by default it learns from the texts scored"
    )
    vendi_orders: tuple[Annotated[Order, Field(ge=0)], ...] = (1.0,)
    tokenize: str = Field(default="13a", description="sacrebleu's tokeniser for self-BLEU")
    resamples: int = Field(default=2000, ge=100)
    seed: int = 0


class ScoreConfig(ReadersConfig):
    """What to score and by which backends; saved with the result."""

    files: tuple[str, ...] = Field(min_length=1)
    n: int | None = Field(default=None, ge=2, description="texts a prompt: the first n of each")
    compare: Literal["first", "pairwise"] = "first"


def run(config: ScoreConfig, out: Path | None, console: Console) -> dict[str, Any]:
    """Scores, shows the tables on `console` and, with `out`, writes results.json and table.md.

    Raises:
        ConfigError: a backend is unknown or cannot be loaded, or `out` holds another run.
        DataError: a file cannot be read, or the sets do not compare.
    """
    if out is None:
        results = _with_progress(config)
    else:
        claim(out, config)
        with released_if_unused(out):
            results = _with_progress(config)
        write_json(out / "results.json", results)
        atomic_write(out / "table.md", markdown(results))
    for table in rich_tables(results):
        console.print(table)
    return results


def _with_progress(config: ScoreConfig) -> dict[str, Any]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("scoring", total=None)
        return score(config, lambda done, total: bar.update(task, completed=done, total=total))


def score(
    config: ScoreConfig, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """The figures of every set, with intervals, and the differences between sets.

    Args:
        config: files and backends.
        progress: called with the prompts done and the prompts of all sets.

    Returns:
        `models.<name>.<metric>` with `intervals`, `comparisons.<name>.against.<other>.<metric>`,
        `backends`, `config`, `versions`, `seeds`, `notes`, `prompts` P and texts a prompt `k`.

    Raises:
        ConfigError: a backend is unknown or cannot be loaded.
        DataError: a file cannot be read, or the sets do not compare.
    """
    sets = _read(config)
    prompts, k = len(sets[0].prompts), len(sets[0].texts[0])
    readers = load_readers(config, sets)
    backends = readers.backends(sets)
    sizes = common_sizes(sets)
    steps = itertools.count(1)
    measured = {
        found.name: readers.measure(
            found, sizes, lambda: progress(next(steps), prompts * len(sets))
        )
        for found in sets
    }
    return {
        "command": "score",
        "config": config.model_dump(mode="json"),
        "versions": versions(),
        "seeds": [config.seed],
        "prompts": prompts,
        "k": k,
        "backends": backends,
        "models": {
            found.name: _model(found, path, measured[found.name], readers, config)
            for found, path in zip(sets, config.files, strict=True)
        },
        "comparisons": _comparisons(measured, config),
        "notes": _notes(prompts, k, readers),
    }


def _read(config: ScoreConfig) -> list[Generations]:
    sets = read_sets([Path(path) for path in config.files], config.n)
    if len(sets[0].texts[0]) < 2:
        raise DataError(
            f"{config.files[0]}: holds one text a prompt, and diversity needs two or more; "
            "sample each prompt several times, and write one row a prompt with generations"
        )
    return sets


def load_readers(config: ReadersConfig, sets: Sequence[Generations]) -> Readers:
    """The backends that the configuration names.

    Raises:
        ConfigError: one is unknown or cannot be loaded, or a threshold is missing or has no use.
    """
    embedder = load_embedder(config.embedder)
    return Readers(
        embedder,
        load_equivalence(config, embedder),
        _attributes(config, sets) if config.attributes == "offline" else None,
        config.quality == "given",
        config.vendi_orders,
        config.tokenize,
    )


def load_equivalence(config: ReadersConfig, embedder: Embedder) -> Equivalence | None:
    """The backend called `config.equivalence`; None for the file's own partition.

    Raises:
        ConfigError: see `load_readers`.
    """
    kind, _, source = config.equivalence.partition(":")
    threshold = config.threshold
    if config.equivalence in ("exact", "given"):
        if threshold is not None:
            raise ConfigError(
                f"--threshold {threshold:g}: equivalence {kind} has none; leave it out"
            )
        return Exact() if kind == "exact" else None
    if config.equivalence == "overlap":
        return WordOverlap(OVERLAP if threshold is None else threshold)
    if config.equivalence == "embedding":
        return EmbeddingThreshold(embedder, _cosine(config))
    if kind == "classifier" and (source or config.equivalence == kind):
        return Classifier(source or V1_CLASSIFIER, V1_THRESHOLD if threshold is None else threshold)
    raise ConfigError(f"equivalence {config.equivalence!r}: unknown; use {EQUIVALENCES}")


def _cosine(config: ReadersConfig) -> float:
    if config.threshold is not None:
        return config.threshold
    if config.embedder not in EMBEDDING_THRESHOLDS:
        raise ConfigError(
            f"equivalence embedding: no cosine is known at which texts are the same to "
            f"{config.embedder}; give --threshold, or use --equivalence overlap"
        )
    return EMBEDDING_THRESHOLDS[config.embedder]


def _attributes(config: ReadersConfig, sets: Sequence[Generations]) -> Attributes:
    try:
        from anchored.annotate.offline import OfflineAnnotator
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"attributes offline: {error.name} is not installed; pip install 'anchored[annotate]', "
            "or use --attributes none"
        ) from None
    schema = Schema.load(config.schema_name)
    if config.calibration is not None:
        path = Path(config.calibration)
        return Attributes(OfflineAnnotator.load(schema, path), config.calibration)
    sample = calibration_sample(sets, config.seed)
    return Attributes(
        OfflineAnnotator.fit(schema, sample), f"on {len(sample)} of the texts scored here"
    )


def _model(
    found: Generations, path: str, measured: Measured, readers: Readers, config: ScoreConfig
) -> dict[str, Any]:
    texts = [text for answers in found.texts for text in answers]
    return {
        **{name: float(values.mean()) for name, values in measured.values.items()},
        "n": len(texts),
        "intervals": intervals(measured, config),
        "lengths": lexical.length_statistics(texts),
        "by_key": by_key(measured, readers.attributes),
        "file": path,
        "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
    }


def intervals(measured: Measured, config: ReadersConfig) -> dict[str, dict[str, float]]:
    """`{low, high}` of each figure that has an interval, over prompts or, with one, its texts."""
    if measured.samples:
        found = {
            name: collapse.interval(runs, statistic, config.resamples, config.seed)
            for name, (statistic, runs) in measured.samples.items()
        }
    else:
        found = {
            name: mean_interval(values, config.resamples, config.seed)
            for name, values in measured.values.items()
        }
    return {name: {"low": e.low, "high": e.high} for name, e in found.items()}


def by_key(measured: Measured, attributes: Attributes | None) -> dict[str, Any]:
    """Entropy and most frequent values of each attribute over all texts of the set."""
    if attributes is None:
        return {}
    readings = [reading for answers in measured.readings for reading in answers]
    return {
        key: {
            "entropy": entropy.entropy,
            "miller_madow": entropy.miller_madow,
            "distinct": entropy.distinct,
            "top": [list(pair) for pair in entropy.top],
        }
        for key, entropy in semantic_entropy(readings, attributes.keys).by_key.items()
    }


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


def _notes(prompts: int, k: int, readers: Readers) -> list[str]:
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
    return notes
