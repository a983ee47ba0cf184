"""Canonical values: reads, writes and applies a file that maps spellings to one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import model_validator

from anchored.annotation import Annotation, Tag, normalise_value
from anchored.config import Config, read_yaml, validated
from anchored.data.rows import Document, Item
from anchored.files import atomic_write


class CanonicalMap(Config):
    """The canonical values of each key, each with the spellings that it replaces.

    As a file: `keys: {topic: {sea: [Sea, the sea]}}`. Spellings are compared exactly, after the
    usual normalisation of values.
    """

    keys: dict[str, dict[str, tuple[str, ...]]]

    @model_validator(mode="after")
    def _one_way(self) -> CanonicalMap:
        for key, values in self.keys.items():
            seen: dict[str, str] = {}
            for value, variants in values.items():
                for variant in variants:
                    if variant in values:
                        raise ValueError(
                            f"{key}: {variant!r} is both a variant and a value to keep"
                        )
                    if variant in seen:
                        raise ValueError(
                            f"{key}: {variant!r} is listed under {seen[variant]!r} and {value!r}"
                        )
                    seen[variant] = value
        return self

    @classmethod
    def load(cls, path: Path) -> CanonicalMap:
        """Read the file.

        Raises:
            ConfigError: the file is missing or invalid, or a spelling has two canonical values.
        """
        return validated(cls, read_yaml(path), source=str(path))

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        data: dict[str, Any] = self.model_dump(mode="json")
        atomic_write(path, yaml.safe_dump(data, sort_keys=False, allow_unicode=True))

    @cached_property
    def tags(self) -> Mapping[Tag, Tag]:
        """The tag that each variant becomes."""
        return {
            Tag(key, variant): Tag(key, value)
            for key, values in self.keys.items()
            for value, variants in values.items()
            for variant in map(normalise_value, variants)
        }

    def apply(self, annotation: Annotation) -> Annotation:
        """Return the annotation with canonical values; tags that become equal are merged."""
        tags = self.tags
        mapped = tuple(tags.get(tag, tag) for tag in annotation)
        if mapped == annotation.tags:
            return annotation
        return Annotation(tuple(dict.fromkeys(mapped)))

    def apply_to(self, item: Item) -> Item:
        """Return a document or conversation with canonical values in all its annotations."""
        if isinstance(item, Document):
            chunks = [
                replace(c, annotation=c.annotation and self.apply(c.annotation))
                for c in item.chunks
            ]
            whole = item.annotation and self.apply(item.annotation)
            return replace(item, chunks=tuple(chunks), annotation=whole)
        turns = [
            replace(t, annotation=t.annotation and self.apply(t.annotation)) for t in item.messages
        ]
        return replace(item, messages=tuple(turns))
