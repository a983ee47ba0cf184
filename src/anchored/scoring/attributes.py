"""Read attributes from texts for semantic entropy, with the offline annotator or a judge."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from anchored.annotation import Annotation, Schema
from anchored.data.generations import Generations
from anchored.judge.judges import load_prompt
from anchored.judge.judging import Answers
from anchored.judge.values import rule

if TYPE_CHECKING:  # its packages are an extra of their own
    from anchored.annotators.offline import OfflineAnnotator

CALIBRATED_ON = 4000


class AttributeReader(Protocol):
    """A backend that reads attributes from texts."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The attributes that are measured: those that fine-tuning should not change."""
        ...

    def as_json(self) -> dict[str, Any]:
        """Return names and versions; figures are comparable only if these are equal."""
        ...

    def read(self, found: Generations, p: int) -> list[Annotation | None]:
        """Return the attributes of each text of prompt `p`; None if they could not be read."""
        ...

    def counted(self, p: int) -> int | None:
        """Return how many readings of prompt `p` every set has; None if none can be missing."""
        ...


@dataclass(frozen=True)
class Attributes:
    """The offline annotator, and a description of the texts it was calibrated on."""

    annotator: OfflineAnnotator
    calibrated: str

    @property
    def keys(self) -> tuple[str, ...]:
        """See `AttributeReader`."""
        unread = self.annotator.unread
        return tuple(key for key in self.annotator.schema.anchored_names if key not in unread)

    def read(self, found: Generations, p: int) -> list[Annotation | None]:
        """See `AttributeReader`; the annotator's rules can read any text."""
        return list(self.annotator.annotate_batch(found.texts[p]))

    def counted(self, p: int) -> None:
        """See `AttributeReader`."""
        return None

    def as_json(self) -> dict[str, Any]:
        """Return name, versions, schema and calibration."""
        calibration = self.annotator.calibration.model_dump_json().encode()
        return {
            "name": self.annotator.name,
            "schema": self.annotator.schema.name,
            "keys": list(self.keys),
            "calibrated": self.calibrated,
            "calibration": hashlib.sha256(calibration).hexdigest()[:12],
        }


class JudgedAttributes:
    """The attributes that a judge read from the texts of all sets.

    Entropies are comparable only at equal counts. So for each prompt, every set counts only its
    first n readings, where n is the number that the set with the most failures has.
    """

    def __init__(self, answers: Answers, sets: Sequence[Generations]) -> None:
        self._answers = answers
        self._counted = [
            min(sum(reading is not None for reading in self.read(found, p)) for found in sets)
            for p in range(len(sets[0].prompts))
        ]

    @property
    def keys(self) -> tuple[str, ...]:
        """See `AttributeReader`."""
        return self._schema.anchored_names

    def read(self, found: Generations, p: int) -> list[Annotation | None]:
        """See `AttributeReader`."""
        return [self._answers.attributes(text) for text in found.texts[p]]

    def counted(self, p: int) -> int:
        """See `AttributeReader`."""
        return self._counted[p]

    def as_json(self) -> dict[str, Any]:
        """Return judge, prompt, schema and the rules that merge equal values."""
        return {
            "name": f"judge {self._answers.inquiry.config.model}",
            "prompt": load_prompt("attributes").id,
            "schema": self._schema.name,
            "keys": list(self.keys),
            "values": rule(),
        }

    @property
    def _schema(self) -> Schema:
        schema = self._answers.inquiry.schema
        assert schema is not None
        return schema


def calibration_sample(sets: Sequence[Generations], seed: int) -> list[str]:
    """Return texts of all sets to calibrate the annotator on, so that one reads all sets."""
    texts = [text for found in sets for answers in found.texts for text in answers]
    return random.Random(seed).sample(texts, min(CALIBRATED_ON, len(texts)))
