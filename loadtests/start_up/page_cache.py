"""Files out of the kernel's page cache, so that a start has to read them from the disk."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from loadtests.perf_analyzer import BenchmarkError

DROP = Path("/proc/sys/vm/drop_caches")
LEFT = 0.05


def forget(files: Sequence[Path]) -> None:
    """Drop these files' pages. Raises BenchmarkError where they stay, as in a memory file system
    or where another process has them mapped.
    """
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if (share := cached(file)) > LEFT:
            raise BenchmarkError(f"no cold start: {share:.0%} of {file} stays in the page cache")


def forget_all() -> None:
    """Drop the whole page cache, of all programs. Raises BenchmarkError where that is forbidden."""
    os.sync()
    try:
        DROP.write_text("1\n")
    except OSError as error:
        raise BenchmarkError(
            f"the page cache cannot be dropped: {DROP}: {error.strerror}; without "
            "--drop-caches only the model's files are forgotten"
        ) from None


def cached(file: Path) -> float:
    """The share of a file that is in the page cache, 0 to 1."""
    size = file.stat().st_size
    if not size:
        return 0.0
    libc = ctypes.CDLL(None, use_errno=True)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        pages = -(-size // mmap.PAGESIZE)
        flags = np.zeros(pages, np.uint8)
        array = np.frombuffer(mapped, np.uint8)
        address = ctypes.c_void_p(array.ctypes.data)
        failed = libc.mincore(address, ctypes.c_size_t(size), ctypes.c_void_p(flags.ctypes.data))
        del array
    if failed:
        raise BenchmarkError(f"{file}: mincore: {os.strerror(ctypes.get_errno())}")
    return float(np.mean(flags & 1))
