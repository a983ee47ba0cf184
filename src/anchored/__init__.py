"""Annotation-anchored training: post-train a language model and keep its diversity."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anchored.annotation import Annotation, Schema, Tag
    from anchored.api import Model, Score, annotate, build_example, load, sample, score
    from anchored.monitor.callback import CollapseMonitor
    from anchored.sampling.engine import Sample
    from anchored.step.collate import DataCollator

__version__ = "0.1.0"

__all__ = [
    "Annotation",
    "CollapseMonitor",
    "DataCollator",
    "Model",
    "Sample",
    "Schema",
    "Score",
    "Tag",
    "annotate",
    "build_example",
    "load",
    "sample",
    "score",
]

# On a CPU, bitsandbytes warns at import that a kernel is missing. `models.lora` never uses that
# kernel, which has no backward pass. The warning is silenced here, because peft and transformers
# import bitsandbytes, and any module of this package may be the first to import them.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

# Loaded when first asked for: importing torch takes seconds, and the command line needs none of it
# to print its help.
_HOMES = {
    "Annotation": "annotation",
    "CollapseMonitor": "monitor.callback",
    "DataCollator": "step.collate",
    "Model": "api",
    "Sample": "sampling.engine",
    "Schema": "annotation",
    "Score": "api",
    "Tag": "annotation",
    "annotate": "api",
    "build_example": "api",
    "load": "api",
    "sample": "api",
    "score": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
