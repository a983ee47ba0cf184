"""The annotators that run on this machine, by the name that `anchored annotate --annotator` takes.

The command's configuration and its errors read the table: a new annotator is one entry in
`ANNOTATORS` and its line in docs/annotators.md, which a test compares with the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from anchored.annotation import Annotation, Schema
from anchored.annotators.distilled import DistilledAnnotator
from anchored.annotators.offline import OfflineAnnotator
from anchored.config import Config
from anchored.errors import ConfigError


class Annotator(Protocol):
    """Writes the tags of texts."""

    schema: Schema

    @property
    def name(self) -> str:
        """Name and versions, for manifests."""
        ...

    @property
    def calibration(self) -> Config | None:
        """What it learned from a sample of a corpus, if anything."""
        ...

    @property
    def unread(self) -> tuple[str, ...]:
        """The schema's keys that it never writes."""
        ...

    def annotate_batch(self, texts: Sequence[str]) -> list[Annotation]:
        """Return one annotation per text."""
        ...

    def again(self) -> Callable[[], Annotator]:
        """Return a function that makes the same annotator in another process."""
        ...


@dataclass(frozen=True)
class Setup:
    """What an annotator is made from.

    Attributes:
        argument: what follows the colon in `NAME:ARGUMENT`; empty if there is none.
        schema: what to write.
        schema_name: the schema's name or file, as the user wrote it.
        calibration: file with the calibration of an earlier run; None to fit it to the sample.
        sample: chunks drawn evenly from the corpus; empty if the annotator is not `fitted`.
    """

    argument: str
    schema: Schema
    schema_name: str
    calibration: Path | None = None
    sample: Sequence[str] = ()


@dataclass(frozen=True)
class AnnotatorEntry:
    """One annotator of the table.

    Attributes:
        description: what it reads the tags with, in one line.
        make: makes it.
        argument: placeholder of what it takes behind a colon; empty if it takes nothing.
        fitted: True if it is calibrated on the corpus. It is then made after the source was read,
            and its calibration is kept in the run's folder. Any other annotator is made first, so
            that its errors appear at once, and a run resumes only with the same one.
    """

    description: str
    make: Callable[[Setup], Annotator]
    argument: str = ""
    fitted: bool = False


def _offline(setup: Setup) -> OfflineAnnotator:
    if setup.calibration is not None:
        return OfflineAnnotator.load(setup.schema, setup.calibration)
    return OfflineAnnotator.fit(setup.schema, setup.sample)


def _distilled(setup: Setup) -> DistilledAnnotator:
    if setup.calibration is not None:
        raise ConfigError("calibration: goes with annotator offline; a distilled one has its own")
    annotator = DistilledAnnotator.load(Path(setup.argument))
    if annotator.schema != setup.schema:
        raise ConfigError(
            f"schema_name: {setup.schema_name!r} is not the schema that {setup.argument} was "
            f"distilled for ({annotator.schema.name!r}); name that one"
        )
    return annotator


ANNOTATORS = {
    "offline": AnnotatorEntry("rules, lexicons and static vectors", _offline, fitted=True),
    "distilled": AnnotatorEntry(
        "linear models that `anchored distil` fitted to labelled texts", _distilled, "FOLDER"
    ),
}


def usages() -> list[str]:
    """Return how each annotator is named: `NAME`, or `NAME:ARGUMENT` if it takes an argument."""
    return [
        f"{name}:{entry.argument}" if entry.argument else name for name, entry in ANNOTATORS.items()
    ]


def find_annotator(named: str) -> tuple[AnnotatorEntry, str]:
    """Return the entry that `NAME` or `NAME:ARGUMENT` names, and the argument.

    Raises:
        ValueError: there is no such annotator, or it needs an argument or takes none.
    """
    name, colon, argument = named.partition(":")
    entry = ANNOTATORS.get(name)
    if entry is None or (not argument if entry.argument else colon):
        raise ValueError(f"use {' or '.join(usages())}")
    return entry, argument
