"""Helpers that all commands share: argument types, overrides, JSON output, missing extras."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from anchored.cli.options import Option, add_options
from anchored.errors import AnchoredError

OVERRIDES = Option(
    "overrides",
    "configuration fields to override; values are parsed as YAML",
    nargs="*",
    metavar="a.b=c",
)


LOADING = (
    Option(
        "--dtype",
        "precision to load in; default: auto, the training's or else the saved weights' precision",
        field="dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
    ),
    Option(
        "--device-map",
        "auto to spread a model over GPUs, or a device",
        field="device_map",
        metavar="MAP",
    ),
)


class Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def command(
    commands: Any,
    name: str,
    summary: str,
    handler: Callable[[argparse.Namespace], None],
    options: Iterable[Option] = (),
) -> argparse.ArgumentParser:
    """Add a command with its options and return its parser."""
    parser = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    parser.set_defaults(handler=handler)
    parser.add_argument("--json", action="store_true", help="print the result as JSON to stdout")
    add_options(parser, options)
    return parser


def existing_file(text: str) -> Path:
    """Parse the path of an existing file."""
    if not Path(text).is_file():  # checked here, before seconds of imports
        raise argparse.ArgumentTypeError(f"{text!r}: no such file")
    return Path(text)


def positive(text: str) -> int:
    """Parse a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def whole_number(text: str) -> int:
    """Parse a non-negative integer."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def above_zero(text: str) -> float:
    """Parse a positive number."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def share(text: str) -> float:
    """Parse a number above 0 and at most 1."""
    value = above_zero(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is above 1")
    return value


def key_value(text: str) -> tuple[str, str]:
    """Parse `key=value`."""
    key, separator, value = text.partition("=")
    if not separator or not value.strip():
        raise argparse.ArgumentTypeError(f"{text!r}: write key=value")
    return key.strip(), value


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Name the extra that installs what an import in the body lacks."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise AnchoredError(
            f"{error.name} is not installed; pip install 'anchored[{name}]'"
        ) from None


def print_json(data: Any) -> None:
    """Print a result for other programs."""
    print(json.dumps(data, ensure_ascii=False, indent=2))
