"""Compare the distilled annotator with the offline rules on labelled data.

    python benchmarks/distil.py [DATA] [--seeds N] [--only KEY]

The figures are precision, recall and coverage. Labels are what the text's author was asked for
(stories, articles, scripts) and experts' answers about fairy tales. Texts are read whole. A row is
the mean over the seeds, each with its own split: three fifths to learn from, a fifth to choose on,
and a held-out fifth, on which the figures are measured. `rules` are the offline annotator's tags on
the same held-out texts, if it reads the key with the same vocabulary; it does not read `kind` and
`subject`.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from annotate import DOMAINS, GENRES, STYLES, Row, by_label, rows

from anchored.annotation import Annotation, Key, Schema, Tag
from anchored.annotators import labels
from anchored.corpus.choose import choose
from anchored.corpus.distil import KeyReport, Scores, distil
from anchored.models.embedders import StaticEmbedder
from anchored.tags.observations import Part

SIZES = (150, 500, 1500)
MOST = 3000  # texts per task and seed
TARGET = 0.8
Labelled = Sequence[tuple[str, set[str]]]


def label_of(pool: Iterable[Row], field: str, least: int = 1) -> Iterator[tuple[str, set[str]]]:
    """Return texts with their unchanged label, for labels that at least so many texts have."""
    found = [(row["text"], row["labels"].get(field)) for row in pool]
    counts: dict[Any, int] = {}
    for _, value in found:
        counts[value] = counts.get(value, 0) + 1
    return ((text, {value}) for text, value in found if value and counts[value] >= least)


def expert_places(pool: Iterable[Row]) -> Iterator[tuple[str, set[str]]]:
    """Return fairy tales with the kinds of place that the experts' answers name."""
    for row in pool:
        told = " ".join(row["labels"]["location"]).lower().split()
        if found := {label for _, label in labels.places().find(told)}:
            yield row["text"], found


def expert_people(pool: Iterable[Row]) -> Iterator[tuple[str, set[str]]]:
    """Return fairy tales with the experts' answers about characters, without articles."""
    for row in pool:
        names = {name.removeprefix("the ").removeprefix("a ") for name in row["labels"]["entity"]}
        if names:
            yield row["text"], names


def tasks(found: Mapping[str, list[Row]]) -> dict[tuple[str, str], Labelled]:
    """Return labelled texts by key and by source of the labels."""
    mixed, stories, tales = (
        found[f] for f in ("prose/mixed", "stories/stories", "labelled/fairytales")
    )
    return {
        ("kind", "kind of story asked for"): list(label_of(stories, "style")),
        ("style", "poem, podcast, debate"): list(by_label(mixed, "style", STYLES)),
        ("genre", "genre of TV script"): list(by_label(mixed, "domain", GENRES)),
        ("domain", "kind of article"): list(by_label(mixed, "style", DOMAINS)),
        ("subject", "topic asked for, of 25 texts or more"): list(label_of(mixed, "topic", 25)),
        ("location", "fairy tales, experts' places"): list(expert_places(tales)),
        ("entity", "fairy tales, experts' characters"): list(expert_people(tales)),
    }


def parts(labelled: Labelled, key: str) -> list[Part]:
    """Return labelled texts as annotated parts, with the labels as tags of `key`."""
    return [
        Part(str(n), "", text, Annotation(tuple(Tag(key, value) for value in sorted(values))))
        for n, (text, values) in enumerate(labelled)
    ]


def mean(values: Iterable[float | None]) -> str:
    """Format the mean and range of the known values."""
    told = [value for value in values if value is not None]
    if not told:
        return "—"
    spread = f" ± {(max(told) - min(told)) / 2:.2f}" if len(told) > 1 else ""
    return f"{np.mean(told):.2f}{spread}"


def cells(scores: Sequence[Scores | None]) -> str:
    """Format precision, recall and coverage."""
    there = [one for one in scores if one is not None]
    get: list[Callable[[Scores], float | None]] = [
        lambda s: s.precision, lambda s: s.recall, lambda s: s.coverage
    ]  # fmt: skip
    return " | ".join(mean(map(one, there)) for one in get)


def measure(found: Sequence[Part], key: str, seeds: int) -> list[KeyReport]:
    """Return one report per seed."""
    repeats = any(len(part.annotation or ()) > 1 for part in found)
    schema = Schema(name="labelled", keys=(Key(name=key, description=key, many=repeats),))
    drawn = (random.Random(seed).sample(found, min(MOST, len(found))) for seed in range(seeds))
    return [distil(some, schema, TARGET, seed)[1][key] for seed, some in enumerate(drawn)]


def table(data: Mapping[tuple[str, str], Labelled], seeds: int) -> None:
    """Print one row per task."""
    head = (
        "key",
        "labels",
        "texts",
        "classes",
        "read by",
        *("precision", "recall", "coverage"),
        "kappa",
        "calibration error",
        *(f"rules: {x}" for x in ("precision", "recall", "coverage")),
    )
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for (key, source), labelled in data.items():
        reports = measure(parts(labelled, key), key, seeds)
        by = "/".join(sorted({one.by for one in reports}))
        told = [one.distilled for one in reports]
        kappa = mean(one.kappa for one in told if one)
        error = mean(one.calibration_error for one in reports)
        row = (
            key,
            source,
            f"{len(labelled):,}",
            str(reports[0].values),
            by,
            cells(told),
            kappa,
            error,
            cells([one.rules for one in reports]),
        )
        print(f"| {' | '.join(row)} |", flush=True)


def curve(labelled: Labelled, key: str, seeds: int) -> None:
    """Print the figures for each size of labelled sample, drawn at random and chosen."""
    vectors = StaticEmbedder().embed([text for text, _ in labelled])
    print("\n| sample | drawn | precision | recall | coverage |\n|---|---|---|---|---|")
    for size in (s for s in SIZES if s <= len(labelled)):
        drawn = [random.Random(s).sample(range(len(labelled)), size) for s in range(seeds)]
        picks = {"at random": drawn, "chosen": [choose(vectors, size, s) for s in range(seeds)]}
        for how, samples in picks.items():
            reports = [
                measure(parts([labelled[i] for i in places], key), key, 1)[0] for places in samples
            ]
            print(f"| {size:,} | {how} | {cells([r.distilled for r in reports])} |", flush=True)


def main() -> None:
    """Print both tables and the speed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", metavar="KEY", help="this key's rows of the first table alone")
    options = parser.parse_args()
    data = tasks(rows(options.data))
    if options.only:
        table(
            {task: found for task, found in data.items() if task[0] == options.only}, options.seeds
        )
        return
    table(data, options.seeds)
    kinds = data["kind", "kind of story asked for"]
    curve(kinds, "kind", options.seeds)
    key = Key(name="kind", description="kind of story")
    annotator, _ = distil(parts(kinds[:MOST], "kind"), Schema(name="kind", keys=(key,)), TARGET)
    texts = [chunk for text, _ in kinds[:300] for chunk in text.split("\n\n") if chunk]
    begin = time.process_time()
    annotator.annotate_batch(texts)
    print(f"\n{len(texts) / (time.process_time() - begin):,.0f} chunks a CPU second, one key")


if __name__ == "__main__":
    main()
