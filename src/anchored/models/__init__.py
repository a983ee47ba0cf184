"""Checkpoints: built, loaded, checked, adapted and saved, and the record that lies beside each."""

from __future__ import annotations

import logging

RECORD = "anchored.json"
MODEL_FOLDER = "model"

# It asks, whenever peft is imported, for a kernel without a backward, which `lora` keeps it off.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
