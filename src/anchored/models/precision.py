"""The precision in which a model is sampled: that of its training, unless told otherwise."""

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
    """The `dtype` to load a model in for sampling and evaluation.

    Args:
        source: folder or hub id.
        dtype: by name, or `auto`: for a model of this package the precision that its training
            computed in, as its record says; for others the one they were saved in. On a CPU `auto`
            is float32 in place of a precision that the CPU would only emulate.
        device_map: as it is given to `from_pretrained`.

    Returns:
        What `from_pretrained` takes; `auto` where only the weights themselves say what they are.

    Raises:
        ConfigError: nothing there that can be loaded.
    """
    if dtype != "auto":
        return getattr(torch, dtype)
    wanted = _of_training(find_record(source) or {}) or _saved(source)
    on_cpu = device_map == "cpu" or not torch.cuda.is_available()
    if on_cpu and not (wanted is torch.bfloat16 and bfloat16_is_native()):
        return torch.float32
    return wanted or "auto"


def _of_training(record: dict[str, Any]) -> torch.dtype | None:
    """None where the record does not say: another trainer's may lack the model's settings."""
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
    """True if this CPU multiplies matrices in bfloat16 itself.

    On x86 oneDNN also "supports" it with plain AVX-512, which is slower than float32.
    """
    if platform.machine().lower() in ("x86_64", "amd64"):
        cpu: Any = torch.cpu
        return cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
