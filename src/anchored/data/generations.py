"""Reads files of generations: several texts per prompt, from any model.

A file has one record per prompt, like NoveltyBench's files, or one record per text, like those of
`anchored sample --out`. Records of texts are grouped by prompt.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anchored.annotation import Annotation
from anchored.data.rows import GENERATIONS_FORMATS, Answers, Row, Scores, answers_rows
from anchored.errors import DataError
from anchored.files import read_jsonl
from anchored.metrics.noveltybench import Stamp, same_stamp

_ENDING = re.compile(r"\.jsonl?(\.gz|\.xz)?$")


@dataclass(frozen=True, slots=True)
class Generations:
    """One model's texts.

    Attributes:
        name: name of the set.
        prompts: the prompts.
        texts: `texts[p]` are the answers to `prompts[p]`, in file order.
        partitions: `partitions[p]` has the class of each text, if the file has it.
        scores: `scores[p]` has the score of each text, if the file has it.
        partition_stamps, score_stamps: the protocols and judges of these.
        models: the names in the rows' field `model`.
        annotations: `annotations[p]` has what the model wrote before each text, or None. Empty if
            the file's format has no annotations.
    """

    name: str
    prompts: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    partitions: tuple[tuple[int, ...] | None, ...]
    scores: tuple[Scores | None, ...]
    partition_stamps: frozenset[Stamp] = frozenset()
    score_stamps: frozenset[Stamp] = frozenset()
    models: frozenset[str] = frozenset()
    annotations: tuple[tuple[Annotation | None, ...], ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of texts per prompt."""
        return tuple(map(len, self.texts))

    def first(self, n: int) -> Generations:
        """Return the first `n` texts of each prompt, a sample if the texts are in random order.

        Raises:
            DataError: a prompt has fewer texts.
        """
        for prompt, size in zip(self.prompts, self.sizes, strict=True):
            if size < n:
                raise DataError(
                    f"{self.name}: prompt {prompt[:60]!r} has {size} texts, not {n}; "
                    f"use --n {min(self.sizes)} or fewer"
                )
        return replace(
            self,
            texts=tuple(texts[:n] for texts in self.texts),
            partitions=tuple(found and found[:n] for found in self.partitions),
            scores=tuple(found and found[:n] for found in self.scores),
            annotations=tuple(found[:n] for found in self.annotations),
        )

    def select(self, order: Sequence[int]) -> Generations:
        """Return the prompts with these indices, in this order."""
        return replace(
            self,
            prompts=tuple(self.prompts[i] for i in order),
            texts=tuple(self.texts[i] for i in order),
            partitions=tuple(self.partitions[i] for i in order),
            scores=tuple(self.scores[i] for i in order),
            annotations=tuple(self.annotations[i] for i in order if self.annotations),
        )

    def annotation(self, p: int, i: int) -> Annotation | None:
        """Return what the model wrote before `texts[p][i]`; None if that is unknown."""
        return self.annotations[p][i] if self.annotations else None


def read_sets(paths: Sequence[Path], n: int | None = None) -> list[Generations]:
    """Read files to compare, with distinct names, the same prompts in one order and equal sizes.

    A set is named after the model if its rows name exactly one, else after its file. If two names
    would be equal, both sets are named by their paths.

    Args:
        paths: one file per set.
        n: number of texts per prompt, the first ones; by default all, which must be equally many.

    Raises:
        DataError: a file cannot be read, is given twice or has other prompts than the first, or the
            numbers of texts differ (diversity is comparable only at equal numbers).
    """
    doubled = [path for path, count in Counter(paths).items() if count > 1]
    if doubled:
        raise DataError(f"{doubled[0]}: given twice; name each file once")
    return side_by_side(_named([read_generations(path) for path in paths], paths), n)


def side_by_side(sets: Sequence[Generations], n: int | None = None) -> list[Generations]:
    """Return the sets with the same prompts in one order and equally many texts.

    Args:
        sets: sets with distinct names.
        n: number of texts per prompt; see `read_sets`.

    Raises:
        DataError: see `read_sets`.
    """
    size = n or _common_size(sets)
    sets = [found.first(size) for found in sets]
    return [sets[0], *(_like(sets[0], found) for found in sets[1:])]


def _named(sets: list[Generations], paths: Sequence[Path]) -> list[Generations]:
    stems = [_ENDING.sub("", path.name) for path in paths]
    names = [
        next(iter(found.models)) if len(found.models) == 1 else stem
        for found, stem in zip(sets, stems, strict=True)
    ]
    count = Counter(names)
    return [
        replace(found, name=name if count[name] == 1 else str(path))
        for found, name, path in zip(sets, names, paths, strict=True)
    ]


def _common_size(sets: Sequence[Generations]) -> int:
    smallest = min(min(found.sizes) for found in sets)
    for found in sets:
        if (size := max(found.sizes)) != smallest:
            prompt = found.prompts[found.sizes.index(size)]
            raise DataError(
                f"{found.name}: prompt {prompt[:60]!r} has {size} texts, others have {smallest}, "
                f"and diversity is comparable only at equal numbers; use --n {smallest}"
            )
    return smallest


def _like(first: Generations, other: Generations) -> Generations:
    """Return `other` with its prompts, repeated ones included, in the order of `first`'s."""
    places = {key: i for i, key in enumerate(_keys(other.prompts))}
    wanted = _keys(first.prompts)
    for one, known, name, against in (
        (wanted, places, other.name, first.name),
        (places, set(wanted), first.name, other.name),
    ):
        if missing := [prompt for prompt, turn in one if (prompt, turn) not in known]:
            raise DataError(
                f"{name}: lacks {len(missing)} prompts of {against}, the first being "
                f"{missing[0][:60]!r}; score answers to the same prompts, or each file alone"
            )
    return other.select([places[key] for key in wanted])


def _keys(prompts: Sequence[str]) -> list[tuple[str, int]]:
    turns = Counter[str]()
    keys = []
    for prompt in prompts:
        keys.append((prompt, turns[prompt]))
        turns[prompt] += 1
    return keys


def generations_of(name: str, rows: Sequence[tuple[str, Row]]) -> Generations:
    """Return the generations in rows in memory, in any of the formats.

    Args:
        name: name of the set.
        rows: the rows, each with its place, for errors.

    Raises:
        DataError: there is no row, or a row lacks a field or has an invalid one.
    """
    read = answers_rows(rows)
    if not read:
        raise DataError(f"{name}: has no rows; a row has {GENERATIONS_FORMATS}")
    flat = read[0].annotations is not None
    models = frozenset(row.model for row in read if row.model)
    return replace(_grouped(read) if flat else _listed(read), name=name, models=models)


def read_generations(path: Path) -> Generations:
    """Read a `.jsonl` or `.json` file, optionally `.gz` or `.xz`, in any of the formats.

    Raises:
        DataError: the file is missing, empty or damaged, or a row lacks a field or has an invalid
            one; the message names file, line, field and value.
    """
    unit = "line" if ".jsonl" in path.suffixes else "item"
    rows = [(f"{path}: {unit} {number}", row) for number, row in read_jsonl(path)]
    return replace(generations_of(str(path), rows), name=path.name)


def _grouped(rows: Sequence[Answers]) -> Generations:
    """Group rows with one text each by prompt."""
    groups: dict[str, list[tuple[str, Annotation | None]]] = {}
    for row in rows:
        groups.setdefault(row.prompt, []).extend(zip(row.texts, row.annotations or (), strict=True))
    nothing = (None,) * len(groups)
    return Generations(
        "",
        tuple(groups),
        tuple(tuple(text for text, _ in group) for group in groups.values()),
        nothing,
        nothing,
        annotations=tuple(tuple(written for _, written in group) for group in groups.values()),
    )


def _listed(rows: Sequence[Answers]) -> Generations:
    """Return rows with one prompt and all its texts each."""
    return Generations(
        "",
        tuple(row.prompt for row in rows),
        tuple(row.texts for row in rows),
        tuple(row.partition for row in rows),
        tuple(row.scores for row in rows),
        frozenset(row.partition_stamp for row in rows if row.partition_stamp),
        frozenset(row.score_stamp for row in rows if row.score_stamp),
    )


def given_stamp(sets: Sequence[Generations], what: str) -> Stamp:
    """Return the version and backend of the partitions or scores in the files.

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


def own(found: Generations, p: int, values: Sequence[Any] | None, field: str) -> Sequence[Any]:
    """Return the file's own `values` for prompt `p`.

    Raises:
        DataError: there are none.
    """
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


def spread(length: int, wanted: int) -> list[int]:
    """Return at most `wanted` evenly spaced indices below `length`, the first included."""
    count = min(length, wanted)
    return [place * length // count for place in range(count)]
