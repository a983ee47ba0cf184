"""Declare each option of a command once, for the parser, its help, the fields and the errors."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Option:
    """One argument of a command.

    Attributes:
        name: the flag, or the name of a positional argument.
        help: text for `--help`.
        field: dotted name of the configuration field that it sets; None if the handler reads it.
        value: converts the argument to the field's value.
        shown: name of the field in errors; the flag by default.
        repeatable: True to collect the values of all occurrences in a list.
        switch: True for a flag without a value.
        metavar, type, choices, nargs, default, required: as for `ArgumentParser.add_argument`.
    """

    name: str
    help: str
    field: str | None = None
    value: Callable[[Any], Any] | None = None
    shown: str | None = None
    repeatable: bool = False
    switch: bool = False
    metavar: str | None = None
    type: Callable[[str], Any] | None = None
    choices: tuple[str, ...] | None = None
    nargs: str | None = None
    default: Any = None
    required: bool = False

    def add_to(self, parser: argparse._ActionsContainer) -> None:
        """Add the argument to a parser or to a group of its help."""
        if self.switch:
            parser.add_argument(self.name, action="store_true", help=self.help)
            return
        more = {
            "metavar": self.metavar,
            "type": self.type,
            "choices": self.choices,
            "nargs": self.nargs,
            "default": self.default,
            "action": "append" if self.repeatable else None,
            "required": self.required or None,  # argparse rejects `required` for positionals
        }
        parser.add_argument(self.name, help=self.help, **_known(more))

    def given(self, parsed: argparse.Namespace) -> Any:
        """Return the field's value, or None if the command line does not set it."""
        found = getattr(parsed, self.name.lstrip("-").replace("-", "_"))
        if found is None or found is False or found == []:
            return None
        return self.value(found) if self.value else found


def add_options(parser: argparse._ActionsContainer, options: Iterable[Option]) -> None:
    """Add all `options` to a parser or to a group of its help."""
    for option in options:
        option.add_to(parser)


def fields_given(options: Iterable[Option], parsed: argparse.Namespace) -> dict[str, Any]:
    """Return the values of the fields that the command line sets, by dotted name."""
    return _known({one.field: one.given(parsed) for one in options if one.field})


def nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Convert fields by dotted name to nested mappings."""
    data: dict[str, Any] = {}
    for field, value in fields.items():
        *parents, last = field.split(".")
        inner = data
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return data


def as_overrides(fields: Mapping[str, Any]) -> list[str]:
    """Convert fields by dotted name to `a.b=c` arguments."""
    return [f"{field}={json.dumps(value)}" for field, value in fields.items()]


def names_in_errors(options: Iterable[Option], under: str = "") -> dict[str, str]:
    """Return each field's name in errors, its flag; `under` is put before the fields' names."""
    return {
        f"{under}{one.field}": one.shown or one.name
        for one in options
        if one.field and (one.shown or one.name.startswith("-"))
    }


def flags_used(
    flags: Mapping[str, str],
    given: Collection[str],
    config: Path | None,
    overrides: Sequence[str] = (),
) -> dict[str, str]:
    """Return the flags that an error should name instead of fields.

    Args:
        flags: flags by field.
        given: the fields that were set by flags.
        config: file with the other fields; without a file, a missing field is a missing flag.
        overrides: `a.b=c` arguments, which take precedence over flags.
    """
    replaced = {override.partition("=")[0] for override in overrides}
    wanted = given if config else flags
    return {field: flags[field] for field in wanted if field in flags and field not in replaced}


def _known(values: Mapping[Any, Any]) -> dict[Any, Any]:
    return {name: value for name, value in values.items() if value is not None}
