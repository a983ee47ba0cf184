"""What a language model is asked about a text: a constant beginning, then the text, fenced.

The beginning is the same in every request of a run, so that a server with a prefix cache reads it
once. The text stands between lines with a number that it does not contain, so that nothing in it
can end the fence.
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
_MANY = 8  # values of one key that a constrained answer may have where the schema sets no bound


@dataclass(frozen=True, slots=True)
class Prompt:
    """The beginning of every request: `name` holds the version, `sha256` is of `text`."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        """Of the text with the schema's keys filled in."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def id(self) -> str:
        """Name with version, and the start of the hash."""
        return f"{self.name} ({self.sha256[:12]})"

    @classmethod
    def of(cls, schema: Schema, response: bool = False, path: Path | None = None) -> Prompt:
        """The prompt for a schema: its own if it is built in, else one that fits any schema.

        Args:
            schema: the keys to ask for.
            response: the text answers a request, which the tags must not repeat.
            path: a file of the user's own, with `{{keys}}` where the keys are to stand.

        Raises:
            ConfigError: the file is missing, empty, not UTF-8 or has no `{{keys}}`.
        """
        if path is not None:
            return cls(path.stem, _own(path).replace(KEYS, describe(schema)))
        name = f"{'response' if response else _subject(schema)}-v1"
        file = resources.files("anchored.annotators") / "prompts" / f"{name}.md"
        return cls(name, file.read_text("utf-8").strip().replace(KEYS, describe(schema)))

    def about(self, text: str, request: str | None = None, earlier: Sequence[str] = ()) -> str:
        """The whole message about one text.

        Args:
            text: what is to be tagged.
            request: what the text answers, for responses.
            earlier: annotations of the chunks before, as they are written.
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
        raise ConfigError(f"prompt: {path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"prompt: {path}: not UTF-8 at byte {error.start}") from None
    if not text:
        raise ConfigError(f"prompt: {path}: is empty; write what to ask, with {KEYS} for the keys")
    if KEYS not in text:
        raise ConfigError(f"prompt: {path}: has no {KEYS}; put it where the keys are to stand")
    return text


def describe(schema: Schema) -> str:
    """One line a key: its name, what it says, the values it takes."""
    return "\n".join(f"- {key.name}: {key.description}{_form(key)}" for key in schema.keys)


def _form(key: Key) -> str:
    form = f"; one of: {', '.join(key.values)}" if key.values else ""
    if key.limit != 1:
        form += "; several are separated by ;" + (f", at most {key.limit}" if key.limit else "")
    return form


def fenced(name: str, text: str) -> str:
    """`text` between BEGIN and END lines with a number that does not occur in it."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    number = next(part for at in range(56) if (part := digest[at : at + 8]) not in text)
    return f"BEGIN {name} {number}\n{text.strip()}\nEND {name} {number}"


def answer_schema(schema: Schema) -> dict[str, Any]:
    """The JSON schema of an answer, for servers that can constrain one.

    Every key must be there, as strict decoding wants it; "none" says that a key is to be left out.
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
    """An earlier annotation as `Prompt.about` shows it; "none" where it is empty."""
    return str(annotation) or "none"
