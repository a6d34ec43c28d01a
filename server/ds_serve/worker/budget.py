"""The bytes that the response caches of all workers share, counted in a file that they map.

Each worker has a line in it: its process id and its bytes. The lines of the dead count for nothing
and are taken by others. A worker may hold an equal share, and all together never more than all.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LINES = 256
"""Workers with a cache at most."""

LINE = 16
LOOK_SECONDS = 1.0
"""How often it is looked for the dead."""


class SharedBudget:
    """This process's part of `total` bytes. Raises OSError where no line is free."""

    def __init__(self, file: Path, total: int) -> None:
        self._total = total
        self._fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._looked = 0.0
        with self._locked():
            if os.fstat(self._fd).st_size < LINES * LINE:
                os.ftruncate(self._fd, LINES * LINE)
            memory = mmap.mmap(self._fd, LINES * LINE)
            self._lines = memoryview(memory).cast("q")
            self._bury()
            self._mine = self._claim()

    @property
    def share(self) -> int:
        self._look()
        living = sum(1 for pid in self._lines[::2] if pid)
        return self._total // max(1, living)

    @property
    def used(self) -> int:
        """Bytes of all workers."""
        return sum(self._lines[1::2])

    def take(self, size: int) -> bool:
        with self._locked():
            if self.used + size > self._total:
                return False
            self._lines[self._mine + 1] += size
            return True

    def give(self, size: int) -> None:
        self._lines[self._mine + 1] -= size

    def close(self) -> None:
        """Give up the line, and what it holds."""
        self._lines[self._mine + 1] = 0
        self._lines[self._mine] = 0
        os.close(self._fd)

    def _claim(self) -> int:
        for line in range(0, len(self._lines), 2):
            if not self._lines[line]:
                self._lines[line + 1] = 0
                self._lines[line] = os.getpid()
                return line
        raise OSError(f"{LINES} workers share the response cache already")

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked > LOOK_SECONDS:
            self._looked = now
            with self._locked():
                self._bury()

    def _bury(self) -> None:
        for line in range(0, len(self._lines), 2):
            pid = self._lines[line]
            if pid and not _lives(pid):
                self._lines[line] = self._lines[line + 1] = 0

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
