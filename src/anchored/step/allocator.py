"""Keep the memory that a training step frees for the next step."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT = 1 << 30


def keep_freed_memory() -> bool:
    """Make glibc keep freed blocks below 1 GiB and return True if that worked.

    By default, glibc returns large blocks to the system immediately, and the system hands them out
    again page by page, cleared. On a CPU this takes a share of each step's time, for the same
    tensors as in the step before. The setting is permanent, for the whole process.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(name, _KEPT) for name in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))
