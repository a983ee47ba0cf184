"""What a trained model goes back to: the hub's model, the hub's data sets, how many tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RECORD = "anchored.json"


def origins(init: str | None, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a model's record.

    Args:
        init: what it started from, a folder or hub id; None from scratch.
        manifest: of the data it was trained on.

    Returns:
        `base_model`, the hub id behind `init`, through folders trained here, or None; `datasets`,
        hub ids; `tokens`, the manifest's account of them.
    """
    paths = (source["path"] for source in manifest["config"]["sources"])
    hub = [path.removeprefix("hf://") for path in paths if path.startswith("hf://")]
    return {
        "base_model": _base_model(init),
        "datasets": list(dict.fromkeys("/".join(re.split(r"[/?]", path)[:2]) for path in hub)),
        "tokens": manifest["tokens"],
    }


def _base_model(init: str | None) -> str | None:
    if init is None or not Path(init).is_dir():
        return init
    record = Path(init) / RECORD
    known = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    return known.get("base_model")
