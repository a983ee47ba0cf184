"""What reads all sets of generations alike, and the figures of one prompt's texts."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anchored.annotation import Annotation
from anchored.data.generations import Generations, given_stamp, own
from anchored.judge.judging import Answers, JudgedPartition
from anchored.metrics import lexical, noveltybench
from anchored.metrics.collapse import Runs, Statistic, dissimilarity_of, entropy_of, mean_of
from anchored.metrics.embedding import Embedder, dissimilarity, nearest_distance, vendi
from anchored.metrics.entropy import semantic_entropy
from anchored.metrics.equivalence import EmbeddingThreshold, Equivalence
from anchored.metrics.noveltybench import Stamp
from anchored.metrics.self_bleu import self_bleu, signature
from anchored.scoring.attributes import AttributeReader
from anchored.scoring.quality import Quality

ENTROPY_SAMPLES = 8  # texts a prompt below which entropies say little more than their number

FloatArray = NDArray[np.float64]
Sampled = tuple[Statistic[Any], Runs[Any]]


@dataclass(frozen=True)
class Readers:
    """The backends of one run, the same for every set.

    `equivalence` is None where the file's own partition is taken, `attributes` where entropies are
    left out, `quality` where there is none; `answers` are the judge's, where one was asked.
    """

    embedder: Embedder
    equivalence: Equivalence | JudgedPartition | None
    attributes: AttributeReader | None
    quality: Quality | None
    vendi_orders: tuple[float, ...]
    tokenize: str
    answers: Answers | None = None

    def backends(self, sets: Sequence[Generations]) -> dict[str, Any]:
        """Name and version of everything that a figure rests on.

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
        """All figures of a set.

        Args:
            found: the set.
            sizes: bytes a prompt at which to compress.
            step: called after each prompt.

        Raises:
            DataError: the file's own partition or scores are wanted and not there.
        """
        rows, readings, counted, partitions, embedded = [], [], [], [], []
        for p, texts in enumerate(found.texts):
            read = self.attributes.read(found, p) if self.attributes else []
            vectors = self.embedder.embed(texts)
            partition = self._partition(found, p, vectors)
            counted.append(self._counted(read, p))
            rows.append(
                {
                    **_lexical(texts, sizes[p], self.tokenize),
                    **self._semantic(found, p, vectors, partition),
                    **self._entropies(counted[p]),
                }
            )
            readings.append([reading or Annotation() for reading in read])
            partitions.append(partition)
            embedded.append(vectors)
            step()
        samples = self._samples(found, counted, embedded)
        return Measured(_columns(rows), readings, samples, embedded, partitions, counted)

    def _semantic(
        self,
        found: Generations,
        p: int,
        vectors: FloatArray,
        partition: Sequence[int] | None,
    ) -> dict[str, float]:
        figures = {
            "dissimilarity": dissimilarity(vectors),
            "nearest_distance": nearest_distance(vectors),
            **{vendi_name(q): vendi(vectors, q) for q in self.vendi_orders},
        }
        if partition is not None:
            figures["distinct_k"] = float(noveltybench.distinct_k(partition))
        if self.quality:
            figures |= self.quality.figures(found, p, partition)
        return figures

    def _partition(self, found: Generations, p: int, vectors: FloatArray) -> Sequence[int] | None:
        if self.equivalence is None:
            return own(found, p, found.partitions[p], "partition")
        if isinstance(self.equivalence, JudgedPartition):
            return self.equivalence.partition(found, p)
        if isinstance(self.equivalence, EmbeddingThreshold):  # embedded already
            return self.equivalence.partition_vectors(vectors)
        return self.equivalence.partition(found.texts[p])

    def _counted(self, read: Sequence[Annotation | None], p: int) -> list[Annotation]:
        """The readings that entropies are of: as many in every set."""
        there = [reading for reading in read if reading is not None]
        return there[: self.attributes.counted(p)] if self.attributes else there

    def _entropies(self, read: Sequence[Annotation]) -> dict[str, float]:
        if self.attributes is None or len(read) < ENTROPY_SAMPLES:
            return {}
        entropy = semantic_entropy(read, self.attributes.keys)
        return {
            "semantic_entropy": entropy.mean,
            "semantic_entropy_miller_madow": entropy.mean_miller_madow,
        }

    def _samples(
        self,
        found: Generations,
        counted: Sequence[Sequence[Annotation]],
        embedded: Sequence[FloatArray],
    ) -> dict[str, Sampled]:
        """With one prompt, what its own texts can be resampled for."""
        if len(found.prompts) > 1:
            return {}
        texts = found.texts[0]
        sampled: dict[str, Sampled] = {
            "empty_rate": (mean_of, [[[float(not text.strip()) for text in texts]]]),
            "words": (mean_of, [[[float(len(lexical.words(text))) for text in texts]]]),
            "dissimilarity": (dissimilarity_of, [[list(embedded[0])]]),
        }
        if self.attributes and len(counted[0]) >= ENTROPY_SAMPLES:
            keys, runs = self.attributes.keys, [[counted[0]]]
            sampled["semantic_entropy"] = (entropy_of(keys, corrected=False), runs)
            sampled["semantic_entropy_miller_madow"] = (entropy_of(keys), runs)
        return sampled


@dataclass(frozen=True)
class Measured:
    """A set's figures: `values[metric]` is one value a prompt [P], NaN where a judge failed.

    `readings[p]` are the attributes read off each text, empty where they could not be read,
    `vectors[p]` the texts' embeddings [k, D], `partitions[p]` the class of each among equivalent
    ones. `counted[p]` are the readings that entropies are of. With one prompt `samples[metric]` is
    what to resample instead of prompts.
    """

    values: dict[str, FloatArray]
    readings: list[list[Annotation]]
    samples: dict[str, Sampled]
    vectors: list[FloatArray]
    partitions: list[Sequence[int] | None]
    counted: list[list[Annotation]]


def on_common_prompts(measured: Mapping[str, Measured]) -> tuple[dict[str, Measured], list[str]]:
    """The figures over the prompts that have them in every set, and a note on each cut short.

    A figure that is left with fewer than two prompts of several, or with none, is dropped.
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


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, FloatArray]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}


def vendi_name(q: float) -> str:
    """`vendi` for the order 1, else `vendi_2`, `vendi_0.5`, `vendi_inf`."""
    return "vendi" if q == 1 else f"vendi_{q:g}"


def common_sizes(sets: Sequence[Generations]) -> list[int]:
    """For each prompt the bytes of the set that has the fewest there."""
    by_set = [
        [sum(len(text.encode()) for text in answers) for answers in found.texts] for found in sets
    ]
    return [min(sizes) for sizes in zip(*by_set, strict=True)]


def _lexical(texts: Sequence[str], size: int, tokenize: str) -> dict[str, float]:
    return {
        "distinct_1": lexical.distinct_n(texts, 1),
        "distinct_2": lexical.distinct_n(texts, 2),
        "distinct_3": lexical.distinct_n(texts, 3),
        "ead": lexical.ead(texts),
        "self_bleu": self_bleu(texts, tokenize),
        "compression_ratio": lexical.compression_ratio(texts, size),
        "exact_duplicate_rate": lexical.exact_duplicate_rate(texts),
        "empty_rate": lexical.empty_rate(texts),
        "words": lexical.length_statistics(texts)["words"]["mean"],
    }
