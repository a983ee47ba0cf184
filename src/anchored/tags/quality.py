"""Measures the tags of a corpus in one pass over it and on a sample of its texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import Field
from rich.console import Console

from anchored.annotation import Annotation
from anchored.config import Config
from anchored.data.readers import SourceConfig
from anchored.errors import DataError
from anchored.models.embedders import load_embedder
from anchored.tags.agreement import KeyAgreement, agreement, agreement_data
from anchored.tags.informativeness import FOLDS, Informativeness, informativeness
from anchored.tags.observations import Part, Sample, parts_of, prompted
from anchored.tags.prompts import PromptShares, prompt_shares
from anchored.tags.standoff_join import missing_corpus, read_annotated, stored_annotations
from anchored.tags.statistics import TagCounter, TagStatistics
from anchored.tags.variants import NEAR_MEANING, Group, variant_groups


class TagsConfig(Config):
    """Configuration of `anchored inspect --tags`."""

    source: SourceConfig
    against: SourceConfig | None = Field(
        default=None, description="the same texts, tagged by another annotator"
    )
    sample: int = Field(
        default=2000, ge=50, description="number of texts, and of prompted rows, to sample"
    )
    near_meaning: float = Field(
        default=NEAR_MEANING,
        gt=0,
        description="cosine at which two values may be variants; 2: never",
    )
    embedder: str = Field(
        default="static", description="embedder of the texts that the tags are to predict"
    )
    seed: int = 0


@dataclass(frozen=True)
class Scan:
    """The result of one pass over a source: counted tags, sampled texts and prompted responses.

    `missing` is the path of the corpus of stand-off annotations, if that corpus is gone.
    """

    counter: TagCounter
    parts: Sample[Part]
    asked: Sample[Part]
    missing: str | None = None


@dataclass(frozen=True)
class Agreed:
    """Agreement with another annotator over the sampled texts that both have."""

    texts: int
    keys: Mapping[str, KeyAgreement]


@dataclass(frozen=True)
class TagQuality:
    """The measurements of a corpus; None for what cannot be measured on it.

    `note` says what was left out because the texts of stand-off annotations are missing.
    """

    source: str
    statistics: TagStatistics
    variants: Mapping[str, tuple[Group, ...]]
    informativeness: Informativeness | None
    prompts: PromptShares | None
    agreement: Agreed | None
    note: str | None = None

    def data(self) -> dict[str, Any]:
        """Return the measurements as JSON data."""
        optional = {
            "informativeness": self.informativeness and self.informativeness.data(),
            "prompts": self.prompts and self.prompts.data(),
            "agreement": self.agreement
            and {"texts": self.agreement.texts, "keys": agreement_data(self.agreement.keys)},
        }
        groups = {key: [asdict(group) for group in found] for key, found in self.variants.items()}
        return {"corpus": self.source, **self.statistics.data(), "variants": groups, **optional} | (
            {"note": self.note} if self.note else {}
        )


def scan(source: SourceConfig, size: int, seed: int = 0) -> Scan:
    """Read a source once; only the sample and the distinct values are held in memory.

    Raises:
        DataError: the source or a row is invalid; the message names file and line.
    """
    missing = missing_corpus(source)
    found = Scan(TagCounter(), Sample(size, seed), Sample(size, seed), missing)
    if missing:
        for annotation in stored_annotations(source):
            found.counter.add(annotation)
        return found
    for item in read_annotated(source):
        for part in parts_of(item):
            found.parts.add(part, *part.identity)
            if part.annotation is not None:
                found.counter.add(part.annotation)
        if (response := prompted(item)) is not None:
            found.asked.add(response, *response.identity)
    return found


def measure(config: TagsConfig, console: Console | None = None) -> TagQuality:
    """Measure the tags of a corpus.

    Args:
        config: the corpus and the settings.
        console: receives the progress; by default stderr.

    Raises:
        DataError: a row is invalid, no row has an annotation, or the other annotator tagged none of
            the texts.
        ConfigError: there is no such embedder.
    """
    console = console or Console(stderr=True)
    embedder = load_embedder(config.embedder)
    with console.status("reading the tags"):
        found = scan(config.source, config.sample, config.seed)
    statistics = found.counter.statistics()
    if not statistics.annotations:
        raise DataError(
            f"{config.source.path}: no row has an annotation; write annotations with "
            "`anchored annotate`"
        )
    texts = [part for part in found.parts.items() if part.annotation is not None]
    with console.status("comparing the values of each key"):
        variants = _variants(found.counter, config.near_meaning)
    with console.status("predicting texts from tags"):
        enough = len({part.row for part in texts}) >= FOLDS
        told = informativeness(texts, embedder, config.seed) if enough else None
    with console.status("comparing tags with prompts"):
        asked = [part for part in found.asked.items() if part.annotation is not None]
        told_by_prompts = _prompts(asked, config.seed)
    other = None if config.against is None else scan(config.against, config.sample, config.seed)
    missing = found.missing or (other and other.missing)
    agreed = None if other is None or missing else _agreement(config, texts, other)
    note = _note(found.missing, other and other.missing)
    return TagQuality(config.source.path, statistics, variants, told, told_by_prompts, agreed, note)


def _note(mine: str | None, others: str | None) -> str | None:
    left_out = "What needs the texts" if mine else "Agreement"
    missing = mine or others
    return missing and f"{left_out} is left out: the annotated corpus {missing} is not there."


def _variants(counter: TagCounter, near_meaning: float) -> dict[str, tuple[Group, ...]]:
    keys = counter.statistics().keys
    found = {key: variant_groups(counter.counts(key), near_meaning) for key in keys}
    return {key: groups for key, groups in found.items() if groups}


def _prompts(asked: list[Part], seed: int) -> PromptShares | None:
    """Return the shares, or None without two different prompts: one prompt decides nothing."""
    if len({part.prompt for part in asked}) < 2:
        return None
    annotations = [part.annotation or Annotation() for part in asked]
    return prompt_shares([part.prompt for part in asked], annotations, seed)


def _agreement(config: TagsConfig, texts: list[Part], other: Scan) -> Agreed:
    assert config.against is not None
    first = {part.identity: part.annotation for part in texts}
    pairs = [
        (mine, part.annotation)
        for part in other.parts.items()
        if part.annotation is not None and (mine := first.get(part.identity)) is not None
    ]
    if not pairs:
        raise DataError(
            f"{config.against.path}: none of the sampled texts is in {config.source.path}; name "
            "another annotation of the same chunks"
        )
    return Agreed(len(pairs), agreement(pairs))
