"""The hardware of an estimate: devices by name, with their peak and their memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from anchored.errors import ConfigError
from anchored.train.metrics_log import measure_matmul_peak

GIB = 2**30
REACHED = 0.4  # assumed share of the peak if none is given
# Dense bf16 TFLOP/s from NVIDIA's data sheets; GiB without the memory that the driver reserves.
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
    """The devices of a run and their expected speed.

    Args:
        device: name of the device.
        tflops: peak of one device, in 10^12 FLOP/s.
        memory_gib: memory of one device, in GiB.
        devices: number of devices.
        mfu: as in `metrics.jsonl`: the share of the peak that the FLOPs of the parameters reach,
            without attention and recomputation. None if all FLOPs together reach `REACHED`.
        price_per_hour: price of one device per hour, in any currency.
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
    """Return a device of `DEVICES` or `cpu`, which is measured; given figures take precedence.

    Raises:
        ConfigError: the device is unknown and a figure is missing.
    """
    known = _this_cpu() if device == "cpu" else DEVICES.get(device)
    if known is None and (tflops is None or memory_gib is None):
        raise ConfigError(
            f"--device {device!r}: not one of {', '.join(DEVICES)}, cpu; give --peak-tflops and "
            "--memory-gib for another device"
        )
    peak, memory = known or (0.0, 0.0)
    return Hardware(device, tflops or peak, memory_gib or memory, **others)


def _this_cpu() -> tuple[float, float]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return measure_matmul_peak(torch.device("cpu"), torch.float32) / 1e12, memory
