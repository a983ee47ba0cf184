"""Models, objectives, the training run and what watches it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anchored.train.collapse_monitor import CollapseMonitor

__all__ = ["DATA_FOLDER", "MODEL_FOLDER", "RECORD", "CollapseMonitor"]

RECORD = "anchored.json"
DATA_FOLDER = "data"
MODEL_FOLDER = "model"


def __getattr__(name: str) -> Any:
    """`CollapseMonitor`, imported when it is asked for: it needs the extra `evaluate`."""
    if name != "CollapseMonitor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from anchored.train.collapse_monitor import CollapseMonitor

    return CollapseMonitor
