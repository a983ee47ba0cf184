"""Measure the offline annotator on real text: its tags against labels, and its speed by key.

    python benchmarks/annotate.py [DATA] [SEED]

The annotator is calibrated on 4,000 chunks of the stories and prose. Labelled texts are read whole,
like responses. `precision` is the share of written tags that are right, `recall` the share of texts
with a right tag, `coverage` the share of texts with any tag. The speed of a key is measured with a
schema that has no other key.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from anchored.annotation import Annotation, Key, Schema
from anchored.annotators import labels
from anchored.annotators.offline import OfflineAnnotator
from anchored.annotators.rules import Words, action_counts
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
    """Return a schema of the keys that have labels."""
    keys = [Key(name=name, description=name, many=name == "entity") for name in KEYS]
    return Schema(name="labelled", keys=tuple(keys))


def rows(data: Path) -> dict[str, list[Row]]:
    """Return the rows of the shared data, by file."""
    files = ("stories/stories", "prose/mixed", "labelled/fairytales")
    return {name: [row for _, row in read_jsonl(data / f"{name}.jsonl.xz")] for name in files}


def sample(found: Mapping[str, list[Row]], rng: random.Random) -> list[str]:
    """Draw chunks to calibrate on, a few per row."""
    texts: list[str] = []
    pool = found["stories/stories"] + found["prose/mixed"]
    for row in rng.sample(pool, SAMPLE // 4):
        chunks = split_chunks(row["text"])
        texts += rng.sample(chunks, min(4, len(chunks)))
    return texts


def topics(found: Mapping[str, list[Row]]) -> Iterator[tuple[str, set[str]]]:
    """Return texts that were requested on a topic listed in labels.yaml."""
    gold = yaml.safe_load(Path(__file__).with_name("annotate_topics.yaml").read_text())
    for row in found["prose/mixed"]:
        if row["labels"].get("topic") in gold:
            yield row["text"], set(gold[row["labels"]["topic"]].split())


def by_label(
    pool: Iterable[Row], field: str, right: Mapping[str, Any]
) -> Iterator[tuple[str, set[str]]]:
    """Return texts whose label is in `right`, with the values that are right for it."""
    for row in pool:
        value = row["labels"].get(field)
        if isinstance(value, str) and value in right:
            values = right[value]
            yield row["text"], {values} if isinstance(values, str) else set(values)


def settings(found: Mapping[str, list[Row]]) -> Iterator[tuple[str, set[str]]]:
    """Return slice-of-life stories and the kind of place requested for each, if known."""
    for row in found["stories/stories"]:
        wanted = row["labels"].get("location", "")
        known = {label for _, label in labels.places().find(wanted.lower().split())}
        if known:
            yield row["text"], known


def people(found: Mapping[str, list[Row]]) -> Iterator[tuple[str, set[str]]]:
    """Return slice-of-life stories and the names requested for each."""
    for row in found["stories/stories"]:
        if row["labels"].get("entity"):
            yield row["text"], set(row["labels"]["entity"])


def experts(found: Mapping[str, list[Row]], field: str) -> Iterator[tuple[str, str]]:
    """Return fairy tales and the experts' answers, as one lower-case text."""
    for row in found["labelled/fairytales"]:
        if row["labels"][field]:
            yield row["text"], " | ".join(row["labels"][field]).lower()


def is_one_of(values: tuple[str, ...], right: set[str]) -> int:
    """Count the values that are right."""
    return sum(value in right for value in values)


def is_named(values: tuple[str, ...], answers: str) -> int:
    """Count the values that occur in the answers, or share a lexicon entry with them."""
    words = Words.of(answers)
    known = {label for _, label in labels.places().find(words.lower)} | {*action_counts(words)}
    return sum(value.lower() in answers or value in known for value in values)


def measure(
    annotator: OfflineAnnotator,
    key: str,
    pairs: Iterable[tuple[str, Any]],
    right: Callable[[tuple[str, ...], Any], int],
    seed: int,
) -> tuple[int, float, float, float]:
    """Return the number of texts, precision, recall and coverage."""
    pairs = list(pairs)
    pairs = random.Random(seed).sample(pairs, min(LABELLED, len(pairs)))
    read: list[Annotation] = annotator.annotate_batch([text for text, _ in pairs])
    values = [annotation.values(key) for annotation in read]
    tags = sum(map(len, values))
    good = [right(found, gold) for found, (_, gold) in zip(values, pairs, strict=True)]
    recall, coverage = (sum(map(bool, found)) / len(pairs) for found in (good, values))
    return len(pairs), sum(good) / tags, recall, coverage


def speed(annotator: OfflineAnnotator, chunks: list[str]) -> float:
    """Return chunks per CPU second, in batches of 500."""
    annotator.annotate_batch(chunks[:100])  # load the gazetteer and other data first
    begin = time.process_time()
    for i in range(0, len(chunks), 500):
        annotator.annotate_batch(chunks[i : i + 500])
    return len(chunks) / (time.process_time() - begin)


def main(data: Path, seed: int) -> None:
    """Print both tables."""
    rng, found = random.Random(seed), rows(data)
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
    print("| key | labels | texts | precision | recall | coverage |\n|---|---|---|---|---|---|")
    for (key, source), (pairs, right) in tests.items():
        n, *shares = measure(annotator, key, pairs, right, seed)
        print(f"| {key} | {source} | {n} | {' | '.join(f'{x:.2f}' for x in shares)} |", flush=True)
    length = sum(map(len, chunks)) / len(chunks)
    print(f"\n| key | chunks of {length:.0f} characters a CPU second |\n|---|---|")
    whole = OfflineAnnotator.fit(Schema.load("general"), chunks)
    for key in whole.schema.keys:
        alone = OfflineAnnotator(Schema(name=key.name, keys=(key,)), whole.calibration)
        print(f"| {key.name} | {speed(alone, chunks):,.0f} |", flush=True)
    print(f"| all of `general` | {speed(whole, chunks):,.0f} |")


if __name__ == "__main__":
    given = sys.argv[1:]
    main(Path(given[0] if given else "../shared/data"), int(given[1]) if len(given) > 1 else 0)
