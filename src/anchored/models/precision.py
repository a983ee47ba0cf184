"""The precision for sampling a model: that of its training, unless set otherwise."""

from __future__ import annotations

import platform
from typing import Any, Literal

import torch
from transformers import AutoConfig

from anchored.models.record import find_record
from anchored.tokenizer import loading

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DeviceMap = str | dict[str, int | str]


def sampling_dtype(
    source: str, dtype: Dtype = "auto", device_map: DeviceMap | None = None
) -> torch.dtype | Literal["auto"]:
    """Choose the `dtype` to load a model in for sampling and evaluation.

    Args:
        source: folder or hub id.
        dtype: a precision by name, or `auto`. For a model of this package, `auto` is the precision
            of its training, from its record; for others, that of the saved weights. On a CPU,
            `auto` is float32 instead of a precision that the CPU would only emulate.
        device_map: the value passed to `from_pretrained`.

    Returns:
        A value for `from_pretrained`; `auto` if only the weights tell their precision.

    Raises:
        ConfigError: the configuration cannot be loaded.
    """
    if dtype != "auto":
        return getattr(torch, dtype)
    wanted = _of_training(find_record(source) or {}) or _saved(source)
    on_cpu = device_map == "cpu" or not torch.cuda.is_available()
    if on_cpu and not (wanted is torch.bfloat16 and bfloat16_is_native()):
        return torch.float32
    return wanted or "auto"


def _of_training(record: dict[str, Any]) -> torch.dtype | None:
    """Return None if the record does not say: other trainers may omit the model's settings."""
    config = record.get("config") or {}
    trainer, model = config.get("trainer") or {}, config.get("model") or {}
    for flag, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if trainer.get(flag):
            return dtype
    return getattr(torch, model["dtype"]) if "dtype" in model else None


def _saved(source: str) -> torch.dtype | None:
    with loading("model", source):
        config: Any = AutoConfig.from_pretrained(source, trust_remote_code=False)
    return config.get_text_config().dtype


def bfloat16_is_native() -> bool:
    """Return True if this CPU has instructions for matrix products in bfloat16.

    On x86, oneDNN also "supports" bfloat16 with plain AVX-512, but slower than float32.
    """
    if platform.machine().lower() in ("x86_64", "amd64"):
        cpu: Any = torch.cpu
        return cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
