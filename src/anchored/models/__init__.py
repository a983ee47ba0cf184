"""Building, loading, checking, adapting and saving models, and the record beside each model."""

from __future__ import annotations

import logging

RECORD = "anchored.json"
MODEL_FOLDER = "model"

# On every import of peft it recommends a kernel without a backward, which `lora` disables.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
