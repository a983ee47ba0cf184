"""Load the backends of `anchored score` by name: those that read, compare and judge texts."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PlainSerializer
from rich.console import Console

from anchored.annotation import Schema
from anchored.config import Config
from anchored.data.generations import Generations
from anchored.errors import ConfigError
from anchored.judge.judging import (
    Answers,
    Inquiry,
    JudgeConfig,
    JudgedPartition,
    consult,
    judge_name,
)
from anchored.metrics.embedding import Embedder
from anchored.metrics.equivalence import (
    OVERLAP,
    EmbeddingThreshold,
    Equivalence,
    Exact,
    WordOverlap,
)
from anchored.metrics.noveltybench import Stamp
from anchored.metrics.self_bleu import signature
from anchored.metrics.table import measured
from anchored.models.embedders import SENTENCE_TRANSFORMERS, EndpointEmbedder, load_embedder
from anchored.models.equivalence_classifier import V1_CLASSIFIER, V1_THRESHOLD, Classifier
from anchored.scoring.attributes import Attributes, JudgedAttributes, calibration_sample
from anchored.scoring.measure import Readers
from anchored.scoring.quality import MadeScores, Quality, load_quality

if TYPE_CHECKING:
    from anchored.annotators.offline import OfflineAnnotator

# The cosine at which each embedder's classes agree best with v1.0's; measured in docs/results.
EMBEDDING_THRESHOLDS = {"static": 0.78}
EQUIVALENCES = "exact, overlap, embedding, classifier[:<folder or hub id>], judge or given"
JUDGE = "judge"
# `name` or `namespace/name`; anything else is a path
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
JOURNAL, EMBEDDINGS = "journal.jsonl", "embeddings.jsonl"

Order = Annotated[float, PlainSerializer(lambda q: "inf" if math.isinf(q) else q, when_used="json")]


class ReadersConfig(Config):
    """The backends that read texts, and how intervals are computed.

    `threshold` is the embedding's cosine, the word overlap's share or the classifier's probability.
    `judge` serves those of `equivalence`, `quality` and `attributes` that are set to "judge"; its
    answers are kept in `journal`.
    """

    embedder: str = "static"
    equivalence: str = "overlap"
    threshold: float | None = Field(default=None, ge=-1, le=1)
    quality: str = "none"
    attributes: Literal["offline", "judge", "none"] = "offline"
    schema_name: str = "general"
    calibration: str | None = Field(
        default=None,
        description="the annotator's calibration; by default it learns from the scored texts",
    )
    vendi_orders: tuple[Annotated[Order, Field(ge=0)], ...] = (1.0,)
    tokenize: str = Field(default="13a", description="sacrebleu's tokeniser for self-BLEU")
    resamples: int = Field(default=2000, ge=100)
    seed: int = Field(default=0, ge=0)
    embedder_key_env: str = "OPENAI_API_KEY"
    judge: JudgeConfig | None = None
    journal: str | None = Field(
        default=None, description="file for the judge's answers; by default in the output folder"
    )

    @property
    def judged(self) -> list[str]:
        """The fields that are set to "judge"."""
        fields = ("equivalence", "quality", "attributes")
        return [name for name in fields if getattr(self, name) == JUDGE]


def inquiry(config: ReadersConfig) -> Inquiry | None:
    """Return what to ask the judge, or None if no field needs one.

    Raises:
        ConfigError: a judge is needed but not named, or named but not needed.
    """
    if not config.judged:
        if config.judge:
            raise ConfigError(
                f"judge {config.judge.model!r}: it has nothing to judge; add --equivalence judge, "
                "--quality judge or --attributes judge"
            )
        return None
    if config.judge is None:
        raise ConfigError(
            f"{config.judged[0]} judge: no judge is named; give --judge-url and --judge-model"
        )
    return Inquiry(
        config.judge,
        Schema.load(config.schema_name) if config.attributes == JUDGE else None,
        quality=config.quality == JUDGE,
        groups=config.equivalence == JUDGE,
    )


def check_folder(what: str, source: str) -> None:
    """Reject a path without a folder, so that a typo fails before any long work.

    `name/name` may be a hub id and passes, unless the current folder has a folder of the first
    name.

    Args:
        what: what the error names.
        source: a folder or hub id.

    Raises:
        ConfigError: `source` is a path, and no folder exists there.
    """
    hub = HUB_ID.fullmatch(source)
    outer, inner, _ = source.partition("/")
    path = not hub or (inner and Path(outer).is_dir())
    if path and not Path(source).is_dir():
        raise ConfigError(f"{what}: this folder does not exist; give a model's folder or hub id")


def check_readers(config: ReadersConfig) -> None:
    """Check the backends before the texts are read, without loading large models.

    Raises:
        ConfigError: see `load_readers`.
    """
    inquiry(config)
    signature(1, config.tokenize)
    _check_embedder(config)
    _check_equivalence(config)
    kind, _, source = config.quality.partition(":")
    if kind in ("perplexity", "reward") and source:
        check_folder(f"quality {config.quality}", source)
    elif config.quality != JUDGE:
        load_quality(config.quality)
    if config.attributes == "offline":
        annotator, schema = _offline(config)
        if config.calibration is not None:
            annotator.load(schema, Path(config.calibration))


def _check_embedder(config: ReadersConfig) -> None:
    source = config.embedder.removeprefix(SENTENCE_TRANSFORMERS).partition("@")[0]
    if config.embedder.startswith(SENTENCE_TRANSFORMERS) and source:
        check_folder(f"embedder {config.embedder}", source)
    else:
        load_embedder(config.embedder, config.embedder_key_env)


def _check_equivalence(config: ReadersConfig) -> None:
    kind, _, source = config.equivalence.partition(":")
    if config.equivalence == "embedding":
        _cosine(config)
    elif kind == "classifier" and source:
        check_folder(f"equivalence {config.equivalence}", source)
    elif config.equivalence != "classifier":
        load_equivalence(config, None)


def load_readers(
    config: ReadersConfig,
    sets: Sequence[Generations],
    journal: Path | None = None,
    console: Console | None = None,
) -> Readers:
    """Load the backends that the configuration names.

    All other backends are loaded before the judge is asked, so that their faults cost nothing.

    Args:
        config: the backends' names.
        sets: the texts; a judge or a served embedder is asked about them during this call.
        journal: file of the judge's answers; a served embedder's vectors go into a file beside it.
            None keeps both in memory.
        console: where to show a judge's projected cost and progress.

    Raises:
        ConfigError: a backend is unknown or cannot be loaded, or a threshold is missing or unused.
        EndpointError: a server does not answer at all.
    """
    asked = inquiry(config)
    embedder = load_embedder(config.embedder, config.embedder_key_env)
    equivalence = load_equivalence(config, embedder)
    quality = None if config.quality == JUDGE else load_quality(config.quality)
    offline = _attributes(config, sets) if config.attributes == "offline" else None
    if isinstance(embedder, EndpointEmbedder):
        texts = (text for found in sets for answers in found.texts for text in answers)
        embedder.fetch(texts, journal and journal.with_name(EMBEDDINGS))
    answers = consult(asked, sets, journal, console) if asked else None
    return Readers(
        embedder,
        JudgedPartition(answers) if answers and answers.inquiry.groups else equivalence,
        JudgedAttributes(answers, sets) if answers and answers.inquiry.schema else offline,
        _judged_quality(answers) if answers and answers.inquiry.quality else quality,
        tuple(measured(config.vendi_orders)),
        config.tokenize,
        answers=answers,
    )


def _judged_quality(answers: Answers) -> Quality:
    def score(prompt: str, texts: Sequence[str]) -> list[int | None]:
        return [answers.score(prompt, text) for text in texts]

    return MadeScores(Stamp("1.1", judge_name(answers, "quality")), score)


def load_equivalence(config: ReadersConfig, embedder: Embedder | None) -> Equivalence | None:
    """Return the backend `config.equivalence`; None for a judge or the file's own partition.

    Only the backend `embedding` needs `embedder`.

    Raises:
        ConfigError: see `load_readers`.
    """
    kind, _, source = config.equivalence.partition(":")
    threshold = config.threshold
    if config.equivalence in ("exact", "given", JUDGE):
        if threshold is not None:
            raise ConfigError(
                f"--threshold {threshold:g}: equivalence {kind} has no threshold; remove the option"
            )
        return Exact() if kind == "exact" else None
    if config.equivalence == "overlap":
        return WordOverlap(OVERLAP if threshold is None else threshold)
    if config.equivalence == "embedding":
        assert embedder is not None
        return EmbeddingThreshold(embedder, _cosine(config))
    if kind == "classifier" and (source or config.equivalence == kind):
        return Classifier(source or V1_CLASSIFIER, V1_THRESHOLD if threshold is None else threshold)
    raise ConfigError(f"equivalence {config.equivalence!r}: unknown; use {EQUIVALENCES}")


def _cosine(config: ReadersConfig) -> float:
    if config.threshold is not None:
        return config.threshold
    if config.embedder not in EMBEDDING_THRESHOLDS:
        raise ConfigError(
            f"equivalence embedding: no default threshold is known for {config.embedder}; "
            "give --threshold, or use --equivalence overlap"
        )
    return EMBEDDING_THRESHOLDS[config.embedder]


def _offline(config: ReadersConfig) -> tuple[type[OfflineAnnotator], Schema]:
    try:
        from anchored.annotators.offline import OfflineAnnotator
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"attributes offline: {error.name} is not installed; pip install 'anchored[annotate]', "
            "or use --attributes none"
        ) from None
    return OfflineAnnotator, Schema.load(config.schema_name)


def _attributes(config: ReadersConfig, sets: Sequence[Generations]) -> Attributes:
    annotator, schema = _offline(config)
    if config.calibration is not None:
        path = Path(config.calibration)
        return Attributes(annotator.load(schema, path), config.calibration)
    sample = calibration_sample(sets, config.seed)
    return Attributes(annotator.fit(schema, sample), f"on {len(sample)} of the texts scored here")
