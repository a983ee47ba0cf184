"""Read every set of generations with the same backends, and compute each prompt's figures."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anchored.annotation import Annotation
from anchored.data.generations import Generations, given_stamp, own
from anchored.judge.judging import Answers, JudgedPartition
from anchored.metrics import lexical
from anchored.metrics.embedding import Embedder
from anchored.metrics.equivalence import EmbeddingThreshold, Equivalence
from anchored.metrics.noveltybench import Stamp
from anchored.metrics.self_bleu import signature
from anchored.metrics.table import Metric, Observed, Sampled, joined
from anchored.scoring.attributes import AttributeReader
from anchored.scoring.quality import Grades, Quality

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Readers:
    """The backends of one run, the same for every set.

    Attributes:
        embedder: embeds the texts.
        equivalence: partitions them; None if the file's own partition is used.
        attributes: reads their attributes; None if entropies are left out.
        quality: grades them; None if quality is not measured.
        metrics: the metrics to compute.
        tokenize: name of sacrebleu's tokenizer.
        together: names of metrics that are computed over the texts of all prompts together. This
            is for prompts that all ask for the same thing.
        answers: the judge's answers, if one was asked.
    """

    embedder: Embedder
    equivalence: Equivalence | JudgedPartition | None
    attributes: AttributeReader | None
    quality: Quality | None
    metrics: tuple[Metric, ...]
    tokenize: str
    together: frozenset[str] = frozenset()
    answers: Answers | None = None

    def backends(self, sets: Sequence[Generations]) -> dict[str, Any]:
        """Return the name and version of everything that the figures depend on.

        Raises:
            DataError: the sets' own partitions or scores are of different versions.
        """
        return {
            "embedder": self.embedder.name,
            "equivalence": self._partition_stamp(sets).as_json(),
            "quality": self.quality and self.quality.as_json(sets),
            "attributes": self.attributes and self.attributes.as_json(),
            "self_bleu": signature(len(sets[0].texts[0]) - 1, self.tokenize),
            "compression_ratio": f"zlib {zlib.ZLIB_RUNTIME_VERSION} level "
            f"{lexical.COMPRESSION_LEVEL}, one pass a prompt, as many bytes for every set",
            "ead": f"unigrams, vocabulary of {lexical.EAD_VOCABULARY}",
        }

    def _partition_stamp(self, sets: Sequence[Generations]) -> Stamp:
        if self.equivalence is None:
            return given_stamp(sets, "partition")
        if isinstance(self.equivalence, JudgedPartition):
            return self.equivalence.stamp
        return Stamp("1.0", self.equivalence.name)

    def measure(
        self, found: Generations, sizes: Sequence[int], step: Callable[[], None]
    ) -> Measured:
        """Return all figures of a set.

        Args:
            found: the set.
            sizes: bytes to cut each prompt's texts to before compression.
            step: called after each prompt.

        Raises:
            DataError: the file's own partition or scores are needed and missing.
        """
        readings, observed = [], []
        for p, size in enumerate(sizes):
            seen, read = self.observe(found, p, size)
            readings.append([reading or Annotation() for reading in read])
            observed.append(seen)
            step()
        return Measured(self._values(observed), readings, self._samples(observed), observed)

    def _values(self, observed: Sequence[Observed]) -> dict[str, FloatArray]:
        """Return one value per prompt for each metric, or one in all if it is computed together."""
        found = {}
        for metric in self.metrics:
            values = [metric.value(one) for one in self._parts(metric, observed)]
            if any(value is not None for value in values):
                found[metric.name] = np.array([np.nan if v is None else v for v in values])
        return found

    def _samples(self, observed: Sequence[Observed]) -> dict[str, Sampled]:
        """Return what to resample text by text: needed for one prompt, and if any are together."""
        if len(observed) > 1 and not self.together:
            return {}
        return {
            metric.name: metric.sampled([observed], together=metric.name in self.together)
            for metric in self.metrics
            if metric.resampling and all(map(metric.has_readings, self._parts(metric, observed)))
        }

    def _parts(self, metric: Metric, observed: Sequence[Observed]) -> Sequence[Observed]:
        """Return what a metric gives one value each for."""
        return [joined(observed)] if metric.name in self.together else observed

    def observe(
        self, found: Generations, p: int, size: int | None = None
    ) -> tuple[Observed, list[Annotation | None]]:
        """Read the texts of one prompt.

        Args:
            found: the set.
            p: index of the prompt.
            size: bytes to cut the texts to before compression.

        Returns:
            The input of the metrics, and the attributes of each text, None if they could not be
            read.

        Raises:
            DataError: the file's own partition or scores are needed and missing.
        """
        texts = found.texts[p]
        read = self.attributes.read(found, p) if self.attributes else []
        vectors = self.embedder.embed(texts)
        partition = self._partition(found, p, vectors)
        grades = self.quality.read(found, p, partition) if self.quality else Grades()
        seen = Observed(
            texts=texts,
            vectors=vectors,
            partition=partition,
            scores=grades.scores,
            perplexity=grades.perplexity,
            readings=self._counted(read, p),
            keys=self.attributes.keys if self.attributes else (),
            size=size,
            tokenize=self.tokenize,
        )
        return seen, read

    def _partition(self, found: Generations, p: int, vectors: FloatArray) -> Sequence[int] | None:
        if self.equivalence is None:
            return own(found, p, found.partitions[p], "partition")
        if isinstance(self.equivalence, JudgedPartition):
            return self.equivalence.partition(found, p)
        if isinstance(self.equivalence, EmbeddingThreshold):  # the texts are already embedded
            return self.equivalence.partition_vectors(found.texts[p], vectors)
        return self.equivalence.partition(found.texts[p])

    def _counted(self, read: Sequence[Annotation | None], p: int) -> list[Annotation]:
        """Return the readings that entropies are computed from: equally many in every set."""
        there = [reading for reading in read if reading is not None]
        return there[: self.attributes.counted(p)] if self.attributes else there


@dataclass(frozen=True)
class Measured:
    """The figures of one set.

    Attributes:
        values: one value per prompt [P] for each metric, NaN where a judge failed; a single value
            [1] for a metric that is computed over all prompts together.
        readings: the attributes read from each text of each prompt, empty where they could not be
            read.
        samples: what to resample instead of prompts, for each metric; empty with several prompts,
            unless metrics are computed over all of them together.
        observed: what the figures of each prompt were computed from.
    """

    values: dict[str, FloatArray]
    readings: list[list[Annotation]]
    samples: dict[str, Sampled]
    observed: list[Observed]

    @cached_property
    def vectors(self) -> list[FloatArray]:
        """The embeddings [k, D] of each prompt's texts."""
        return [one.vectors for one in self.observed]

    @cached_property
    def partitions(self) -> list[Sequence[int] | None]:
        """The equivalence class of each text, for each prompt."""
        return [one.partition for one in self.observed]


def on_common_prompts(measured: Mapping[str, Measured]) -> tuple[dict[str, Measured], list[str]]:
    """Restrict each figure to the prompts that have it in every set, with a note on each cut one.

    A figure left without prompts is dropped, as is one left with a single prompt of several.
    """
    names = dict.fromkeys(name for one in measured.values() for name in one.values)
    kept: dict[str, dict[str, FloatArray]] = {model: {} for model in measured}
    notes = []
    for name in names:
        columns = [one.values.get(name, np.array([np.nan])) for one in measured.values()]
        there = np.logical_and.reduce([np.isfinite(column) for column in columns])
        if not there.all():
            notes.append(
                f"{name}: over {there.sum()} of {len(there)} prompts; on the others a "
                "judgement that it needs is missing."
            )
        if there.all() or there.sum() > 1:
            for model, column in zip(kept, columns, strict=True):
                kept[model][name] = column[there]
    return {model: replace(one, values=kept[model]) for model, one in measured.items()}, notes


def common_sizes(sets: Sequence[Generations]) -> list[int]:
    """Return, for each prompt, the bytes of the set that has the fewest."""
    by_set = [
        [sum(len(text.encode()) for text in answers) for answers in found.texts] for found in sets
    ]
    return [min(sizes) for sizes in zip(*by_set, strict=True)]
