"""Parses the answers of judges: lenient about form, strict about content.

A judge is asked for plain lines, but models add prose, Markdown, JSON, fences and numbering, all of
which are accepted. An answer that is incomplete, contradictory or out of range is `Unreadable`;
nothing is ever filled in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from anchored.annotation import Annotation, Schema, read_annotation

_SCORE = re.compile(
    r"(?:final |overall |quality )?(?:score|rating|grade)\W{0,6}?(?:is\W+|=\W*)?"
    r"(?P<value>-?\d+(?:\.\d+)?)(?:\s*(?:/|out of)\s*(?P<of>\d+))?",
    re.IGNORECASE,
)
_BARE = re.compile(r"[^\w-]*(?P<value>-?\d+(?:\.\d+)?)(?:\s*(?:/|out of)\s*(?P<of>\d+))?\W*")
_CLASS = re.compile(
    r"^[\s>*_`#|\-•]*(?:answer|text|response)?\s*(\d+)[*_`\s]*[:.)=|→>-]+[*_`\s]*"
    r"(?:group|class|cluster)?\s*(\d+)[*_`\s.,;|]*$",
    re.IGNORECASE | re.MULTILINE,
)
_REFUSAL = re.compile(
    r"\W*(?:(?:i(?:'|’)?m|i am)(?: (?:very|so|really))? sorry|sorry,|i apologi[sz]e|"
    r"i (?:cannot|can(?:'|’)t|can not|won(?:'|’)t|will not|must decline|am unable|am not able)|"
    r"i(?:'|’)m (?:unable|not able)|as an ai\b)",
    re.IGNORECASE,
)


class Unreadable(ValueError):
    """An answer without what was asked for; the message says what is wrong."""


def read_attributes(text: str, schema: Schema) -> Annotation:
    """Return the value of each key; a key may have the value none, but it must be mentioned.

    Raises:
        Unreadable: a key is not mentioned, or its value lies outside a closed vocabulary.
    """
    kept, loose = read_annotation(text, schema), read_annotation(text)
    for key in schema.names:
        if kept.values(key):
            continue
        if outside := loose.values(key):
            raise Unreadable(f"{key}: {outside[0]!r} is not in its vocabulary")
        if not _names(text, key):
            raise Unreadable(f"{key}: missing")
    return schema.canonical(kept)


def _names(text: str, key: str) -> bool:
    spelt = re.escape(key).replace("_", r"[_\s-]")
    return re.search(rf"\b{spelt}[\"'*`_]*\s*[:=]", text, re.IGNORECASE) is not None


def read_score(text: str) -> int:
    """Return an integer from 1 to 10, as in `score: 8`, `**Score:** 8/10`, `{"score": 8}` or `8`.

    Raises:
        Unreadable: there is no score, there are two that differ, or it is out of range.
    """
    data = _json(text, dict)
    if data is not None and "score" in data:
        return _score(str(data["score"]))
    found = {match.groups() for match in _SCORE.finditer(text)}
    if not found and (bare := _BARE.fullmatch(text)):
        found = {bare.groups()}
    if len(found) != 1:
        raise Unreadable(f"{len(found)} different scores" if found else "no score")
    value, of = found.pop()
    if of not in (None, "10"):
        raise Unreadable(f"a score out of {of}, not 10")
    return _score(value)


def _score(text: str) -> int:
    try:
        number = float(text.split("/")[0])
    except ValueError:
        raise Unreadable(f"score {text!r:.40} is no number") from None
    if number not in range(1, 11):
        raise Unreadable(f"score {number:g} is no whole number from 1 to 10")
    return int(number)


def read_partition(text: str, n: int) -> list[int]:
    """Return one class number per text, numbered from 0 in order of first appearance.

    Accepts lines `text: class`, `{"classes": [...]}`, `{"1": 2, ...}` and a bare list.

    Raises:
        Unreadable: a text has no class, or two.
    """
    groups = _groups(text)
    missing = [i for i in range(1, n + 1) if i not in groups]
    if missing or len(groups) != n:
        wrong = f"text {missing[0]} has no group" if missing else f"{len(groups)} texts, not {n}"
        raise Unreadable(wrong)
    seen: dict[Any, int] = {}
    return [seen.setdefault(groups[i], len(seen)) for i in range(1, n + 1)]


def _groups(text: str) -> dict[int, int]:
    data = _json(text, dict)
    if data is None:
        data = _json(text, list)
    if isinstance(data, dict) and isinstance(data.get("classes"), list):
        data = data["classes"]
    if isinstance(data, list):
        data = dict(enumerate(data, 1))
    pairs = list(data.items()) if data else _CLASS.findall(text)
    groups: dict[int, int] = {}
    for i, group in pairs:
        try:
            number, label = int(i), int(group)
        except (TypeError, ValueError):
            raise Unreadable(f"{i!r}: {group!r} are no numbers") from None
        if groups.setdefault(number, label) != label:
            raise Unreadable(f"text {number} is in two groups")
    return groups


def _json(text: str, kind: type) -> Any:
    """Return the first JSON object or list in `text`, or None."""
    start = "{" if kind is dict else "["
    for match in re.finditer(re.escape(start), text[:20_000]):
        try:
            found, _ = json.JSONDecoder().raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        return found
    return None


def is_refusal(text: str) -> bool:
    """Return True if an unreadable answer begins like an English refusal."""
    return _REFUSAL.match(text) is not None


def attributes_schema(schema: Schema) -> dict[str, Any]:
    """Return the JSON schema of a constrained answer with every key."""
    return _object(
        {
            key.name: {"type": "string", **({"enum": [*key.values, "none"]} if key.values else {})}
            for key in schema.keys
        }
    )


def score_schema() -> dict[str, Any]:
    """Return the JSON schema of a constrained score."""
    return _object({"score": {"type": "integer", "enum": list(range(1, 11))}})


def partition_schema(n: int) -> dict[str, Any]:
    """Return the JSON schema of constrained groups: one class number per text."""
    numbers = {"type": "integer", "enum": list(range(1, n + 1))}
    return _object({str(i): numbers for i in range(1, n + 1)})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    names: Sequence[str] = list(properties)
    return {
        "type": "object",
        "properties": properties,
        "required": names,
        "additionalProperties": False,
    }
