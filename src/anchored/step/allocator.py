"""Memory that a training step has freed is kept for the next one."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT = 1 << 30


def keep_freed_memory() -> bool:
    """Has glibc keep freed blocks below 1 GiB; says whether it could.

    By default it returns large blocks to the system at once, which hands them out again page by
    page, cleared: on a CPU a share of each step's time for the same tensors as the step before.
    For the whole process, and for good.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(name, _KEPT) for name in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))
