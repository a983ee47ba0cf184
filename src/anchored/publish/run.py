"""`anchored card`: the card of a model trained earlier, with results if there are any."""

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
    """Writes README.md into a model folder and returns its path.

    Args:
        model: folder made by `anchored pretrain` or `anchored sft`.
        name: heading; by default the name of the run.
        results: a `results.json` whose tables the card shows.
        overwrite: replace a card that was changed by hand.

    Raises:
        DataError: no such folder, a card changed by hand, or results of another kind.
    """
    if not model.is_dir():
        raise DataError(f"{model}: no such folder; a card is written into that of a model")
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
        raise DataError(f"{results}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{results}: holds {type(found).__name__}, not the results of a run")
    return found
