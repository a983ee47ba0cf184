"""Prompts for annotation by a language model: a constant beginning, then the text in a fence.

The beginning is the same in every request of a run, so that a server with a prefix cache processes
it once. The fence is a pair of lines with a number that does not occur in the text, so that nothing
in the text can close it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from anchored.annotation import Annotation, Key, Schema
from anchored.errors import ConfigError

KEYS = "{{keys}}"
_BUILT_IN = ("general", "stories", "code", "math")
_MANY = 8  # most values of one key in a constrained answer, if the schema sets no limit


@dataclass(frozen=True, slots=True)
class Prompt:
    """The beginning of every request. `name` includes the version."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        """Hash of the text with the schema's keys filled in."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def id(self) -> str:
        """Name with version, and the first digits of the hash."""
        return f"{self.name} ({self.sha256[:12]})"

    @classmethod
    def of(cls, schema: Schema, response: bool = False, path: Path | None = None) -> Prompt:
        """Return the prompt for a schema: its own if it is built in, else the generic one.

        Args:
            schema: the keys to ask for.
            response: True if the text answers a request, which the tags must not repeat.
            path: a prompt file of the user, with `{{keys}}` in place of the keys.

        Raises:
            ConfigError: the file is missing, empty or not UTF-8, or lacks `{{keys}}`.
        """
        if path is not None:
            return cls(path.stem, _own(path).replace(KEYS, describe(schema)))
        name = f"{'response' if response else _subject(schema)}-v1"
        file = resources.files("anchored.annotators") / "prompts" / f"{name}.md"
        return cls(name, file.read_text("utf-8").strip().replace(KEYS, describe(schema)))

    def about(self, text: str, request: str | None = None, earlier: Sequence[str] = ()) -> str:
        """Return the whole message about one text.

        Args:
            text: the text to tag.
            request: the prompt that the text answers, for responses.
            earlier: annotations of the preceding chunks, written out.
        """
        parts = [self.text]
        if earlier:
            parts.append(fenced("TAGS OF THE PASSAGES BEFORE", "\n\n".join(earlier)))
        if request is not None:
            parts.append(fenced("REQUEST", request))
        return "\n\n".join([*parts, fenced("TEXT", text)])


def _subject(schema: Schema) -> str:
    known = schema.name in _BUILT_IN and schema == Schema.load(schema.name)
    return schema.name if known else "custom"


def _own(path: Path) -> str:
    try:
        text = path.read_text("utf-8").strip()
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(f"prompt: {path}: no such file; fix the path") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"prompt: {path}: not UTF-8 at byte {error.start}; save it as UTF-8"
        ) from None
    if not text:
        raise ConfigError(
            f"prompt: {path}: is empty; write a prompt, with {KEYS} in place of the keys"
        )
    if KEYS not in text:
        raise ConfigError(f"prompt: {path}: has no {KEYS}; add it in place of the keys")
    return text


def describe(schema: Schema) -> str:
    """Return one line per key: its name, its description and its values."""
    return "\n".join(f"- {key.name}: {key.description}{_form(key)}" for key in schema.keys)


def _form(key: Key) -> str:
    form = f"; one of: {', '.join(key.values)}" if key.values else ""
    if key.limit != 1:
        form += "; several are separated by ;" + (f", at most {key.limit}" if key.limit else "")
    return form


def fenced(name: str, text: str) -> str:
    """Return the text between BEGIN and END lines with a number that does not occur in it."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    number = next(part for at in range(56) if (part := digest[at : at + 8]) not in text)
    return f"BEGIN {name} {number}\n{text.strip()}\nEND {name} {number}"


def answer_schema(schema: Schema) -> dict[str, Any]:
    """Return the JSON schema of an answer, for servers with constrained decoding.

    Every key is required, as strict decoding demands; the value "none" means that it is omitted.
    """
    return {
        "type": "object",
        "properties": {key.name: _values(key) for key in schema.keys},
        "required": list(schema.names),
        "additionalProperties": False,
    }


def _values(key: Key) -> dict[str, Any]:
    value: dict[str, Any] = {"type": "string"}
    if key.values:
        value["enum"] = [*key.values, "none"]
    if key.limit == 1:
        return value
    return {"type": "array", "items": value, "maxItems": key.limit or _MANY}


def written(annotation: Annotation) -> str:
    """Return an earlier annotation as `Prompt.about` shows it; "none" if it is empty."""
    return str(annotation) or "none"
