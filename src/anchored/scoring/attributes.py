"""Who reads attributes off texts for semantic entropy: the offline annotator, or a judge."""

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
    """Who reads attributes off texts, and which."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The attributes that are measured: those that fine-tuning should leave alone."""
        ...

    def as_json(self) -> dict[str, Any]:
        """Names and versions, which must all agree for figures to compare."""
        ...

    def read(self, found: Generations, p: int) -> list[Annotation | None]:
        """The attributes of each text of prompt `p`; None where they could not be read."""
        ...

    def counted(self, p: int) -> int | None:
        """How many readings of prompt `p` every set has, if some lack one."""
        ...


@dataclass(frozen=True)
class Attributes:
    """The offline annotator and what it was calibrated on."""

    annotator: OfflineAnnotator
    calibrated: str

    @property
    def keys(self) -> tuple[str, ...]:
        """See `AttributeReader`."""
        unread = self.annotator.unread
        return tuple(key for key in self.annotator.schema.anchored_names if key not in unread)

    def read(self, found: Generations, p: int) -> list[Annotation | None]:
        """See `AttributeReader`; the rules read any text."""
        return list(self.annotator.annotate_batch(found.texts[p]))

    def counted(self, p: int) -> None:
        """See `AttributeReader`."""
        return None

    def as_json(self) -> dict[str, Any]:
        """Name, versions, schema and calibration."""
        calibration = self.annotator.calibration.model_dump_json().encode()
        return {
            "name": self.annotator.name,
            "schema": self.annotator.schema.name,
            "keys": list(self.keys),
            "calibrated": self.calibrated,
            "calibration": hashlib.sha256(calibration).hexdigest()[:12],
        }


class JudgedAttributes:
    """What a judge read off the texts of all sets.

    Entropies compare at equal numbers only, so of each prompt as many readings count as the set
    with most failures has there: the first ones.
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
        """Judge, prompt, schema and the rules that make values one."""
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
    """Texts of all sets together to calibrate the annotator on: one reader for all of them."""
    texts = [text for found in sets for answers in found.texts for text in answers]
    return random.Random(seed).sample(texts, min(CALIBRATED_ON, len(texts)))
