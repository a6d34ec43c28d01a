"""Memory of a server's processes over a run, and whether it grows."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil  # type: ignore[import-untyped]

OWN = re.compile(r"^Pss_(?:Anon|Shmem):\s+(\d+) kB", re.MULTILINE)
"""Of /proc/PID/smaps_rollup: what a process has written, and what it shares with others of it."""

WARM_SHARE = 0.1
"""Of the samples, left out at the start: pools and caches fill up there."""


@dataclass(frozen=True)
class Slope:
    """MiB an hour by least squares, with the standard error of that."""

    slope: float
    error: float

    def __str__(self) -> str:
        return f"{self.slope:+.2f} ± {self.error:.2f} MiB/h"


class Sampler:
    """The memory of a process and all below it: pages shared between them counted once (PSS).

    Without pages of files, such as libraries: a process's part of those changes whenever any
    other program begins or ceases to use them.
    """

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self.times: list[float] = []
        self.sizes: list[float] = []

    def sample(self) -> None:
        """Note the seconds on the monotonic clock, and MiB."""
        sizes = [_pss(process) for process in (self._root, *_below(self._root))]
        self.times.append(time.monotonic())
        self.sizes.append(sum(sizes) / 2**20)

    def slope(self) -> Slope | None:
        """Without the first tenth; None where there are too few samples to tell."""
        first = int(len(self.times) * WARM_SHARE)
        return least_squares(self.times[first:], self.sizes[first:])


def least_squares(seconds: Sequence[float], sizes: Sequence[float]) -> Slope | None:
    """The line through sizes (MiB) over time; None for fewer than three of them."""
    if len(seconds) < 3:
        return None
    hours = (np.asarray(seconds) - np.mean(seconds)) / 3600
    mib = np.asarray(sizes) - np.mean(sizes)
    spread = float(hours @ hours)
    if spread == 0:
        return None
    slope = float(hours @ mib) / spread
    rest = mib - slope * hours
    return Slope(slope, float(np.sqrt(rest @ rest / (len(hours) - 2) / spread)))


def new_child(before: set[int]) -> int | None:
    """The process that this one has started since it had the children `before`."""
    started = [pid for pid in children() if pid not in before]
    return started[0] if len(started) == 1 else None


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def _below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _pss(process: psutil.Process) -> float:
    """Bytes; 0 of a process that is gone."""
    try:
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return sum(1024.0 * int(kib) for kib in OWN.findall(text))
