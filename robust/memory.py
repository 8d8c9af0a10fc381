"""The C library's memory: kept between passes, handed back when too much of it has gathered."""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from pathlib import Path
from typing import Final

_GATHERED: Final = 1 << 27


def keep_freed_memory() -> None:
    """Tell glibc, once, to keep freed memory for the next pass instead of handing it back to the system.

    Every pass frees and asks for the same few megabytes; by default each return trip costs a page fault
    per 4 KiB. The process then keeps its peak memory until it ends. Nothing happens on other platforms.
    """
    if sys.platform == "linux":
        _set_malloc_thresholds()


@functools.cache
def _set_malloc_thresholds() -> None:
    trim, mmap, never = -1, -3, 2**31 - 1  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent in musl
    if mallopt is not None:
        mallopt(mmap, 2**30)
        mallopt(trim, never)


def give_back(floor: int) -> int:
    """Hand freed memory back to the system once over 128 MiB have gathered above `floor` bytes.

    `keep_freed_memory` never does; blocks of changing sizes then leave holes, and a long run would grow.

    Returns:
        the floor from now on: what the process held when memory was last handed back.
    """
    held = _resident()
    if held - floor < _GATHERED:
        return min(floor, held)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # absent in musl
    if trim is not None:
        trim(0)
    return _resident()


def _resident() -> int:
    """Bytes that this process holds in memory; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * mmap.PAGESIZE
