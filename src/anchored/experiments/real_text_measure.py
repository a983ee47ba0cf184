"""From raw samples of real text to the figures of `results.json`.

There is no exact parser here: attributes are what the offline annotator reads off a text, with the
calibration of the pretraining corpus for all models alike; adoption is a classifier's verdict,
quality the perplexity under a reference model that saw the taught style too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anchored.annotation import Annotation, Schema
from anchored.annotators.offline import OfflineAnnotator
from anchored.experiments.measure import ANNOTATED_BASE, BASE, SFT, Row, mean
from anchored.metrics.adoption import AdoptionClassifier
from anchored.metrics.collapse import (
    Statistic,
    compare,
    dissimilarity_of,
    entropy_of,
    interval,
    mean_of,
)
from anchored.metrics.embedding import mean_dissimilarity, vendi
from anchored.metrics.entropy import (
    adherence,
    annotation_drift,
    annotation_entropy,
    drift_floor,
    semantic_entropy,
)
from anchored.metrics.lexical import distinct_n
from anchored.models.embedders import StaticEmbedder
from anchored.models.perplexity import ReferenceModel, TextLoss, pooled_perplexity


@dataclass(frozen=True)
class Answer:
    """One sampled text and what was read off it; `loss` is None where the text is empty."""

    row: Row
    plan: Annotation | None
    reading: Annotation
    vector: np.ndarray
    adopted: bool
    loss: TextLoss | None

    def as_json(self) -> dict[str, Any]:
        """The form in `results.json`."""
        return {
            "seed": self.row["seed"],
            "prompt": self.row["prompt"],
            "annotation": None if self.plan is None else str(self.plan),
            "response": self.row["response"],
            "attributes": {tag.key: self.reading.values(tag.key)[0] for tag in self.reading},
            "adopted": self.adopted,
        }


@dataclass(frozen=True)
class Readers:
    """What reads all models' texts alike."""

    annotator: OfflineAnnotator
    embedder: StaticEmbedder
    classifier: AdoptionClassifier
    reference: ReferenceModel

    @property
    def keys(self) -> tuple[str, ...]:
        """The attributes that are measured: those that are anchored."""
        return self.annotator.schema.anchored_names

    def read(self, rows: Sequence[Row]) -> list[Answer]:
        """One answer a row."""
        texts = [row["response"] for row in rows]
        written = [i for i, text in enumerate(texts) if text]
        losses = self.reference.losses([texts[i] for i in written], [""] * len(written))
        by_place = dict(zip(written, losses, strict=True))
        read = zip(
            rows,
            self.annotator.annotate_batch(texts),
            self.embedder.embed(texts),
            self.classifier.adopted(texts),
            strict=True,
        )
        return [
            Answer(row, _plan(row), reading, vector, bool(adopted), by_place.get(i))
            for i, (row, reading, vector, adopted) in enumerate(read)
        ]


def _plan(row: Row) -> Annotation | None:
    return None if row["annotation"] is None else Annotation.from_rows(row["annotation"])


Runs = Sequence[Sequence[Answer]]


def measure(
    rows: Mapping[str, Sequence[Sequence[Row]]],
    base_continuations: Sequence[str],
    taught: Sequence[str],
    corpus: Sequence[str],
    schema: Schema,
    calibration: Path,
    reference: Path,
) -> dict[str, Any]:
    """`models`, `comparisons` and what they rest on.

    Args:
        rows: by model name, for each seed, its raw samples.
        base_continuations: other samples of the base, of the same prompts; adoption is learnt
            from these against `taught`.
        taught: answers of the SFT data that SFT did not see.
        corpus: answers to requests for stories in the pretraining data.
        schema: of the offline annotator.
        calibration: of the offline annotator.
        reference: model folder.
    """
    readers = Readers(
        OfflineAnnotator.load(schema, calibration),
        StaticEmbedder(),
        AdoptionClassifier.train(taught, base_continuations),
        ReferenceModel.load(str(reference)),
    )
    answers = {name: [readers.read(seed) for seed in seeds] for name, seeds in rows.items()}
    before = [a.plan for seed in answers[ANNOTATED_BASE] for a in seed if a.plan is not None]
    n = len(answers[BASE][0])
    return {
        "models": {name: _model(readers, runs, before) for name, runs in answers.items()},
        "comparisons": _comparisons(readers.keys, answers),
        "data": {
            "taught": _spread(readers, taught[:n]),
            "pretrained": _spread(readers, corpus[:n]),
        },
        "adoption_classifier": asdict(readers.classifier.quality),
        "reference": reference.parent.name,
    }


def _spread(readers: Readers, texts: Sequence[str]) -> dict[str, float]:
    """How broad a corpus is, by the same readers: what R and R* look like."""
    found = semantic_entropy(readers.annotator.annotate_batch(texts), readers.keys)
    return {
        "n": found.n,
        "semantic_entropy": found.mean,
        "semantic_entropy_miller_madow": found.mean_miller_madow,
        "vendi": vendi(readers.embedder.embed(texts)),
        "adoption": readers.classifier.share(texts),
        "perplexity": pooled_perplexity(readers.reference.losses(texts, [""] * len(texts))),
    }


def _model(readers: Readers, runs: Runs, before: Sequence[Annotation]) -> dict[str, Any]:
    by_seed = [{"seed": seed[0].row["seed"], **_figures(readers, seed)} for seed in runs]
    pooled = [answer for seed in runs for answer in seed]
    plans = [answer.plan for answer in pooled if answer.plan is not None]
    planned = [answer for answer in pooled if answer.plan is not None]
    spread = [semantic_entropy([a.reading for a in seed], readers.keys) for seed in runs]
    top = semantic_entropy([a.reading for a in pooled], readers.keys)
    return {
        **{name: mean([seed[name] for seed in by_seed]) for name in by_seed[0] if name != "seed"},
        "n": by_seed[0]["n"],
        "annotation_drift": annotation_drift(before, plans, readers.keys) if plans else None,
        "annotation_drift_floor": drift_floor(before, plans, readers.keys) if plans else None,
        "adherence_by_key": adherence(plans, [a.reading for a in planned], readers.keys).by_key,
        "intervals": _intervals(readers.keys, runs),
        "by_key": {
            key: {
                "entropy": mean([found.by_key[key].entropy for found in spread]),
                "miller_madow": mean([found.by_key[key].miller_madow for found in spread]),
                "top": [list(pair) for pair in top.by_key[key].top],
            }
            for key in readers.keys
        },
        "by_seed": by_seed,
        "samples": [answer.as_json() for answer in pooled],
    }


def _figures(readers: Readers, answers: Sequence[Answer]) -> dict[str, float | None]:
    """The scalar figures of one model and seed; None where one does not apply."""
    entropy = semantic_entropy([a.reading for a in answers], readers.keys)
    planned = [a for a in answers if a.plan is not None]
    plans = [a.plan for a in planned if a.plan is not None]
    losses = [a.loss for a in answers if a.loss is not None]
    return {
        "n": len(answers),
        "semantic_entropy": entropy.mean,
        "semantic_entropy_miller_madow": entropy.mean_miller_madow,
        "annotation_entropy": annotation_entropy(plans, readers.keys).mean if plans else None,
        "adherence": adherence(plans, [a.reading for a in planned], readers.keys).mean,
        "adherence_by_chance": _by_chance(plans, planned, readers.keys),
        "adoption": mean([a.adopted for a in answers]),
        "adoption_far": None,
        "well_formed": None,
        "consistent": None,
        "answer_accuracy": None,
        "perplexity": pooled_perplexity(losses) if losses else None,
        "dissimilarity": mean_dissimilarity(
            [[a.vector for a in group] for group in _by_prompt(answers)]
        ),
        "vendi": vendi([a.vector for a in answers]),
        "distinct_2": distinct_n([a.row["response"] for a in answers], 2),
        "finished": mean([a.row["finished"] for a in answers]),
        "malformed": sum(a.row["malformed"] for a in answers),
        "empty": len(answers) - len(losses),
    }


def _by_chance(
    plans: Sequence[Annotation], planned: Sequence[Answer], keys: Sequence[str]
) -> float | None:
    """Adherence to the plan of another sample: what common values alone give."""
    readings = [a.reading for a in planned]
    return adherence([*plans[1:], *plans[:1]], readings, keys).mean


def _by_prompt(answers: Sequence[Answer]) -> list[list[Answer]]:
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(answer.row["prompt"], []).append(answer)
    return list(groups.values())


def _grouped(runs: Runs, of: Callable[[Answer], Any]) -> list[list[list[Any]]]:
    """Seeds x prompts x samples of one property."""
    return [[[of(a) for a in group] for group in _by_prompt(seed)] for seed in runs]


def _intervals(keys: Sequence[str], runs: Runs) -> dict[str, dict[str, float]]:
    found = {
        "adoption": interval(_grouped(runs, lambda a: float(a.adopted)), mean_of),
        "semantic_entropy": interval(
            _grouped(runs, lambda a: a.reading), entropy_of(keys, corrected=False)
        ),
        "dissimilarity": interval(_grouped(runs, lambda a: a.vector), dissimilarity_of),
    }
    return {name: {"low": e.low, "high": e.high} for name, e in found.items()}


def _comparisons(keys: Sequence[str], answers: Mapping[str, Runs]) -> dict[str, Any]:
    """By semantic entropy and, below `by_dissimilarity`, by that."""
    entropies = _compared(answers, lambda a: a.reading, entropy_of(keys))
    distances = _compared(answers, lambda a: a.vector, dissimilarity_of)
    return {
        name: {**found, "by_dissimilarity": distances[name]} for name, found in entropies.items()
    }


def _compared(
    answers: Mapping[str, Runs], of: Callable[[Answer], Any], statistic: Statistic[Any]
) -> dict[str, dict[str, Any]]:
    runs = {name: _grouped(seeds, of) for name, seeds in answers.items()}
    return {
        name: compare(runs[BASE], runs[SFT], run, statistic).as_json()
        for name, run in runs.items()
        if name not in (BASE, SFT)
    }
