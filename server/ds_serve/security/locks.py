"""Locks on single bytes of a file that several processes share; those of the dead are lifted."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_TRIES = 200


class Locks:
    """On the bytes of an open file from `base` on, which nobody reads or writes."""

    def __init__(self, fd: int, base: int) -> None:
        self._fd = fd
        self._base = base

    @contextmanager
    def held(self, byte: int) -> Iterator[None]:
        """Others hold a lock for microseconds. One that was stopped meanwhile must not stop this
        process too: then a request more or less is counted wrong.
        """
        mine = False
        for _ in range(_TRIES):
            if mine := self.take(byte):
                break
            time.sleep(0)
        try:
            yield
        finally:
            if mine:
                self.release(byte)

    def take(self, byte: int) -> bool:
        """Whether it was free and is this process's now."""
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._base + byte)
        except OSError:
            return False
        return True

    def release(self, byte: int) -> None:
        with suppress(OSError):
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, self._base + byte)
