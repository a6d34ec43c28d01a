"""`--memory-efficient` on the CPU: what is freed goes back to the machine.

Else the C library keeps it for the next time, and for each thread some of its own. It holds for the
process, which has one engine.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Any

_TRIM, _MMAP, _ARENAS = -1, -3, -8
"""Parameters of glibc's mallopt: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX."""

_PIECE = 128 << 10
"""Bytes of which on memory is had from the machine, and returned to it, by itself."""


def begin() -> None:
    """From now on. To be called before a model is loaded; other C libraries than glibc go on as
    they are.
    """
    adjust = _function("mallopt")
    if adjust is None:
        return
    for parameter, value in ((_TRIM, _PIECE), (_MMAP, _PIECE), (_ARENAS, 1)):
        adjust(parameter, value)


def give_back() -> None:
    """Return what loading a model took beside what it holds."""
    gc.collect()
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


def _function(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None)
