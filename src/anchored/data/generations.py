"""Files of generations: for each prompt several texts, whoever wrote them.

Rows are `{prompt, generations: [...]}`, a row a prompt (NoveltyBench's, with their `partition` and
`generation_scores`, are such rows); or `{prompt, response}`, a row a text, grouped by prompt
(`anchored sample --out` writes such rows, with the `annotation` that the model wrote first).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anchored.annotation import Annotation
from anchored.errors import DataError
from anchored.files import read_jsonl
from anchored.metrics.noveltybench import Stamp, same_stamp, stored_stamp

FORMS = "prompt and generations (a list of texts), or prompt and response"
_ENDING = re.compile(r"\.jsonl?(\.gz|\.xz)?$")

Row = Mapping[str, Any]
Scores = tuple[float | None, ...]


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
    sets = _named([read_generations(path) for path in paths], paths)
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


def read_generations(path: Path) -> Generations:
    """One file, `.jsonl` or `.json`, either optionally `.gz` or `.xz`, in any of the forms.

    Raises:
        DataError: the file is missing, empty or damaged, or a row has a field missing or wrong;
            file, line, field and value are named.
    """
    unit = "line" if ".jsonl" in path.suffixes else "item"
    rows = [(f"{path}: {unit} {number}", row) for number, row in read_jsonl(path)]
    if not rows:
        raise DataError(f"{path}: holds no rows; a row has {FORMS}")
    field = "generations" if "generations" in rows[0][1] else "response"
    for where, row in rows:
        if field not in row:
            fields = ", ".join(row) or "none"
            raise DataError(f"{where}: {field}: missing (fields: {fields}); a row has {FORMS}")
    read = _prompted if field == "generations" else _flat
    models = frozenset(str(row["model"]) for _, row in rows if row.get("model"))
    return replace(read(rows), name=path.name, models=models)


def _flat(rows: Sequence[tuple[str, Row]]) -> Generations:
    groups: dict[str, list[tuple[str, Annotation | None]]] = {}
    for where, row in rows:
        answer = _text(where, "response", row["response"]), _annotation(where, row)
        groups.setdefault(_prompt(where, row), []).append(answer)
    nothing = (None,) * len(groups)
    return Generations(
        "",
        tuple(groups),
        tuple(tuple(text for text, _ in group) for group in groups.values()),
        nothing,
        nothing,
        annotations=tuple(tuple(written for _, written in group) for group in groups.values()),
    )


def _annotation(where: str, row: Row) -> Annotation | None:
    rows = row.get("annotation")
    if rows is None:
        return None
    if not isinstance(rows, list):
        raise DataError(
            f"{where}: annotation: {str(rows)[:80]!r} is no list of tags; write "
            '[{"key": ..., "value": ...}], or leave the field out'
        )
    try:
        return Annotation.from_rows(rows)
    except DataError as error:
        raise DataError(f"{where}: annotation: {error}") from None


def _prompted(rows: Sequence[tuple[str, Row]]) -> Generations:
    return Generations(
        "",
        tuple(_prompt(where, row) for where, row in rows),
        tuple(_texts(where, row["generations"]) for where, row in rows),
        tuple(_partition(where, row) for where, row in rows),
        tuple(_scores(where, row) for where, row in rows),
        frozenset(stored_stamp(row, "partition") for _, row in rows if "partition" in row),
        frozenset(stored_stamp(row, "score") for _, row in rows if "generation_scores" in row),
    )


def _prompt(where: str, row: Row) -> str:
    """The prompt; empty where it is null, as in samples without one."""
    if "prompt" not in row:
        raise DataError(f"{where}: prompt: missing; a row has {FORMS}")
    return "" if row["prompt"] is None else _text(where, "prompt", row["prompt"])


def _text(where: str, field: str, value: Any) -> str:
    if not isinstance(value, str):
        kind = type(value).__name__
        raise DataError(
            f"{where}: {field}: {str(value)[:80]!r} is {kind}, not text; write a string"
        )
    return value


def _texts(where: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: generations: {str(value)[:80]!r} is no list of texts; write one")
    return tuple(_text(where, f"generations[{i}]", text) for i, text in enumerate(value))


def _partition(where: str, row: Row) -> tuple[int, ...] | None:
    found = _column(where, row, "partition")
    if found is None:
        return None
    for i, label in enumerate(found):
        if not isinstance(label, int) or isinstance(label, bool):
            raise DataError(f"{where}: partition[{i}]: {label!r} is no class number; write one")
    return tuple(found)


def _scores(where: str, row: Row) -> Scores | None:
    found = _column(where, row, "generation_scores")
    if found is None:
        return None
    for i, score in enumerate(found):
        if isinstance(score, bool) or not isinstance(score, int | float | None):
            raise DataError(f"{where}: generation_scores[{i}]: {score!r} is no number; write one")
    return tuple(found)


def _column(where: str, row: Row, field: str) -> list[Any] | None:
    value, wanted = row.get(field), len(row["generations"])
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != wanted:
        raise DataError(
            f"{where}: {field}: {str(value)[:80]!r} is no list of {wanted}, one item a generation; "
            "mend it or leave the field out"
        )
    return value


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
