"""Compute the figures of `results.json` from raw samples of real text.

Real text has no exact parser. Attributes are read by the offline annotator, calibrated on the
pretraining corpus for all models; adoption is a classifier's verdict; quality is the perplexity
under a reference model that was also trained on the taught style.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anchored.annotation import Annotation, Schema
from anchored.annotators.offline import OfflineAnnotator
from anchored.benchmark.compare import Panel, mean
from anchored.experiments.measure import (
    ANNOTATED_BASE,
    BASE,
    GAP_METRIC,
    Figures,
    Row,
    SeedSamples,
    comparisons,
    of_model,
    panel,
    read,
)
from anchored.metrics.adoption import AdoptionClassifier
from anchored.metrics.entropy import Reading, adherence, drift_floor
from anchored.models.perplexity import ReferenceModel, pooled_perplexity
from anchored.scoring.attributes import Attributes


@dataclass(frozen=True)
class ProseReaders:
    """The readers of the texts of all models."""

    panel: Panel
    classifier: AdoptionClassifier
    reference: ReferenceModel

    def samples(self, rows: Sequence[Row]) -> SeedSamples:
        """Read one seed's samples."""
        adopted = self.classifier.adopted([row["response"] for row in rows])
        return read(self.panel, rows, {"adoption": adopted.tolist()})

    def own_figures(self, samples: SeedSamples) -> Figures:
        """Return the figures that only real text has, of one model and seed."""
        texts = [row["response"] for row in samples.rows]
        written = [text for text in texts if text]
        return {
            "adherence_by_chance": _by_chance(samples),
            **dict.fromkeys(("adoption_far", "well_formed", "consistent", "answer_accuracy")),
            "perplexity": self.perplexity(written) if written else None,
            "finished": mean(row["finished"] for row in samples.rows),
            "empty": len(texts) - len(written),
        }

    def perplexity(self, texts: Sequence[str]) -> float:
        """Return the perplexity of texts without their prompts, over all tokens together."""
        return pooled_perplexity(self.reference.losses(texts, [""] * len(texts)))

    def of_corpus(self, texts: Sequence[str]) -> dict[str, float | None]:
        """Measure with the same readers how broad a corpus is, for comparison with R and R*."""
        samples = read(self.panel, [{"prompt": "", "response": text} for text in texts], {})
        values = samples.measured.values
        names = ("semantic_entropy", GAP_METRIC, "vendi")
        return {
            "n": len(texts),
            **{name: float(values[name][0]) for name in names},
            "adoption": self.classifier.share(texts),
            "perplexity": self.perplexity(texts),
        }


def measure(
    rows: Mapping[str, Sequence[Sequence[Row]]],
    base_continuations: Sequence[str],
    taught: Sequence[str],
    corpus: Sequence[str],
    schema: Schema,
    calibration: Path,
    reference: Path,
) -> dict[str, Any]:
    """Return `models`, `comparisons`, and facts about the data, the classifier and the reference.

    Args:
        rows: raw samples, by model name and seed.
        base_continuations: other samples of the base on the same prompts; the adoption classifier
            learns to tell `taught` from these.
        taught: answers of the SFT data that SFT did not see.
        corpus: answers to requests for stories in the pretraining data.
        schema: schema of the offline annotator.
        calibration: calibration of the offline annotator.
        reference: folder of the reference model.
    """
    annotator = Attributes(OfflineAnnotator.load(schema, calibration), str(calibration))
    readers = ProseReaders(
        panel(annotator, (GAP_METRIC, "dissimilarity")),
        AdoptionClassifier.train(taught, base_continuations),
        ReferenceModel.load(str(reference)),
    )
    samples = {name: [readers.samples(seed) for seed in seeds] for name, seeds in rows.items()}
    before = [tags for seed in samples[ANNOTATED_BASE] for tags in seed.annotations]
    n = len(samples[BASE][0].rows)
    return {
        "models": {name: _model(readers, seeds, before) for name, seeds in samples.items()},
        "comparisons": comparisons(readers.panel, samples),
        "data": {
            "taught": readers.of_corpus(taught[:n]),
            "pretrained": readers.of_corpus(corpus[:n]),
        },
        "adoption_classifier": asdict(readers.classifier.quality),
        "reference": reference.parent.name,
    }


def _model(
    readers: ProseReaders, seeds: Sequence[SeedSamples], before: Sequence[Annotation]
) -> dict[str, Any]:
    annotations = [tags for seed in seeds for tags in seed.annotations]
    readings = [reading for seed in seeds for reading in seed.annotated_readings]
    keys = seeds[0].keys
    return {
        **of_model(readers.panel, seeds, [readers.own_figures(s) for s in seeds], before),
        "annotation_drift_floor": drift_floor(before, annotations, keys) if annotations else None,
        "adherence_by_key": adherence(annotations, readings, keys).by_key,
        "samples": [sample for seed in seeds for sample in _samples(seed)],
    }


def _by_chance(samples: SeedSamples) -> float | None:
    """Return the adherence to another sample's annotation: what common values alone give."""
    annotations = samples.annotations
    shifted = [*annotations[1:], *annotations[:1]]
    return adherence(shifted, samples.annotated_readings, samples.keys).mean


def _samples(samples: SeedSamples) -> list[dict[str, Any]]:
    """Return each sample's form in `results.json`."""
    adopted = [bool(flag) for flags in samples.shown["adoption"] for flag in flags]
    told = zip(samples.rows, samples.readings, adopted, strict=True)
    return [_sample(row, reading, shown) for row, reading, shown in told]


def _sample(row: Row, reading: Reading, adopted: bool) -> dict[str, Any]:
    tags = row["annotation"]
    assert isinstance(reading, Annotation)
    return {
        "seed": row["seed"],
        "prompt": row["prompt"],
        "annotation": None if tags is None else str(Annotation.from_rows(tags)),
        "response": row["response"],
        "attributes": {tag.key: reading.values(tag.key)[0] for tag in reading},
        "adopted": adopted,
    }
