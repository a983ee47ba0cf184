"""The distilled annotator: linear models on static vectors, trained on labelled texts.

Keys without a sufficiently good model are read by the offline rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from anchored.annotation import Annotation, Schema, Tag
from anchored.annotators.offline import Calibration, OfflineAnnotator
from anchored.config import Config
from anchored.errors import ConfigError, DataError
from anchored.files import digest, write_json
from anchored.models.embedders import StaticEmbedder
from anchored.models.static_vectors import static_model_name

MODEL, WEIGHTS, CALIBRATION = "distilled.json", "weights.safetensors", "calibration.json"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class KeyModel:
    """Multinomial logistic regression from a text's vector to the value of one key.

    Attributes:
        values: the classes [C]; None is the class of texts without the key.
        weights: weights [C, D].
        bias: biases [C].
        temperature: divisor of the logits that calibrates the probabilities (Guo et al. 2017).
        threshold: probability below which the key is omitted.
    """

    values: tuple[str | None, ...]
    weights: Floats
    bias: Floats
    temperature: float = 1.0
    threshold: float = 0.0

    def logits(self, vectors: Floats) -> Floats:
        """Return logits [N, C] of vectors [N, D], before the temperature."""
        return vectors @ self.weights.T + self.bias

    def probabilities(self, vectors: Floats) -> Floats:
        """Return probabilities [N, C] of vectors [N, D]."""
        from scipy.special import softmax  # an extra that the offline annotator does not need

        return softmax(self.logits(vectors) / self.temperature, axis=1)

    def best(self, vectors: Floats) -> tuple[list[str | None], Floats]:
        """Return the likeliest value of each text, ignoring the threshold, and its probability."""
        p = self.probabilities(vectors)
        return [self.values[i] for i in p.argmax(1)], p.max(1)

    def pick(self, vectors: Floats) -> list[str | None]:
        """Return the likeliest value of each text, or None if it is below the threshold."""
        values, p = self.best(vectors)
        return [v if one >= self.threshold else None for v, one in zip(values, p, strict=True)]


class _SavedKey(Config):
    name: str
    values: tuple[str | None, ...]
    temperature: float
    threshold: float


class _Saved(Config):
    annotation_schema: Schema
    static_model: str
    keys: tuple[_SavedKey, ...]


class DistilledAnnotator:
    """Tags chunks of text; the tags of a chunk do not depend on its batch.

    Args:
        schema: the keys to write.
        models: a model per key; other keys are read by the offline rules, where there is one.
        calibration: calibration of these rules; see `offline.Calibration`.
    """

    def __init__(
        self, schema: Schema, models: Mapping[str, KeyModel], calibration: Calibration | None
    ) -> None:
        self.schema, self.models, self.calibration = schema, dict(models), calibration
        self.name = f"distilled from {static_model_name()}"
        self._embedder = StaticEmbedder()
        left = rules_schema(schema, models)
        self._rules = OfflineAnnotator(left, calibration) if left and calibration else None

    @property
    def unread(self) -> tuple[str, ...]:
        """Keys of the schema that this annotator never writes."""
        rules = self._rules
        by_rule = set(rules.schema.names) - set(rules.unread) if rules else set()
        return tuple(key for key in self.schema.names if key not in {*self.models, *by_rule})

    def annotate_batch(self, texts: Sequence[str]) -> list[Annotation]:
        """Return one annotation per text in the schema's order, without keys that lack evidence."""
        if not texts:
            return []
        vectors = self._embedder.embed(texts)
        picked = {key: model.pick(vectors) for key, model in self.models.items()}
        by_rule = self._rules.annotate_batch(texts) if self._rules else [Annotation()] * len(texts)
        return [
            self.schema.canonical(
                Annotation(
                    (*(Tag(k, v) for k, found in picked.items() if (v := found[i])), *others)
                )
            )
            for i, others in enumerate(by_rule)
        ]

    def save(self, folder: Path) -> None:
        """Write `distilled.json`, the weights and the rules' calibration to a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {f"{key}.weights": model.weights for key, model in self.models.items()}
        arrays |= {f"{key}.bias": model.bias for key, model in self.models.items()}
        save_file(
            {name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / WEIGHTS
        )
        keys = [
            _SavedKey(name=key, values=m.values, temperature=m.temperature, threshold=m.threshold)
            for key, m in self.models.items()
        ]
        saved = _Saved(
            annotation_schema=self.schema, static_model=static_model_name(), keys=tuple(keys)
        )
        if self.calibration is not None:
            write_json(folder / CALIBRATION, self.calibration.model_dump())
        write_json(folder / MODEL, saved.model_dump(mode="json"))

    @classmethod
    def load(cls, folder: Path) -> DistilledAnnotator:
        """Load what `save` wrote.

        Raises:
            DataError: the folder holds no distilled annotator, or a damaged one.
            ConfigError: it needs other static vectors than the installed ones.
        """
        saved = _read(folder)
        if saved.static_model != static_model_name():
            raise ConfigError(
                f"{folder}: distilled on {saved.static_model}, but {static_model_name()} is "
                "installed; distil again, or install the versions it was distilled on"
            )
        try:
            arrays = load_file(folder / WEIGHTS)
            models = {
                key.name: KeyModel(
                    key.values,
                    arrays[f"{key.name}.weights"],
                    arrays[f"{key.name}.bias"],
                    key.temperature,
                    key.threshold,
                )
                for key in saved.keys
            }
        except (OSError, KeyError, SafetensorError) as error:
            raise DataError(
                f"{folder / WEIGHTS}: not the weights of {MODEL}: {error}; distil again"
            ) from None
        calibration = folder / CALIBRATION
        rules = Calibration.load(calibration) if calibration.is_file() else None
        annotator = cls(saved.annotation_schema, models, rules)
        annotator.name += f", weights {digest(folder / WEIGHTS)[:12]}"
        return annotator

    def again(self) -> Callable[[], DistilledAnnotator]:
        """Return a function that makes the same annotator in another process."""
        return partial(DistilledAnnotator, self.schema, self.models, self.calibration)


def rules_schema(schema: Schema, models: Mapping[str, KeyModel]) -> Schema | None:
    """Return the part of a schema that is left to the rules, or None if they read none of it."""
    keys = tuple(key for key in schema.keys if key.name not in models)
    left = Schema(name=schema.name, keys=keys) if keys else None
    return left if left and OfflineAnnotator.reads(left) else None


def _read(folder: Path) -> _Saved:
    path = folder / MODEL
    try:
        return _Saved.model_validate_json(path.read_bytes())
    except OSError:
        raise DataError(
            f"{path}: no such file; `anchored distil LABELLED --out {folder}` writes one"
        ) from None
    except ValidationError:
        raise DataError(f"{path}: not a file that `anchored distil` wrote") from None
