"""Implements `anchored card`: writes the card of an existing model, with any results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from anchored.errors import DataError
from anchored.models import MODEL_FOLDER
from anchored.models.record import read_record
from anchored.publish.card import write_card
from anchored.tokenizer import AnchoredTokenizer


def write(
    model: Path, name: str | None = None, results: Path | None = None, overwrite: bool = False
) -> Path:
    """Write README.md to a model folder and return its path.

    Args:
        model: folder of a model from `anchored pretrain` or `anchored sft`.
        name: heading; by default the name of the run.
        results: a `results.json` whose tables the card shows.
        overwrite: True to replace a card that was edited by hand.

    Raises:
        DataError: there is no such folder, its card was edited by hand, or the results are of
            another kind.
    """
    if not model.is_dir():
        raise DataError(f"{model}: no such folder; name the folder of a model")
    record = read_record(model)
    folder = model.resolve()
    heading = name or (folder.parent.name if folder.name == MODEL_FOLDER else folder.name)
    tokenizer = AnchoredTokenizer.load(model)
    return write_card(model, heading, record, tokenizer, _read(results), overwrite)


def _read(results: Path | None) -> dict[str, Any] | None:
    if results is None:
        return None
    try:
        found = json.loads(results.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{results}: not JSON: {error}; name a results.json") from None
    if not isinstance(found, dict):
        raise DataError(
            f"{results}: has {type(found).__name__}, not an object; name a results.json"
        )
    return found
