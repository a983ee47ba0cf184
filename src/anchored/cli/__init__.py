"""The `anchored` command: parse arguments, run a stage, print its result, report errors.

Exit status 0: done. 1: a bug, with its traceback; or a run with missing parts, or a condition of
`--fail-if` that holds, with one line on stderr. 2: bad usage or input, with one line on stderr.
130: interrupted. Everything heavy is imported inside the handlers, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from anchored import __doc__ as _purpose
from anchored.cli import corpus, evaluation, publishing, training
from anchored.cli.common import Parser
from anchored.errors import AnchoredError, ConditionMet, Incomplete


class _Version(argparse.Action):
    """The action of `--version`: print versions of this package and its main dependencies."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from anchored.config import versions

        found = versions()
        names = ("anchored", "python", "torch", "transformers", "datasets")
        print(", ".join(f"{name} {found[name]}" for name in names if name in found))
        parser.exit(0)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser, with one sub-parser per command."""
    parser = Parser(prog="anchored", description=_purpose, allow_abbrev=False)
    parser.add_argument("--version", action=_Version, nargs=0, help="print versions and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for add in (
        training.add_demo, training.add_experiment,
        corpus.add_schema, corpus.add_annotate, corpus.add_distil, corpus.add_prepare,
        corpus.add_export, training.add_plan,
        training.add_pretrain, training.add_sft, training.add_preferences, training.add_sample,
        evaluation.add_evaluate, evaluation.add_score, evaluation.add_capability,
        corpus.add_inspect, publishing.add_card, publishing.add_push,
    ):  # fmt: skip
        add(commands)
    return parser


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options of one command, including its `handler`; exit with 2 on bad usage."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse before 3.13 does not match a `*` positional behind an option (cpython #59317).
    if any(word.startswith("-") for word in rest) or (rest and "overrides" not in options):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; a bug propagates as its exception."""
    options = parse(arguments)
    try:
        options.handler(options)
        sys.stdout.flush()
    except BrokenPipeError:  # `anchored inspect ... | head` is not a failure
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except AnchoredError as error:
        done = isinstance(error, ConditionMet | Incomplete)
        return _complain(str(error), status=1 if done else 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        print("anchored: interrupted", file=sys.stderr)
        return 130
    return 0


def _complain(message: str, status: int = 2) -> int:
    print(f"anchored: error: {' '.join(message.split())}", file=sys.stderr)
    return status
