"""Commands on models for others: card, push."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from anchored.cli.common import command, existing_file, print_json


def add_card(commands: Any) -> None:
    """Adds `anchored card`."""
    summary = "write a model's card anew: training, schema, control tokens, sampling, results"
    parser = command(commands, "card", summary, _run_card)
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder of a model trained here")
    parser.add_argument("--name", help="heading; default: the name of the run")
    parser.add_argument(
        "--results", type=existing_file, metavar="FILE", help="results.json whose tables it shows"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a card that was changed by hand"
    )


def _run_card(options: argparse.Namespace) -> None:
    from anchored.publish.run import write

    path = write(options.model, options.name, options.results, options.overwrite)
    print_json({"card": str(path)}) if options.json else print(path)


def add_push(commands: Any) -> None:
    """Adds `anchored push`."""
    summary = "send a model to the hub; the token is read from HF_TOKEN"
    parser = command(commands, "push", summary, _run_push)
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder of a model trained here")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="made if not there")
    parser.add_argument("--private", action="store_true", help="of a repository that is made")
    parser.add_argument(
        "--dry-run", action="store_true", help="check, list what would be sent, and stop"
    )


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
