"""Canonical spellings of values, so that entropies count meanings and not spellings.

"Elara", "elara " and "**Elara**." are one value. Synonyms are merged only if `values.yaml` lists
them.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from anchored.annotation import Annotation
from anchored.config import read_yaml

_ARTICLE = re.compile(r"^(?:an?|the) (?=\S)")
# Punctuation and Markdown around a value; "C#", "C++" and "100%" are left alone.
_OUTER = "".join(
    {c for c in map(chr, range(0x3100)) if unicodedata.category(c)[0] in "PZ"} - set("#%&@")
    | set("`|~<>=")
)


def canonical(key: str, value: str) -> str:
    """Return the canonical form of a value of `key`; empty if it is only punctuation.

    The value is normalised to NFC and case-folded, `_` and `-` become spaces, white space is
    collapsed, and outer punctuation and a leading article are removed. Then the key's synonyms are
    applied.
    """
    folded = _folded(value)
    return _synonyms().get(key, {}).get(folded, folded)


def rule() -> str:
    """Return the name and version of these rules, to be shown with every figure based on them."""
    return f"values {_table()['version']}"


def canonical_annotation(annotation: Annotation) -> Annotation:
    """Return the annotation with canonical values; a tag whose value becomes empty is dropped."""
    pairs = ((tag.key, canonical(tag.key, tag.value)) for tag in annotation)
    return Annotation.of((key, value) for key, value in pairs if value)


def _folded(value: str) -> str:
    text = unicodedata.normalize("NFC", value).casefold()
    text = " ".join(re.sub(r"[_\-\u2010-\u2015]", " ", text).split()).strip(_OUTER)
    return _ARTICLE.sub("", text)


@functools.cache
def _table() -> Mapping[str, object]:
    with resources.as_file(resources.files("anchored.judge") / "values.yaml") as path:
        return read_yaml(Path(path))


@functools.cache
def _synonyms() -> dict[str, dict[str, str]]:
    listed: dict[str, dict[str, list[str]]] = _table()["synonyms"]  # pyright: ignore
    return {
        key: {
            _folded(word): _folded(meaning) for meaning, words in groups.items() for word in words
        }
        for key, groups in listed.items()
    }
