r"""Annotations: ordered `key: value` tags that state what a text says (paper, section 3).

This is the only module that writes and parses their grammar:

    annotation := tag ("\n" tag)*        tag := key ":" " " value

A value contains no line break, so nothing needs escaping and the round trip is exact. The space
before a value makes it tokenise like the same word in running text, so that a model can copy it
into the text.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator

from anchored.config import read_yaml, validated
from anchored.errors import ConfigError, DataError

MAX_VALUE_CHARS = 80
_KEY = re.compile(r"[a-z][a-z0-9_]{0,31}")
_KEY_RULE = "use 1-32 of a-z, 0-9 and _, starting with a letter"


def normalise_value(value: str) -> str:
    """Return the stored form of a tag value: one line of at most `MAX_VALUE_CHARS` characters.

    The form is NFC, without control characters and lone surrogates, with white space collapsed.
    The function is idempotent and may return the empty string.
    """
    if not (value.isascii() and value.isprintable()):  # 10 times faster than normalising
        legal = (c for c in value if c.isspace() or unicodedata.category(c) not in ("Cc", "Cs"))
        value = unicodedata.normalize("NFC", "".join(legal))
    return " ".join(value.split())[:MAX_VALUE_CHARS].rstrip()


@dataclass(frozen=True, slots=True)
class Tag:
    """One `key: value` pair; the value is normalised on construction.

    Raises:
        DataError: the key is not `[a-z][a-z0-9_]*` of at most 32 characters, or the value is empty.

    Examples:
        >>> import anchored
        >>> print(anchored.Tag("place", " a  harbour "))
        place: a harbour
    """

    key: str
    value: str

    def __post_init__(self) -> None:
        if not _KEY.fullmatch(self.key):
            raise DataError(f"tag key {self.key!r}: {_KEY_RULE}")
        value = normalise_value(self.value)
        if not value:
            raise DataError(f"tag {self.key!r}: value {self.value!r} is empty; leave the tag out")
        object.__setattr__(self, "value", value)

    def __str__(self) -> str:
        return f"{self.key}: {self.value}"

    def pieces(self, first: bool) -> tuple[tuple[Literal["key", "value"], str], ...]:
        """Return this tag's part of `Annotation.pieces`; `first` for the first tag."""
        lead = "" if first else "\n"
        return ("key", f"{lead}{self.key}:"), ("value", f" {self.value}")


@dataclass(frozen=True, slots=True)
class Annotation:
    """An ordered sequence of tags; a key may repeat. The empty annotation is legal.

    Examples:
        >>> import anchored
        >>> annotation = anchored.Annotation.of({"place": "harbour", "entity": ["Mara", "Otto"]})
        >>> print(annotation)
        place: harbour
        entity: Mara
        entity: Otto
        >>> annotation.values("entity")
        ('Mara', 'Otto')
    """

    tags: tuple[Tag, ...] = ()

    @classmethod
    def of(cls, pairs: Mapping[str, str | Sequence[str]] | Iterable[tuple[str, str]]) -> Annotation:
        """Build an annotation from `{key: value}`, `{key: [values]}` or `(key, value)` pairs."""
        if not isinstance(pairs, Mapping):
            return cls(tuple(Tag(key, value) for key, value in pairs))
        named = cast(Mapping[str, str | Sequence[str]], pairs)
        return cls(
            tuple(
                Tag(key, value)
                for key, values in named.items()
                for value in ([values] if isinstance(values, str) else values)
            )
        )

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, str]]) -> Annotation:
        """Read the stored form, `[{"key": ..., "value": ...}]`.

        Raises:
            DataError: a row does not have that form, or its key or value is not legal.
        """
        return cls(tuple(_tag(row) for row in rows))

    def rows(self) -> list[dict[str, str]]:
        """Return the stored form, `[{"key": ..., "value": ...}]`.

        Plain dicts would become structs in `datasets`, padded with every key of the corpus.
        """
        return [{"key": tag.key, "value": tag.value} for tag in self.tags]

    def __iter__(self) -> Iterator[Tag]:
        return iter(self.tags)

    def __len__(self) -> int:
        return len(self.tags)

    def __str__(self) -> str:
        return "\n".join(map(str, self.tags))

    @property
    def keys(self) -> tuple[str, ...]:
        """The distinct keys in order of first appearance."""
        return tuple(dict.fromkeys(tag.key for tag in self.tags))

    def values(self, key: str) -> tuple[str, ...]:
        """Return all values of `key`, in order."""
        return tuple(tag.value for tag in self.tags if tag.key == key)

    def only(self, keys: Iterable[str]) -> Annotation:
        """Keep the tags whose key is in `keys`, in their order."""
        wanted = set(keys)
        return Annotation(tuple(tag for tag in self.tags if tag.key in wanted))

    def ordered(self, keys: Iterable[str]) -> Annotation:
        """Group the tags by key in the order of `keys`; other keys follow in their own order."""
        return Annotation(tuple(itertools.chain.from_iterable(self._by_key(keys))))

    def shuffled(self, number: int) -> Annotation:
        """Order the keys by `number`; the tags of one key stay together, in order.

        The digits of the number in base n, n - 1, ... 1 select the first of the n keys, then the
        next of the remaining ones: any n! consecutive numbers yield all n! orders.
        """
        left = self._by_key()
        tags: list[Tag] = []
        while left:
            number, at = divmod(number, len(left))
            tags += left.pop(at)
        return Annotation(tuple(tags))

    def _by_key(self, first: Iterable[str] = ()) -> list[list[Tag]]:
        """Group the tags by key: the keys in `first`, then the others as they appear."""
        groups: dict[str, list[Tag]] = {key: [] for key in first}
        for tag in self.tags:
            groups.setdefault(tag.key, []).append(tag)
        return list(groups.values())

    def pieces(self) -> Iterator[tuple[Literal["key", "value"], str]]:
        r"""Yield the written form, split between keys and values.

        `("key", "topic:"), ("value", " love"), ("key", "\nplace:"), ...`: the pieces are encoded
        one by one, so that no token spans a key and its value.
        """
        for i, tag in enumerate(self.tags):
            yield from tag.pieces(first=i == 0)


def _tag(row: Any) -> Tag:
    key, value = (row.get("key"), row.get("value")) if isinstance(row, Mapping) else (None, None)
    if not isinstance(key, str) or not isinstance(value, str):
        raise DataError(f'tag {row!r:.120}: write {{"key": "...", "value": "..."}}')
    return Tag(key, value)


def parse_annotation(text: str) -> Annotation:
    """Parse the written form; the exact inverse of `str(annotation)`.

    Raises:
        DataError: `str` writes `text` for no annotation; the message names the wrong line.
    """
    if not text:
        return Annotation()
    tags = []
    for number, line in enumerate(text.split("\n"), 1):
        key, separator, value = line.partition(": ")
        if not separator or not _KEY.fullmatch(key) or not value or normalise_value(value) != value:
            raise DataError(f"annotation line {number}: {line[:120]!r} is not `key: value`")
        tags.append(Tag(key, value))
    return Annotation(tuple(tags))


_BULLET = re.compile(r"^\s*(?:[-*•>]+|\d+[.)])\s+")
_LOOSE_TAG = re.compile(
    r"\s*[\"'*`]*([A-Za-z][\w \-]{0,31}?)[\"'*`]*\s*[:=]\s*[\"'*`]*(.*?)[\"'*`,;]*\s*$", re.DOTALL
)
_JSON_START = re.compile(r"\{|\[\s*\{")
_NO_WORD = re.compile(r"[\s\-]+")
_BETWEEN_VALUES = re.compile("[,;|]")
_EMPTY_VALUES = {"", "none", "n/a", "na", "null", "unknown", "unspecified", "-"}


def read_annotation(text: str, schema: Schema | None = None) -> Annotation:
    """Read an annotation from a model's output, tolerantly; no text raises an error.

    The text may be JSON, or lines with bullets, bold or quoted keys, `=`, fences and prose in
    between. With a schema, unknown keys and values outside a closed vocabulary are left out, lists
    are split for keys that take many values, and other keys keep only their first value.
    """
    return annotation_of(read_pairs(text), schema)


def annotation_of(pairs: Iterable[tuple[str, str]], schema: Schema | None = None) -> Annotation:
    """Build an annotation from the result of `read_pairs`; see `read_annotation`."""
    found: dict[Tag, None] = {}
    for key, raw_value in pairs:
        for value in _split_values(key, raw_value, schema):
            if normalise_value(value).lower() not in _EMPTY_VALUES:
                found[Tag(key, value)] = None
    annotation = Annotation(tuple(found))
    return schema.conform(annotation) if schema else annotation


def read_pairs(text: str) -> list[tuple[str, str]]:
    """Read pairs of legal keys and raw values from a model's output, before any schema applies."""
    pairs = _json_pairs(text)
    if pairs is None:
        pairs = [pair for line in text.splitlines() for pair in _line_pairs(line)]
    keyed = ((_NO_WORD.sub("_", key.strip().lower()), value) for key, value in pairs)
    return [(key, value) for key, value in keyed if _KEY.fullmatch(key)]


def _json_pairs(text: str) -> list[tuple[str, str]] | None:
    """Read the first JSON object or list of objects in `text`; return None if there is none."""
    for match in itertools.islice(_JSON_START.finditer(text), 10):
        try:
            data, _ = json.JSONDecoder().raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        return list(_walk(data))
    return None


def _walk(data: Any) -> Iterator[tuple[str, str]]:
    """Yield the pairs of `{key: value}`, `{key: [values]}` or `[{"key": key, "value": value}]`."""
    if isinstance(data, list):
        for item in data:
            yield from _walk(item)
    elif isinstance(data, dict) and data.keys() == {"key", "value"}:
        yield from _walk({str(data["key"]): data["value"]})
    elif isinstance(data, dict):
        for key, value in data.items():
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, str | int | float) and not isinstance(item, bool):
                    yield key, str(item)


def _line_pairs(line: str) -> Iterator[tuple[str, str]]:
    match = _LOOSE_TAG.match(_BULLET.sub("", line[:2000]))
    if match:
        yield match[1], match[2]


def _split_values(key: str, value: str, schema: Schema | None) -> list[str]:
    spec = schema.key(key) if schema else None
    if spec and spec.limit != 1:
        return [part.strip(" \"'`[]") for part in _BETWEEN_VALUES.split(value)]
    return [value]


class Key(BaseModel):
    """One key of a schema: its meaning, its legal values, and whether it is anchored in SFT."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str = Field(description="what the tag says, in the words the annotator is given")
    values: tuple[str, ...] | None = Field(
        default=None, description="closed vocabulary; None for open"
    )
    many: bool | int = Field(
        default=False,
        description="whether the key may repeat in one annotation; a number is the maximum",
    )
    anchored: bool = Field(
        default=True, description="False for what SFT should change, such as form and register"
    )

    @field_validator("name")
    @classmethod
    def _legal_name(cls, name: str) -> str:
        if not _KEY.fullmatch(name):
            raise ValueError(_KEY_RULE)
        return name

    @field_validator("values")
    @classmethod
    def _normal_values(cls, values: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if values is None:
            return None
        normal = tuple(dict.fromkeys(map(normalise_value, values)))
        if not normal or "" in normal:
            raise ValueError("a closed vocabulary needs at least one value, and no empty ones")
        if len(_vocabulary(normal)) < len(normal):
            raise ValueError("two values differ only in case, spaces, - or _")
        return normal

    @field_validator("many")
    @classmethod
    def _positive_number(cls, many: bool | int) -> bool | int:
        if not isinstance(many, bool) and many < 1:
            raise ValueError("the number of tags must be 1 or more; false means one")
        return many

    @property
    def limit(self) -> int | None:
        """The maximum number of tags with this key in one annotation; None for no maximum."""
        if isinstance(self.many, bool):
            return None if self.many else 1
        return self.many

    def full(self, count: int) -> bool:
        """Return True if an annotation with `count` tags of this key can take no more."""
        return self.limit is not None and count >= self.limit

    def accept(self, value: str) -> str | None:
        """Return the stored form of `value`, or None if it is outside the vocabulary."""
        if self.values is None:
            return value
        return _vocabulary(self.values).get(fold(value))


def fold(value: str) -> str:
    """Normalise differences that do not distinguish values: case, `-`, `_` and spaces."""
    return " ".join(normalise_value(value).casefold().replace("_", " ").replace("-", " ").split())


@functools.cache
def _vocabulary(values: tuple[str, ...]) -> dict[str, str]:
    """Map folded to stored forms; cached, because `prepare` needs it for every tag of a corpus."""
    return {fold(value): value for value in values}


class Schema(BaseModel):
    """The keys an annotation may use, in canonical order.

    Examples:
        >>> import anchored
        >>> schema = anchored.Schema(
        ...     name="mine",
        ...     keys=[
        ...         {"name": "place", "description": "where it happens"},
        ...         {"name": "mood", "description": "how it feels", "values": ["calm", "merry"]},
        ...     ],
        ... )
        >>> print(schema.conform(anchored.Annotation.of({"mood": "Calm", "plot": "none"})))
        mood: calm
        >>> anchored.Schema.load("general").names[:3]
        ('topic', 'domain', 'entity')
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    keys: tuple[Key, ...]

    @field_validator("keys")
    @classmethod
    def _distinct(cls, keys: tuple[Key, ...]) -> tuple[Key, ...]:
        names = [key.name for key in keys]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a schema needs at least one key, and no key twice; found {names}")
        return keys

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The key names in canonical order."""
        return tuple(key.name for key in self.keys)

    @functools.cached_property
    def _by_name(self) -> dict[str, Key]:
        return {key.name: key for key in self.keys}

    @property
    def anchored_names(self) -> tuple[str, ...]:
        """The keys whose distribution SFT must not change, in canonical order."""
        return tuple(key.name for key in self.keys if key.anchored)

    def key(self, name: str) -> Key | None:
        """Return the key called `name`, or None."""
        return self._by_name.get(name)

    def canonical(self, annotation: Annotation) -> Annotation:
        """Group the tags by key in the schema's order."""
        return annotation.ordered(self.names)

    def anchored(self, annotation: Annotation) -> Annotation:
        """Drop the tags whose keys SFT is meant to change."""
        return annotation.only(self.anchored_names)

    def conform(self, annotation: Annotation) -> Annotation:
        """Keep the legal tags: known keys and values, and no more of a key than it may have."""
        kept: dict[Tag, None] = {}
        for tag in annotation:
            spec = self.key(tag.key)
            value = spec.accept(tag.value) if spec else None
            if spec and value and not spec.full(sum(other.key == tag.key for other in kept)):
                kept[tag if value == tag.value else Tag(tag.key, value)] = None
        return Annotation(tuple(kept))

    def check(self, annotation: Annotation) -> None:
        """Raise an error if `conform` would drop a tag.

        Raises:
            DataError: a key is unknown, repeats where it may not, or has a value outside its
                vocabulary.
        """
        for key in annotation.keys:
            spec = self.key(key)
            if spec is None:
                known = ", ".join(self.names)
                raise DataError(f"tag key {key!r} is not in schema {self.name!r} ({known})")
            values = annotation.values(key)
            if spec.full(len(values) - 1):
                raise DataError(
                    f"tag {key!r}: schema {self.name!r} takes at most {spec.limit}; found {values}"
                )
            for value in values:
                if spec.accept(value) is None:
                    raise DataError(f"tag {key!r}: schema {self.name!r} has no value {value!r}")

    @classmethod
    def load(cls, name: str | Path) -> Schema:
        """Load a built-in schema (`general`, `stories`, `code`, `math`) or one from a YAML file.

        Raises:
            ConfigError: neither built in nor a file, or the file does not describe a schema.
        """
        built_in = Path(__file__).parent / "schemas" / f"{name}.yaml"
        path = built_in if built_in.is_file() else Path(name)
        if not path.is_file():
            known = sorted(p.stem for p in built_in.parent.glob("*.yaml"))
            raise ConfigError(
                f"schema {str(name)!r}: not a file and not built in ({', '.join(known)})"
            )
        return validated(cls, read_yaml(path), source=str(path))
