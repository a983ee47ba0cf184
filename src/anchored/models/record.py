"""`anchored.json` beside a model: its data and what it started from, whoever trained it."""

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
    """Fields of the record of a model that was trained on prepared data.

    Args:
        manifest: of the data.
        init: what the model started from, a folder or hub id; None from scratch, or if not known.

    Returns:
        `objective`; `annotated`; `schema`; `tokenizer`, its fingerprint; `base_model`, the hub id
        behind `init`, through folders trained here, or None; `datasets`, hub ids; `tokens`, the
        manifest's account of them.
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
    """Record of a model that another trainer makes of prepared data.

    Args:
        manifest: of the data.
        init: what the model started from, see `origins`.
        settings: of that trainer, for the record's `config.trainer`; None where not known.
    """
    trainer = {} if settings is None else {"trainer": settings}
    return {
        **origins(manifest, init),
        "config": {"data": manifest["config"], **trainer},
        "versions": versions(),
    }


def save_beside(model: Path, tokenizer: AnchoredTokenizer, record: Mapping[str, Any]) -> None:
    """Writes the tokenizer and the record into a model's folder, which makes it one of ours."""
    tokenizer.save(model, annotated=record["annotated"])
    write_json(model / RECORD, record)


def read_preferences(data: Path, trainer: str) -> dict[str, Any]:
    """The manifest of a dataset that `anchored preferences` made for `trainer`, `dpo` or `grpo`.

    Raises:
        DataError: it was not made by it, or for the other trainer.
    """
    path = data.parent / MANIFEST
    if not path.is_file():
        raise DataError(f"{data}: no {path}; give the folder that `anchored preferences` printed")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    made_for = manifest["config"].get("trainer")
    if made_for != trainer:
        raise DataError(f"{data}: made for trainer: {made_for}; build it with trainer: {trainer}")
    return manifest


def find_record(model: str | Path) -> dict[str, Any] | None:
    """What `read_record` reads, of a folder or hub id; None for a model of others."""
    path = file_of(model, RECORD)
    return json.loads(path.read_text(encoding="utf-8")) if path else None


def read_record(model: str | Path) -> dict[str, Any]:
    """What `anchored.json` beside a model, a folder or hub id, says.

    Objective, annotated, schema, tokenizer, base_model, datasets, tokens, config and versions; and
    after DPO or GRPO `preferences`: for each time the manifest of the data, GRPO's reward, and as
    `training` the model that was started from, all arguments of the trainer, and versions.

    Raises:
        DataError: there is no such file, because it was not trained by this package.
    """
    record = find_record(model)
    if record is None:
        raise DataError(
            f"{model}: no {RECORD}; not a model trained by `anchored pretrain` or `anchored sft`"
        )
    return record
