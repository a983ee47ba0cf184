"""`anchored.json` beside a model: its data and what it started from, whoever trained it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anchored.errors import DataError
from anchored.segments import OBJECTIVES
from anchored.train import RECORD

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


def read_record(model: Path) -> dict[str, Any]:
    """What `anchored.json` beside a model says.

    Objective, annotated, schema, tokenizer, base_model, datasets, tokens, config and versions.

    Raises:
        DataError: the folder has no such file, because it was not trained by this package.
    """
    path = model / RECORD
    if not path.is_file():
        raise DataError(
            f"{model}: no {RECORD}; not a model trained by `anchored pretrain` or `anchored sft`"
        )
    return json.loads(path.read_text(encoding="utf-8"))
