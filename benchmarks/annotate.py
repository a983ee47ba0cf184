"""The offline annotator on real text: precision of its tags against labels, and chunks a second.

    python benchmarks/annotate.py [DATA]

Calibrated on 4,000 chunks of the stories and prose; labelled texts are read whole, as a response
is. `precision` is the share of the tags written that are right, `coverage` the share of the texts
that got one.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from anchored.annotate import labels
from anchored.annotate.offline import OfflineAnnotator
from anchored.annotate.rules import Words, action_counts
from anchored.annotation import Annotation, Key, Schema
from anchored.files import read_jsonl
from anchored.segments import split_chunks

Row = Mapping[str, Any]
SAMPLE = 4_000
LABELLED = 300
KEYS = ("topic", "domain", "genre", "entity", "action", "location", "style")
STYLES = {"poem": "verse", "song": "verse", "podcast": "script", "debate scene": "dialogue"}
DOMAINS = {
    "food article": "food",
    "book Q&A": "literature",
    "movie Q&A": "entertainment",
}
GENRES = {
    "Romance": ("romance",),
    "Western": ("western",),
    "Comedy": ("comedy",),
    "Crime": ("mystery",),
    "Historical Fiction": ("historical",),
    "Horror": ("horror",),
    "Science Fiction": ("science fiction",),
    "Fantasy": ("fantasy",),
}


def schema() -> Schema:
    """The keys that there are labels for."""
    keys = [Key(name=name, description=name, many=name == "entity") for name in KEYS]
    return Schema(name="labelled", keys=tuple(keys))


def rows(data: Path) -> dict[str, list[Row]]:
    """The rows of the shared data, by file."""
    files = ("stories/stories", "prose/mixed", "labelled/fairytales")
    return {name: [row for _, row in read_jsonl(data / f"{name}.jsonl.xz")] for name in files}


def sample(found: Mapping[str, list[Row]], rng: random.Random) -> list[str]:
    """Chunks to calibrate on, a few a row."""
    texts: list[str] = []
    pool = found["stories/stories"] + found["prose/mixed"]
    for row in rng.sample(pool, SAMPLE // 4):
        chunks = split_chunks(row["text"])
        texts += rng.sample(chunks, min(4, len(chunks)))
    return texts


def topics(found: Mapping[str, list[Row]]) -> Iterator[tuple[str, set[str]]]:
    """Texts that were asked for on a topic which labels.yaml has."""
    gold = yaml.safe_load(Path(__file__).with_name("annotate_topics.yaml").read_text())
    for row in found["prose/mixed"]:
        if row["labels"].get("topic") in gold:
            yield row["text"], set(gold[row["labels"]["topic"]].split())


def by_label(
    pool: Iterable[Row], field: str, right: Mapping[str, Any]
) -> Iterator[tuple[str, set[str]]]:
    """Texts whose label is in `right`, with the values that are right for it."""
    for row in pool:
        value = row["labels"].get(field)
        if isinstance(value, str) and value in right:
            values = right[value]
            yield row["text"], {values} if isinstance(values, str) else set(values)


def settings(found: Mapping[str, list[Row]]) -> Iterator[tuple[str, set[str]]]:
    """Slice-of-life stories and the kind of place that each was to be set in, where known."""
    for row in found["stories/stories"]:
        wanted = row["labels"].get("location", "")
        known = {label for _, label in labels.places().find(wanted.lower().split())}
        if known:
            yield row["text"], known


def people(found: Mapping[str, list[Row]]) -> Iterator[tuple[str, set[str]]]:
    """Slice-of-life stories and the names they were asked to be about."""
    for row in found["stories/stories"]:
        if row["labels"].get("entity"):
            yield row["text"], set(row["labels"]["entity"])


def experts(found: Mapping[str, list[Row]], field: str) -> Iterator[tuple[str, str]]:
    """Fairy tales and what experts answered, as one lower-case text."""
    for row in found["labelled/fairytales"]:
        if row["labels"][field]:
            yield row["text"], " | ".join(row["labels"][field]).lower()


def is_one_of(values: tuple[str, ...], right: set[str]) -> int:
    """How many of the values are right."""
    return sum(value in right for value in values)


def is_named(values: tuple[str, ...], answers: str) -> int:
    """How many of the values occur in the answers, or share a lexicon entry with them."""
    words = Words.of(answers)
    known = {label for _, label in labels.places().find(words.lower)} | {*action_counts(words)}
    return sum(value.lower() in answers or value in known for value in values)


def measure(
    annotator: OfflineAnnotator,
    key: str,
    pairs: Iterable[tuple[str, Any]],
    right: Callable[[tuple[str, ...], Any], int],
) -> tuple[int, float, float]:
    """Texts, coverage and precision."""
    pairs = list(pairs)
    pairs = random.Random(0).sample(pairs, min(LABELLED, len(pairs)))
    read: list[Annotation] = annotator.annotate_batch([text for text, _ in pairs])
    values = [annotation.values(key) for annotation in read]
    tags = sum(map(len, values))
    good = sum(right(found, gold) for found, (_, gold) in zip(values, pairs, strict=True))
    return len(pairs), sum(map(bool, values)) / len(pairs), good / tags


def main(data: Path) -> None:
    """Prints both tables."""
    rng, found = random.Random(0), rows(data)
    chunks = sample(found, rng)
    annotator = OfflineAnnotator.fit(schema(), chunks)
    mixed = found["prose/mixed"]
    tests = {
        ("topic", "requested topic, mapped"): (topics(found), is_one_of),
        ("domain", "kind of article"): (by_label(mixed, "style", DOMAINS), is_one_of),
        ("genre", "genre of TV script"): (by_label(mixed, "domain", GENRES), is_one_of),
        ("style", "poem, podcast, debate"): (by_label(mixed, "style", STYLES), is_one_of),
        ("entity", "requested names"): (people(found), is_one_of),
        ("entity", "experts' answers"): (experts(found, "entity"), is_named),
        ("location", "requested setting"): (settings(found), is_one_of),
        ("location", "experts' answers"): (experts(found, "location"), is_named),
        ("action", "experts' answers"): (experts(found, "action"), is_named),
    }
    print("| key | labels | texts | coverage | precision |\n|---|---|---|---|---|")
    for (key, source), (pairs, right) in tests.items():
        n, coverage, precision = measure(annotator, key, pairs, right)
        print(f"| {key} | {source} | {n} | {coverage:.2f} | {precision:.2f} |", flush=True)
    begin = time.process_time()
    for i in range(0, len(chunks), 500):
        annotator.annotate_batch(chunks[i : i + 500])
    speed = len(chunks) / (time.process_time() - begin)
    length = sum(map(len, chunks)) / len(chunks)
    print(f"\n{speed:,.0f} chunks of {length:.0f} characters a CPU second")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data"))
