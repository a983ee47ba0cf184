"""Files of generations: for each prompt several texts, whoever wrote them.

They have one record per prompt, as NoveltyBench's have, or one record per text, which are grouped
by prompt, as `anchored sample --out` writes them.
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
    """One model's texts: `texts[p]` are the answers to `prompts[p]`, in the order they came.

    `partitions[p]` and `scores[p]` are what the file says of them, None where it says nothing;
    the stamps say who judged. `models` are the names in the rows' field `model`. `annotations[p]`
    are what the model wrote before each text, None before one without; where the form of the file
    has no place for them there are none at all.
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
        """Texts of each prompt."""
        return tuple(map(len, self.texts))

    def first(self, n: int) -> Generations:
        """The first `n` texts of each prompt, which an order of drawing makes a sample of n.

        Raises:
            DataError: a prompt has fewer.
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
        """The prompts at these places, in this order."""
        return replace(
            self,
            prompts=tuple(self.prompts[i] for i in order),
            texts=tuple(self.texts[i] for i in order),
            partitions=tuple(self.partitions[i] for i in order),
            scores=tuple(self.scores[i] for i in order),
            annotations=tuple(self.annotations[i] for i in order if self.annotations),
        )

    def annotation(self, p: int, i: int) -> Annotation | None:
        """What the model wrote before `texts[p][i]`; None where nothing is known of it."""
        return self.annotations[p][i] if self.annotations else None


def read_sets(paths: Sequence[Path], n: int | None = None) -> list[Generations]:
    """The files side by side: distinct names, the same prompts in one order, equal sizes.

    A set is called by the one model that its rows name, else by its file's name; if two would be
    called alike, by their paths.

    Args:
        paths: a file a set.
        n: texts a prompt, the first ones; by default all, and then they must be equally many.

    Raises:
        DataError: a file cannot be read, is given twice, has other prompts than the first, or
            numbers of texts differ (diversity at different numbers does not compare).
    """
    doubled = [path for path, count in Counter(paths).items() if count > 1]
    if doubled:
        raise DataError(f"{doubled[0]}: is given twice; name each file once")
    return side_by_side(_named([read_generations(path) for path in paths], paths), n)


def side_by_side(sets: Sequence[Generations], n: int | None = None) -> list[Generations]:
    """The sets with the same prompts in one order and equally many texts.

    Args:
        sets: with distinct names.
        n: texts per prompt, see `read_sets`.

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
                f"and diversity compares only at equal numbers; use --n {smallest}"
            )
    return smallest


def _like(first: Generations, other: Generations) -> Generations:
    """`other` with its prompts in the order of `first`'s; a repeated prompt by its turn."""
    places = {key: i for i, key in enumerate(_keys(other.prompts))}
    wanted = _keys(first.prompts)
    for one, known, name, against in (
        (wanted, places, other.name, first.name),
        (places, set(wanted), first.name, other.name),
    ):
        if missing := [prompt for prompt, turn in one if (prompt, turn) not in known]:
            raise DataError(
                f"{name}: lacks {len(missing)} prompts of {against}, the first being "
                f"{missing[0][:60]!r}; score answers to the same prompts, or each file by itself"
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
    """Rows that are in memory, in any of the formats.

    Args:
        name: of the set.
        rows: each with its place, for errors.

    Raises:
        DataError: there is no row, or one has a field missing or wrong.
    """
    read = answers_rows(rows)
    if not read:
        raise DataError(f"{name}: holds no rows; a row has {GENERATIONS_FORMATS}")
    flat = read[0].annotations is not None
    models = frozenset(row.model for row in read if row.model)
    return replace(_grouped(read) if flat else _listed(read), name=name, models=models)


def read_generations(path: Path) -> Generations:
    """One file, `.jsonl` or `.json`, either optionally `.gz` or `.xz`, in any of the formats.

    Raises:
        DataError: the file is missing, empty or damaged, or a row has a field missing or wrong;
            file, line, field and value are named.
    """
    unit = "line" if ".jsonl" in path.suffixes else "item"
    rows = [(f"{path}: {unit} {number}", row) for number, row in read_jsonl(path)]
    return replace(generations_of(str(path), rows), name=path.name)


def _grouped(rows: Sequence[Answers]) -> Generations:
    """Rows with a text each, by prompt."""
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
    """Rows with a prompt each and all its texts."""
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


def own(found: Generations, p: int, values: Sequence[Any] | None, field: str) -> Sequence[Any]:
    """What the file says of prompt `p`.

    Raises:
        DataError: it says nothing.
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
    """At most `wanted` indices below `length`, evenly spaced, the first included."""
    count = min(length, wanted)
    return [place * length // count for place in range(count)]
