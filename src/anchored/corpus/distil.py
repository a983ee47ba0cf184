"""Implements `anchored distil`: trains an annotator on a labelled sample.

For each key with few values, a multinomial logistic regression on the texts' static vectors is
fitted to three fifths of the labelled rows. A fourth fifth is used to choose the regularisation, to
calibrate the probabilities and to set the threshold below which the key is omitted, so that the
tags written reach the target precision. The last fifth, which no choice depends on, is held out to
evaluate the model and the offline rules.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from rich.console import Console
from rich.table import Table
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from anchored.annotation import Annotation, Key, Schema
from anchored.annotators.distilled import (
    DistilledAnnotator,
    Floats,
    KeyModel,
    rules_schema,
)
from anchored.annotators.offline import OfflineAnnotator
from anchored.config import Config, to_yaml, versions
from anchored.data.readers import SourceConfig, load_schema
from anchored.errors import DataError
from anchored.files import CONFIG_NAME, atomic_write, building, write_json
from anchored.models.embedders import StaticEmbedder
from anchored.tags.agreement import cohens_kappa
from anchored.tags.observations import Part, read_parts

REPORT = "report.json"
MIN_TEXTS = 100
MIN_COUNT = 10  # least number of labelled texts per value
COVERED = 0.9  # least share of an open key's tags with such values
MIN_KEPT = 20  # least number of texts to support a threshold
_STRENGTHS = (1.0, 10.0, 100.0)
_TEMPERATURES = np.geomspace(0.25, 4, 41)
_BINS = 10
_CALIBRATED = 4000  # texts to calibrate the rules on

Labels = list[str | None]


class DistilConfig(Config):
    """Configuration of `anchored distil`."""

    source: SourceConfig = Field(description="annotated rows")
    out: Path
    schema_name: str = "general"
    target_precision: float = Field(
        default=0.8, gt=0, le=1, description="share of the written tags that should be correct"
    )
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Scores:
    """Agreement of tags with labels over all held-out texts.

    Attributes:
        coverage: share of the texts that get the key.
        precision: share of the written tags that match a label; None if none is written.
        recall: share of the labels that are written; None if there are none.
        kappa: Cohen's kappa, with a missing key as a category; None for keys that repeat.
    """

    coverage: float
    precision: float | None
    recall: float | None
    kappa: float | None


@dataclass(frozen=True, slots=True)
class KeyReport:
    """How one key will be read, and the scores of the model and the rules on the held-out texts.

    Attributes:
        by: distilled, rules or nothing.
        values: number of classes of the model; 0 without a model.
        labelled: number of held-out texts with a label.
        threshold: least probability of a written tag; None if no model is used.
        calibration_error: mean gap between probability and accuracy over ten bins of equal width,
            weighted by the number of texts (Guo et al. 2017).
        distilled: scores of the model with its threshold.
        rules: scores of the offline rules.
    """

    by: str
    values: int
    labelled: int
    threshold: float | None
    calibration_error: float | None
    distilled: Scores | None
    rules: Scores | None


@dataclass(frozen=True)
class _Split:
    """The texts of a part of the rows, their vectors [N, D] and their labels."""

    texts: list[str]
    vectors: Floats
    annotations: list[Annotation]

    def labels(self, key: str) -> Labels:
        return [next(iter(a.values(key)), None) for a in self.annotations]


def run(config: DistilConfig, console: Console | None = None) -> dict[str, Any]:
    """Train an annotator, write it with its report to `config.out`, and return the report.

    Raises:
        DataError: a row is invalid, too few are labelled, or `out` already exists.
        ConfigError: there is no such schema.
    """
    console = console or Console(stderr=True)
    schema = load_schema(config.schema_name)
    parts = [p for p in read_parts(config.source) if p.annotation is not None]
    if len(parts) < MIN_TEXTS:
        raise DataError(
            f"{config.source.path}: has {len(parts)} labelled texts; label at least {MIN_TEXTS}"
        )
    with building(config.out) as folder:
        with console.status(f"training on {len(parts):,} labelled texts"):
            annotator, reports = distil(parts, schema, config.target_precision, config.seed)
        annotator.save(folder)
        report = {
            "texts": len(parts),
            "keys": {key: asdict(one) for key, one in reports.items()},
            "unread_keys": list(annotator.unread),
            "versions": versions(),
        }
        write_json(folder / REPORT, report)
        atomic_write(folder / CONFIG_NAME, to_yaml(config))
    console.print(_table(reports))
    return report


def distil(
    parts: Sequence[Part], schema: Schema, target_precision: float, seed: int = 0
) -> tuple[DistilledAnnotator, dict[str, KeyReport]]:
    """Train an annotator on labelled texts; return it with its scores on the held-out texts."""
    fitting, choosing, held = _splits(parts, schema, seed)
    found = {key.name: _model(key, fitting, choosing, target_precision) for key in schema.keys}
    models = {key: model for key, model in found.items() if model is not None}
    used = {key: model for key, model in models.items() if model.threshold <= 1}
    calibration = None
    if rules := rules_schema(schema, {}):
        calibration = OfflineAnnotator.fit(rules, fitting.texts[:_CALIBRATED]).calibration
    annotator = DistilledAnnotator(schema, used, calibration)
    by_rule = DistilledAnnotator(schema, {}, calibration)
    read = by_rule.annotate_batch(held.texts)
    reports = {
        key.name: _report(key, models.get(key.name), held, read, key.name in by_rule.unread)
        for key in schema.keys
    }
    return annotator, reports


def learnable_values(key: Key, labels: Labels) -> tuple[str | None, ...] | None:
    """Return the classes of a key: its frequent values, and None, a text without it, if frequent.

    Returns:
        The classes. None if the key may repeat, if the frequent values make up less than `COVERED`
        of an open key's labels, or if fewer than two classes are left.
    """
    counts = Counter(labels)
    often = [value for value, count in counts.items() if count >= MIN_COUNT]
    tags = counts.total() - counts[None]
    covered = sum(counts[value] for value in often if value is not None)
    if key.limit != 1 or not tags or (key.values is None and covered < COVERED * tags):
        return None
    return tuple(sorted(often, key=lambda v: (v is not None, v))) if len(often) > 1 else None


def _splits(parts: Sequence[Part], schema: Schema, seed: int) -> tuple[_Split, _Split, _Split]:
    """Split into 3/5 to fit, 1/5 to choose on and 1/5 held out; a row's texts stay together."""
    rows = sorted({part.row for part in parts})
    random.Random(seed).shuffle(rows)
    edges = (len(rows) * 3 // 5, len(rows) * 4 // 5)
    groups = (set(rows[: edges[0]]), set(rows[edges[0] : edges[1]]), set(rows[edges[1] :]))
    embedder = StaticEmbedder()

    def split(group: set[str]) -> _Split:
        mine = [part for part in parts if part.row in group]
        if not mine:
            raise DataError(f"{len(rows)} labelled rows are too few to hold some out; label more")
        texts = [part.text for part in mine]
        tags = [schema.conform(part.annotation or Annotation()) for part in mine]
        return _Split(texts, embedder.embed(texts), tags)

    first, second, third = map(split, groups)
    return first, second, third


def _model(key: Key, fitting: _Split, choosing: _Split, target: float) -> KeyModel | None:
    labels = fitting.labels(key.name)
    classes = learnable_values(key, labels)
    if classes is None:
        return None
    known = [i for i, label in enumerate(labels) if label in classes]
    x, y = fitting.vectors[known], np.array([classes.index(labels[i]) for i in known])
    told = choosing.labels(key.name)
    kept = [i for i, label in enumerate(told) if label in classes]
    vectors = choosing.vectors[kept]
    right = np.array([classes.index(told[i]) for i in kept], dtype=np.int64)
    fitted = (_fit(classes, x, y, strength) for strength in _STRENGTHS)
    model = min(fitted, key=lambda m: _nll(m.logits(vectors), right))
    logits = model.logits(vectors)
    temperature = min(_TEMPERATURES, key=lambda t: _nll(logits / t, right))
    model = replace(model, temperature=float(temperature))
    values, p = model.best(choosing.vectors)
    return replace(model, threshold=threshold(values, p, told, target))


def _fit(classes: tuple[str | None, ...], x: Floats, y: np.ndarray, strength: float) -> KeyModel:
    fitted = LogisticRegression(C=strength, max_iter=1000).fit(x, y)
    weights, bias = fitted.coef_, fitted.intercept_
    if len(classes) == 2:  # one row stands for the second class; the first one's logit is 0
        weights, bias = np.vstack([0 * weights, weights]), np.array([0.0, bias[0]])
    return KeyModel(classes, weights, bias)


def _nll(logits: Floats, right: np.ndarray) -> float:
    """Return the mean negative log-likelihood."""
    if not len(right):
        return 0.0
    return float(-np.log(softmax(logits, axis=1)[np.arange(len(right)), right] + 1e-12).mean())


def threshold(values: Labels, p: Floats, labels: Labels, target: float) -> float:
    """Return the lowest threshold at which the share `target` of the written values is correct.

    Returns:
        The threshold; 2, which no probability reaches, if no threshold that keeps `MIN_KEPT` texts
        reaches the target.
    """
    written = [i for i in np.argsort(-p, kind="stable") if values[i] is not None]
    right = np.cumsum([values[i] == labels[i] for i in written])
    good = [
        n for n in range(MIN_KEPT, len(written) + 1)
        if right[n - 1] >= target * n and (n == len(written) or p[written[n]] < p[written[n - 1]])
    ]  # fmt: skip
    return float(p[written[max(good) - 1]]) if good else 2.0


def calibration_error(p: Floats, right: np.ndarray) -> float:
    """Return the mean |probability - accuracy| over equal bins, weighted by size (Guo 2017)."""
    bins = np.minimum((p * _BINS).astype(int), _BINS - 1)
    return float(
        sum(
            abs(p[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean()
            for b in np.unique(bins)
        )
    )


def scores(written: Sequence[Annotation], labels: Sequence[Annotation], key: str) -> Scores:
    """Return the scores of the tags of one key against the labels of the same texts."""
    pairs = [
        (frozenset(a.values(key)), frozenset(b.values(key)))
        for a, b in zip(written, labels, strict=True)
    ]
    right = sum(len(a & b) for a, b in pairs)
    made, due = sum(len(a) for a, _ in pairs), sum(len(b) for _, b in pairs)
    single = all(len(a) <= 1 and len(b) <= 1 for a, b in pairs)
    return Scores(
        coverage=sum(bool(a) for a, _ in pairs) / len(pairs),
        precision=right / made if made else None,
        recall=right / due if due else None,
        kappa=cohens_kappa(pairs) if single else None,
    )


def _report(
    key: Key, model: KeyModel | None, held: _Split, read: Sequence[Annotation], no_rule: bool
) -> KeyReport:
    labels = held.labels(key.name)
    rules = None if no_rule else scores(read, held.annotations, key.name)
    error, distilled, used = None, None, False
    if model is not None:
        used = model.threshold <= 1
        values, p = model.best(held.vectors)
        right = np.array([value == label for value, label in zip(values, labels, strict=True)])
        error = calibration_error(p, right)
        picked = [Annotation.of({key.name: v} if v else {}) for v in model.pick(held.vectors)]
        distilled = scores(picked, held.annotations, key.name)
    return KeyReport(
        by="distilled" if used else "rules" if rules else "nothing",
        values=len(model.values) if model else 0,
        labelled=sum(label is not None for label in labels),
        threshold=model.threshold if model and used else None,
        calibration_error=error,
        distilled=distilled,
        rules=rules,
    )


def _table(reports: Mapping[str, KeyReport]) -> Table:
    table = Table(title="on the held-out fifth", caption="precision / recall / coverage")
    for name in ("key", "read by", "values", "labelled", "distilled", "rules", "kappa"):
        table.add_column(name, justify="left" if name in ("key", "read by") else "right")
    for key, one in reports.items():
        kappa = one.distilled.kappa if one.distilled else None
        cells = (f"{one.values}", f"{one.labelled}", _cell(one.distilled), _cell(one.rules))
        table.add_row(key, one.by, *cells, "—" if kappa is None else f"{kappa:.2f}")
    return table


def _cell(found: Scores | None) -> str:
    if found is None:
        return "—"
    three = (found.precision, found.recall, found.coverage)
    return " / ".join("—" if one is None else f"{one:.2f}" for one in three)
