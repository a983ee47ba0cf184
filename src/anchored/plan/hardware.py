"""What a run is planned for: devices by name, their peak and their memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from anchored.errors import ConfigError
from anchored.train.metrics_log import measure_matmul_peak

GIB = 2**30
REACHED = 0.4  # share of the peak, where none is given: an assumption
# Dense bf16 TFLOP/s of NVIDIA's data sheets; GiB, less what the driver keeps for itself.
DEVICES = {
    "h100": (989.0, 79.0),
    "h200": (989.0, 139.0),
    "a100": (312.0, 79.0),
    "a100-40gb": (312.0, 39.0),
    "l40s": (362.0, 44.0),
    "rtx4090": (165.0, 23.5),
}


@dataclass(frozen=True)
class Hardware:
    """Devices, and what is expected of them.

    Args:
        device: its name.
        tflops: peak of one device, in 10^12 FLOP/s.
        memory_gib: of one device.
        devices: how many.
        mfu: as `metrics.jsonl` has it: share of the peak that the parameters' FLOPs reach, without
            attention and what is computed twice. None: all FLOPs together reach `REACHED`.
        price_per_hour: of one device, in any currency.
    """

    device: str
    tflops: float
    memory_gib: float
    devices: int = 1
    mfu: float | None = None
    price_per_hour: float | None = None


def hardware_named(
    device: str, tflops: float | None = None, memory_gib: float | None = None, **others: Any
) -> Hardware:
    """A device of `DEVICES`, or `cpu`, which is measured; figures that are given go before its own.

    Raises:
        ConfigError: it is not known and a figure is missing.
    """
    known = _this_cpu() if device == "cpu" else DEVICES.get(device)
    if known is None and (tflops is None or memory_gib is None):
        raise ConfigError(
            f"--device {device!r}: not one of {', '.join(DEVICES)}, cpu; give --peak-tflops and "
            "--memory-gib for another"
        )
    peak, memory = known or (0.0, 0.0)
    return Hardware(device, tflops or peak, memory_gib or memory, **others)


def _this_cpu() -> tuple[float, float]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return measure_matmul_peak(torch.device("cpu"), torch.float32) / 1e12, memory
