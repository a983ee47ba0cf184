"""Reads files of generations: several texts per prompt, from any model.

A file has one record per prompt, like NoveltyBench's files, or one record per text, like those of
`anchored sample --out`. Records of texts are grouped by prompt. The texts of a corpus, which have
no prompt, count as answers to one.
"""

from __future__ import annotations

import random
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

CORPUS_TEXTS = 2000  # drawn from a corpus: 25 s on one core, quadratic in their number
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
        truncated: `truncated[p]` has True for each text cut at the token limit, None where that is
            not known. Empty if it is known of no text.
        corpus: True for texts without prompts.
        notes: which of its prompts or texts are left out of a comparison, and why.
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
    truncated: tuple[tuple[bool | None, ...], ...] = ()
    corpus: bool = False
    notes: tuple[str, ...] = ()

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
        return self._only(range(n))

    def drawn(self, n: int, seed: int) -> Generations:
        """Return `n` texts of a corpus, drawn at random, with a note; all if it has no more."""
        total = len(self.texts[0])
        if n >= total:
            return self
        note = (
            f"{self.name}: {n} of its {total} texts, drawn with seed {seed}, count as answers to "
            "one prompt."
        )
        chosen = sorted(random.Random(seed).sample(range(total), n))
        return replace(self._only(chosen), notes=(*self.notes, note))

    def _only(self, places: Sequence[int]) -> Generations:
        """Return the texts at these places of each prompt."""

        def at(values: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(values[i] for i in places)

        return replace(
            self,
            texts=tuple(at(texts) for texts in self.texts),
            partitions=tuple(found and at(found) for found in self.partitions),
            scores=tuple(found and at(found) for found in self.scores),
            annotations=tuple(at(found) for found in self.annotations),
            truncated=tuple(at(found) for found in self.truncated),
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
            truncated=tuple(self.truncated[i] for i in order if self.truncated),
        )

    def annotation(self, p: int, i: int) -> Annotation | None:
        """Return what the model wrote before `texts[p][i]`; None if that is unknown."""
        return self.annotations[p][i] if self.annotations else None

    @property
    def truncation_rate(self) -> float | None:
        """Share of texts cut at the token limit, among those of which it is known; else None."""
        known = [cut for texts in self.truncated for cut in texts if cut is not None]
        return sum(known) / len(known) if known else None


def read_sets(paths: Sequence[Path], n: int | None = None, seed: int = 0) -> list[Generations]:
    """Read files to compare, with distinct names, the same prompts in one order and equal sizes.

    A set is named after the model if its rows name exactly one, else after its file. If two names
    would be equal, both sets are named by their paths.

    Args:
        paths: one file per set.
        n: number of texts per prompt, the first ones; by default all, which must be equally many.
            Of a corpus, so many are drawn; by default at most `CORPUS_TEXTS`, equally many of each.
        seed: seed of that draw.

    Raises:
        DataError: a file cannot be read or is given twice, no prompt is common to all files, or the
            numbers of texts differ (diversity is comparable only at equal numbers).
    """
    doubled = [path for path, count in Counter(paths).items() if count > 1]
    if doubled:
        raise DataError(f"{doubled[0]}: given twice; name each file once")
    return side_by_side(_named([read_generations(path) for path in paths], paths), n, seed)


def side_by_side(
    sets: Sequence[Generations], n: int | None = None, seed: int = 0
) -> list[Generations]:
    """Return the sets with their common prompts in one order and equally many texts.

    Args:
        sets: sets with distinct names.
        n: number of texts per prompt; see `read_sets`.
        seed: seed of the draw from a corpus.

    Raises:
        DataError: see `read_sets`.
    """
    sets = _on_common_prompts(sets)
    if all(found.corpus for found in sets):
        size = n or min(CORPUS_TEXTS, *(len(found.texts[0]) for found in sets))
        sets = [found.drawn(size, seed) for found in sets]
    size = n or _common_size(sets)
    return [found if set(found.sizes) == {size} else found.first(size) for found in sets]


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


def _on_common_prompts(sets: Sequence[Generations]) -> list[Generations]:
    """Return the prompts that all sets have, repeated ones included, in the order of the first's.

    Raises:
        DataError: no prompt is common to all sets.
    """
    places = [{key: i for i, key in enumerate(_keys(found.prompts))} for found in sets]
    common = [key for key in places[0] if all(key in one for one in places)]
    if not common:
        raise _nothing_common(sets)
    found = []
    for one, place in zip(sets, places, strict=True):
        left_out = len(place) - len(common)
        note = (
            f"{one.name}: {left_out} of its {len(place)} prompts are left out, because another "
            "file lacks them."
        )
        kept = one.select([place[key] for key in common])
        found.append(replace(kept, notes=(*one.notes, note)) if left_out else kept)
    return found


def _nothing_common(sets: Sequence[Generations]) -> DataError:
    first = sets[0]
    for other in sets[1:]:
        if not set(other.prompts) & set(first.prompts):
            return DataError(
                f"{other.name}: has no prompt in common with {first.name}, which starts with "
                f"{first.prompts[0][:60]!r}; score answers to the same prompts, or each file alone"
            )
    return DataError(
        f"{first.name}: none of its prompts is in all {len(sets)} files; score fewer files at once"
    )


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
    return replace(
        _grouped(read) if flat else _listed(read),
        name=name,
        models=frozenset(row.model for row in read if row.model),
        corpus=not any(row.prompted for row in read),
    )


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
    groups: dict[str, list[Answers]] = {}
    for row in rows:
        groups.setdefault(row.prompt, []).append(row)
    nothing = (None,) * len(groups)

    def of_each(field: str) -> tuple[tuple[Any, ...], ...]:
        return tuple(
            tuple(value for row in group for value in getattr(row, field))
            for group in groups.values()
        )

    return Generations(
        "",
        tuple(groups),
        of_each("texts"),
        nothing,
        nothing,
        annotations=of_each("annotations"),
        truncated=_if_known(of_each("truncated")),
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
        truncated=_if_known(tuple(row.truncated for row in rows)),
    )


def _if_known(
    truncated: tuple[tuple[bool | None, ...], ...],
) -> tuple[tuple[bool | None, ...], ...]:
    return truncated if any(cut is not None for texts in truncated for cut in texts) else ()


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
