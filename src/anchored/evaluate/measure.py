"""What reads all sets of generations alike, and the figures of one prompt's texts."""

from __future__ import annotations

import hashlib
import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anchored.annotation import Annotation
from anchored.errors import DataError
from anchored.evaluate import lexical, noveltybench
from anchored.evaluate.collapse import Runs, Statistic, dissimilarity_of, entropy_of, mean_of
from anchored.evaluate.embedders import Embedder
from anchored.evaluate.embedding import dissimilarity, nearest_distance, vendi
from anchored.evaluate.entropy import semantic_entropy
from anchored.evaluate.equivalence import EmbeddingThreshold, Equivalence
from anchored.evaluate.generations import Generations
from anchored.evaluate.noveltybench import Stamp, same_stamp
from anchored.evaluate.self_bleu import self_bleu, signature

if TYPE_CHECKING:  # its packages are an extra of their own
    from anchored.annotate.offline import OfflineAnnotator

ENTROPY_SAMPLES = 8  # texts a prompt below which entropies say little more than their number
CALIBRATED_ON = 4000

FloatArray = NDArray[np.float64]
Sampled = tuple[Statistic[Any], Runs[Any]]


@dataclass(frozen=True)
class Attributes:
    """The offline annotator and what it was calibrated on."""

    annotator: OfflineAnnotator
    calibrated: str

    @property
    def keys(self) -> tuple[str, ...]:
        """The attributes that are measured: those that fine-tuning should leave alone."""
        unread = self.annotator.unread
        return tuple(key for key in self.annotator.schema.anchored_names if key not in unread)

    def as_json(self) -> dict[str, Any]:
        """Name, versions, schema and calibration, which must all agree for figures to compare."""
        calibration = self.annotator.calibration.model_dump_json().encode()
        return {
            "name": self.annotator.name,
            "schema": self.annotator.schema.name,
            "keys": list(self.keys),
            "calibrated": self.calibrated,
            "calibration": hashlib.sha256(calibration).hexdigest()[:12],
        }


def calibration_sample(sets: Sequence[Generations], seed: int) -> list[str]:
    """Texts of all sets together to calibrate the annotator on: one reader for all of them."""
    texts = [text for found in sets for answers in found.texts for text in answers]
    return random.Random(seed).sample(texts, min(CALIBRATED_ON, len(texts)))


@dataclass(frozen=True)
class Readers:
    """The backends of one run, the same for every set.

    `equivalence` is None where the file's own partition is taken, `attributes` where entropies are
    left out; `quality` says whether the file's own scores are used.
    """

    embedder: Embedder
    equivalence: Equivalence | None
    attributes: Attributes | None
    quality: bool
    vendi_orders: tuple[float, ...]
    tokenize: str

    def backends(self, sets: Sequence[Generations]) -> dict[str, Any]:
        """Name and version of everything that a figure rests on.

        Raises:
            DataError: the sets' own partitions or scores are of different versions.
        """
        partition = (
            given_stamp(sets, "partition")
            if self.equivalence is None
            else Stamp("1.0", self.equivalence.name)
        )
        return {
            "embedder": self.embedder.name,
            "equivalence": partition.as_json(),
            "quality": given_stamp(sets, "score").as_json() if self.quality else None,
            "attributes": self.attributes and self.attributes.as_json(),
            "self_bleu": signature(len(sets[0].texts[0]) - 1, self.tokenize),
            "compression_ratio": f"zlib {zlib.ZLIB_RUNTIME_VERSION} level "
            f"{lexical.COMPRESSION_LEVEL}, one pass a prompt, as many bytes for every set",
            "ead": f"unigrams, vocabulary of {lexical.EAD_VOCABULARY}",
        }

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
        rows, readings, embedded = [], [], []
        for p, texts in enumerate(found.texts):
            read = self.attributes.annotator.annotate_batch(texts) if self.attributes else []
            vectors = self.embedder.embed(texts)
            rows.append(
                {
                    **_lexical(texts, sizes[p], self.tokenize),
                    **self._semantic(found, p, vectors),
                    **self._entropies(read),
                }
            )
            readings.append(read)
            embedded.append(vectors)
            step()
        values = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        return Measured(values, readings, self._samples(found, readings, embedded), embedded)

    def _semantic(self, found: Generations, p: int, vectors: FloatArray) -> dict[str, float]:
        partition = self._partition(found, p, vectors)
        figures = {
            "dissimilarity": dissimilarity(vectors),
            "nearest_distance": nearest_distance(vectors),
            **{vendi_name(q): vendi(vectors, q) for q in self.vendi_orders},
            "distinct_k": float(noveltybench.distinct_k(partition)),
        }
        if not self.quality:
            return figures
        scores = _own(found, p, found.scores[p], "generation_scores")
        try:
            figures["utility_k"] = noveltybench.utility_k(partition, scores)
            figures["quality"] = noveltybench.mean_quality(partition, scores)
        except DataError as error:
            raise DataError(f"{found.name}: prompt {found.prompts[p][:60]!r}: {error}") from None
        return figures

    def _partition(self, found: Generations, p: int, vectors: FloatArray) -> Sequence[int]:
        if self.equivalence is None:
            return _own(found, p, found.partitions[p], "partition")
        if isinstance(self.equivalence, EmbeddingThreshold):  # embedded already
            return self.equivalence.partition_vectors(vectors)
        return self.equivalence.partition(found.texts[p])

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
        readings: Sequence[Sequence[Annotation]],
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
        if self.attributes and len(texts) >= ENTROPY_SAMPLES:
            keys, runs = self.attributes.keys, [[readings[0]]]
            sampled["semantic_entropy"] = (entropy_of(keys, corrected=False), runs)
            sampled["semantic_entropy_miller_madow"] = (entropy_of(keys), runs)
        return sampled


@dataclass(frozen=True)
class Measured:
    """A set's figures: `values[metric]` is one value a prompt [P].

    `readings[p]` are the attributes read off each text, `vectors[p]` the texts' embeddings [k, D].
    With one prompt `samples[metric]` is what to resample instead of prompts.
    """

    values: dict[str, FloatArray]
    readings: list[list[Annotation]]
    samples: dict[str, Sampled]
    vectors: list[FloatArray]


def vendi_name(q: float) -> str:
    """`vendi` for the order 1, else `vendi_2`, `vendi_0.5`, `vendi_inf`."""
    return "vendi" if q == 1 else f"vendi_{q:g}"


def common_sizes(sets: Sequence[Generations]) -> list[int]:
    """For each prompt the bytes of the set that has the fewest there."""
    by_set = [
        [sum(len(text.encode()) for text in answers) for answers in found.texts] for found in sets
    ]
    return [min(sizes) for sizes in zip(*by_set, strict=True)]


def given_stamp(sets: Sequence[Generations], what: str) -> Stamp:
    """The version and backend of the files' own `partition`s or `score`s.

    Raises:
        DataError: a file has none, or they differ within or between files.
    """
    stamps: dict[str, Stamp] = {}
    for found in sets:
        own = sorted(found.partition_stamps if what == "partition" else found.score_stamps, key=str)
        if not own:
            raise _lacking(found.name, "partition" if what == "partition" else "generation_scores")
        same_stamp({f"a row of {found.name}": own[0], "another": own[-1]}, what)
        stamps[found.name] = own[0]
    return same_stamp(stamps, what)


def _own(found: Generations, p: int, values: Sequence[Any] | None, field: str) -> Sequence[Any]:
    if values is None:
        raise _lacking(f"{found.name}: prompt {found.prompts[p][:60]!r}", field)
    return values


def _lacking(where: str, field: str) -> DataError:
    way = (
        "use another --equivalence than given"
        if field == "partition"
        else "leave --quality out, or add a score from 1 to 10 for each text"
    )
    return DataError(f"{where}: has no {field}; {way}")


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
