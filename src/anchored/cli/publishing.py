"""Commands that publish models: card, push."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from anchored.cli.common import command, existing_file, print_json
from anchored.cli.options import Option

_MODEL = Option("model", "folder of a model trained by anchored", type=Path, metavar="MODEL")
_CARD = (
    _MODEL,
    Option("--name", "title of the card; default: the name of the run"),
    Option(
        "--results",
        "results.json whose tables the card shows",
        type=existing_file,
        metavar="FILE",
    ),
    Option("--overwrite", "replace a card that was edited by hand", switch=True),
)
_PUSH = (
    _MODEL,
    Option(
        "--repo",
        "repository on the hub; created if it does not exist",
        required=True,
        metavar="OWNER/NAME",
    ),
    Option("--private", "make the repository private if it is created", switch=True),
    Option("--dry-run", "check the files, list what would be uploaded, and stop", switch=True),
)


def add_card(commands: Any) -> None:
    """Add `anchored card`."""
    summary = "write a model's card: training, schema, control tokens, sampling, results"
    command(commands, "card", summary, _run_card, _CARD)


def _run_card(options: argparse.Namespace) -> None:
    from anchored.publish.run import write

    path = write(options.model, options.name, options.results, options.overwrite)
    print_json({"card": str(path)}) if options.json else print(path)


def add_push(commands: Any) -> None:
    """Add `anchored push`."""
    summary = "upload a model to the hub; the token is read from HF_TOKEN"
    command(commands, "push", summary, _run_push, _PUSH)


def _run_push(options: argparse.Namespace) -> None:
    from anchored.publish.push import PushConfig, plan, push

    planned = plan(PushConfig(model=options.model, repo=options.repo, private=options.private))
    if not options.json:
        print(planned)
    url = None if options.dry_run else push(planned)
    if options.json:
        print_json({**planned.as_json(), "url": url})
    elif url:
        print(url)
