"""What all commands share: types of arguments, overrides, JSON, the missing extra."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from anchored.errors import AnchoredError


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, in place of the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Exits with status 2."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def command(
    commands: Any, name: str, summary: str, handler: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    """Adds a command and returns its parser."""
    parser = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    parser.set_defaults(handler=handler)
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    return parser


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Adds `a.b=c` arguments."""
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="a.b=c",
        help="fields of the configuration to replace; values are read as YAML",
    )


def add_loading(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how a model is loaded to be sampled."""
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="precision to sample in; default: that of the training, or of the saved weights",
    )
    parser.add_argument(
        "--device-map", metavar="MAP", help="where the model goes, as in transformers: auto, cpu"
    )


def loading_fields(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of `add_loading` that were given."""
    return only_given(dtype=options.dtype, device_map=options.device_map)


def existing_file(text: str) -> Path:
    """The type of an argument that names a file."""
    if not Path(text).is_file():  # said here, before seconds of imports
        raise argparse.ArgumentTypeError(f"{text!r}: no such file")
    return Path(text)


def positive(text: str) -> int:
    """The type of a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def whole_number(text: str) -> int:
    """The type of a whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def above_zero(text: str) -> float:
    """The type of a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def share(text: str) -> float:
    """The type of a number above 0, up to 1."""
    value = above_zero(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is above 1")
    return value


def key_value(text: str) -> tuple[str, str]:
    """The type of `key=value`."""
    key, separator, value = text.partition("=")
    if not separator or not value.strip():
        raise argparse.ArgumentTypeError(f"{text!r}: write key=value")
    return key.strip(), value


def same_flags(*fields: str) -> dict[str, str]:
    """The flags of fields that are called as they are."""
    return {field: f"--{field.replace('_', '-')}" for field in fields}


def flags_used(
    flags: Mapping[str, str],
    given: Collection[str],
    config: Path | None,
    overrides: Iterable[str] = (),
) -> dict[str, str]:
    """The flags that an error should name in place of fields.

    Args:
        flags: by field.
        given: the fields that were given by flags.
        config: the file that all others come from; without one a missing field is a missing flag.
        overrides: `a.b=c` arguments, which come after flags.
    """
    replaced = {override.partition("=")[0] for override in overrides}
    wanted = given if config else flags
    return {field: flags[field] for field in wanted if field in flags and field not in replaced}


def only_given(**fields: Any) -> dict[str, Any]:
    """The fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Says which extra brings what an import in the body lacks."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise AnchoredError(
            f"{error.name} is not installed; pip install 'anchored[{name}]'"
        ) from None


def print_json(data: Any) -> None:
    """Prints a result for other programs."""
    print(json.dumps(data, ensure_ascii=False, indent=2))
