"""`anchored.json` beside a model: the model's data and origin, whichever trainer made it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anchored.config import versions
from anchored.data.store import MANIFEST
from anchored.errors import DataError
from anchored.files import write_json
from anchored.models import RECORD
from anchored.segments import OBJECTIVES
from anchored.tokenizer import AnchoredTokenizer, file_of

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def origins(manifest: Mapping[str, Any], init: str | None = None) -> dict[str, Any]:
    """Return record fields for a model trained on prepared data.

    Args:
        manifest: the manifest of the data.
        init: folder or hub id that training started from; None if from scratch or unknown.

    Returns:
        `objective`; `annotated`; `schema`; `tokenizer` (its fingerprint); `base_model` (the hub id
        behind `init`, also through folders trained here, or None); `datasets` (hub ids); `tokens`
        (the token counts of the manifest).
    """
    paths = (source["path"] for source in manifest["config"]["sources"])
    hub = [path.removeprefix("hf://") for path in paths if path.startswith("hf://")]
    return {
        "objective": manifest["objective"],
        "annotated": OBJECTIVES[manifest["objective"]].annotated,
        "schema": manifest["schema"],
        "tokenizer": manifest["tokenizer"]["fingerprint"],
        "base_model": _base_model(init),
        "datasets": list(dict.fromkeys("/".join(re.split(r"[/?]", path)[:2]) for path in hub)),
        "tokens": manifest["tokens"],
    }


def _base_model(init: str | None) -> str | None:
    if init is None or not Path(init).is_dir():
        return init if init and _HUB_ID.fullmatch(init) else None
    record = Path(init) / RECORD
    known = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    return known.get("base_model")


def of_other_trainer(
    manifest: Mapping[str, Any],
    init: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the record of a model that another trainer makes from prepared data.

    Args:
        manifest: the manifest of the data.
        init: folder or hub id that training started from, see `origins`.
        settings: settings of that trainer, for the record's `config.trainer`; None if unknown.
    """
    trainer = {} if settings is None else {"trainer": settings}
    return {
        **origins(manifest, init),
        "config": {"data": manifest["config"], **trainer},
        "versions": versions(),
    }


def save_beside(model: Path, tokenizer: AnchoredTokenizer, record: Mapping[str, Any]) -> None:
    """Write the tokenizer and the record to a model's folder, as for models trained here."""
    tokenizer.save(model, annotated=record["annotated"])
    write_json(model / RECORD, record)


def read_preferences(data: Path, trainer: str) -> dict[str, Any]:
    """Read the manifest of a dataset that `anchored preferences` made for `trainer`.

    Args:
        data: the folder of the dataset.
        trainer: `dpo` or `grpo`.

    Raises:
        DataError: `anchored preferences` did not make it, or made it for the other trainer.
    """
    path = data.parent / MANIFEST
    if not path.is_file():
        raise DataError(
            f"{data}: {path} is missing; give the folder that `anchored preferences` printed"
        )
    manifest = json.loads(path.read_text(encoding="utf-8"))
    made_for = manifest["config"].get("trainer")
    if made_for != trainer:
        raise DataError(f"{data}: made for trainer: {made_for}; build it with trainer: {trainer}")
    return manifest


def find_record(model: str | Path) -> dict[str, Any] | None:
    """Return the record of a model (folder or hub id) as `read_record` does, or None."""
    path = file_of(model, RECORD)
    return json.loads(path.read_text(encoding="utf-8")) if path else None


def read_record(model: str | Path) -> dict[str, Any]:
    """Read `anchored.json` beside a model, given as a folder or hub id.

    The record has `objective`, `annotated`, `schema`, `tokenizer`, `base_model`, `datasets`,
    `tokens`, `config` and `versions`. After DPO or GRPO it also has `preferences`, with one entry
    per training: the manifest of the data, GRPO's reward, and `training` (the initial model, all
    arguments of the trainer, and versions).

    Raises:
        DataError: there is no such file, because the model was not trained by this package.
    """
    record = find_record(model)
    if record is None:
        raise DataError(
            f"{model}: not a model trained by `anchored pretrain` or `anchored sft` "
            f"({RECORD} is missing)"
        )
    return record
