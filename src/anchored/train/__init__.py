"""Models, objectives, the training run and what watches it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anchored.train.collapse_monitor import CollapseMonitor

__all__ = ["DATA_FOLDER", "MODEL_FOLDER", "RECORD", "CollapseMonitor"]

RECORD = "anchored.json"
DATA_FOLDER = "data"
MODEL_FOLDER = "model"

# It asks, whenever peft is imported, for a kernel without a backward, which `lora` keeps it off.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    """`CollapseMonitor`, imported when it is asked for: it needs the extra `evaluate`."""
    if name != "CollapseMonitor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from anchored.train.collapse_monitor import CollapseMonitor

    return CollapseMonitor
