"""Memory that a gateway shares with a worker, so that a large tensor is written once and read where
it lies.

The gateway owns it and hands out blocks; a worker maps it for reading. It has no name: the worker
opens it through the gateway's entry in /proc, as its own user. Where that cannot be done (another
system, a hardened one), tensors travel through the socket.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_left, insort
from pathlib import Path

import numpy as np

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
"""Where the system keeps what shm_open opens."""

ALIGNMENT = 64
"""Bytes. What vector instructions like best."""

SIZE = 256 * 1024 * 1024
"""Bytes of address space; memory is taken as blocks are first used."""

LARGE = 64 * 1024
"""Bytes. Smaller tensors cost less to send than to look after."""


class Block:
    """A piece of an arena: `view` to write into, `free` when nobody reads it any more."""

    __slots__ = ("_arena", "_start", "_stop", "view")

    def __init__(self, arena: Arena, start: int, stop: int, view: memoryview) -> None:
        self._arena = arena
        self._start = start
        self._stop = stop
        self.view = view

    def free(self) -> None:
        """Give it back, once."""
        self._arena.give(self._start, self._stop)


class Arena:
    """The owner's side. Raises OSError where the system has no such memory."""

    def __init__(self, size: int = SIZE) -> None:
        self.size = size
        self.fd = os.memfd_create("ds-serve", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self._memory = mmap.mmap(self.fd, size)
        self._view = memoryview(self._memory)
        self._base = address(self._view)
        self._free: list[tuple[int, int]] = [(0, size)]

    def take(self, size: int, before: int = 0) -> Block | None:
        """A block of `size` bytes, of which those after the first `before` are aligned; None
        where there is no room.
        """
        lead = -before % ALIGNMENT
        need = lead + size
        need += -need % ALIGNMENT
        for index, (start, stop) in enumerate(self._free):
            if stop - start >= need:
                if stop - start == need:
                    del self._free[index]
                else:
                    self._free[index] = (start + need, stop)
                first = start + lead
                return Block(self, start, start + need, self._view[first : first + size])
        return None

    def give(self, start: int, stop: int) -> None:
        """Take a block back, and join it with its free neighbours."""
        free = self._free
        index = bisect_left(free, (start, stop))
        if index < len(free) and free[index][0] == stop:
            stop = free.pop(index)[1]
        if index and free[index - 1][1] == start:
            start = free.pop(index - 1)[0]
        insort(free, (start, stop))

    def offset(self, data: memoryview) -> int | None:
        """Where `data` begins in the arena; None where it lies elsewhere."""
        return address(data) - self._base if data.obj is self._memory else None

    def close(self) -> None:
        """Forget the memory; it goes when nobody looks at it any more."""
        os.close(self.fd)


class Attached:
    """A worker's view of a gateway's arena. Raises OSError, ValueError where it cannot be had."""

    def __init__(self, pid: int, fd: int, size: int) -> None:
        opened = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._view = memoryview(mmap.mmap(opened, size, prot=mmap.PROT_READ))
        finally:
            os.close(opened)

    def read(self, offset: int, size: int) -> memoryview:
        """Raises IndexError beyond the end."""
        if offset < 0 or offset + size > len(self._view):
            raise IndexError(f"{size} bytes at {offset} of an arena of {len(self._view)}")
        return self._view[offset : offset + size]


def address(data: memoryview) -> int:
    """Where in this process's memory `data` begins; it must not be empty."""
    found: int = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    return found
