"""Large tensors of local clients: in memory that the server maps, instead of in the message.

A region is a memory object in /dev/shm, used for one request at a time and then for another. It is
registered with the server under its own name. Its owner holds a lock on the file, so that the next
client can tell what a dead one left behind, in any container that shares /dev/shm, and removes it.
"""

from __future__ import annotations

import mmap
import os
import secrets
import sys
import threading
import weakref
from contextlib import suppress
from pathlib import Path

from ds_client.errors import Unsupported

if sys.platform != "win32":  # where there is no /dev/shm either
    import fcntl

FOLDER = Path("/dev/shm")  # noqa: S108 - where shm_open's names are
PREFIX = "ds-client-"
LIMIT = 1 << 30
"""Bytes of all regions of a client; a request that would need more is sent."""


class Region:
    """A memory object of this process. `size` is in bytes. `known`: the server was told of it;
    `forgotten`: it may have lost that since, so that it must be told again.
    """

    def __init__(self, size: int) -> None:
        """Raises OSError where there is not so much memory."""
        self.name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
        self.size = size
        self.known = False
        self.forgotten = False
        self.path = FOLDER / self.name
        unlocked = FOLDER / f".{self.name}"
        self._fd = os.open(unlocked, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            unlocked.rename(self.path)
            os.posix_fallocate(self._fd, 0, size)
            self.memory = mmap.mmap(self._fd, size)
        except BaseException:
            os.close(self._fd)
            unlocked.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
            raise

    def read(self, offset: int, size: int) -> bytes:
        return self.memory[offset : offset + size]

    def close(self) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self._fd)
        with suppress(BufferError):  # an array still looks at it, and it goes with that
            self.memory.close()


class SharedMemory:
    """A client's regions; may be shared by threads. What the server should forget is `retired`."""

    def __init__(self) -> None:
        """Raises Unsupported where this machine has no /dev/shm."""
        if not FOLDER.is_dir():
            raise Unsupported(f"shared_memory: this machine has no {FOLDER}")
        self._lock = threading.Lock()
        self._idle: list[Region] = []
        self._paths: set[Path] = set()
        self._bytes = 0
        self._retired = _sweep()
        self._closed = False
        self._finalizer = weakref.finalize(self, _remove, os.getpid(), self._paths)

    def take(self, size: int) -> Region | None:
        """A region of at least that size, this caller's alone; None where memory is short."""
        with self._lock:
            fitting = [region for region in self._idle if size <= region.size <= 2 * size]
            if fitting:
                region = min(fitting, key=lambda each: each.size)
                self._idle.remove(region)
                return region
            return self._make(_rounded(size))

    def give(self, region: Region, intact: bool) -> None:
        """The region is used no more. `intact`: the server will not touch it either; otherwise
        it could write a late answer there, so it is never used again.
        """
        with self._lock:
            if intact and not self._closed:
                self._idle.append(region)
            else:
                self._retire(region)

    def doubt(self) -> None:
        """The server may have been started anew."""
        with self._lock:
            for region in self._idle:
                region.forgotten = region.known

    def retired(self) -> list[str]:
        """Names for the server to forget; each is told once."""
        with self._lock:
            names, self._retired = self._retired, []
        return names

    def close(self) -> None:
        """Remove the regions; those in use go when they are given back."""
        with self._lock:
            self._closed = True
            while self._idle:
                self._retire(self._idle.pop())

    def _make(self, size: int) -> Region | None:
        while self._idle and self._bytes + size > LIMIT:
            self._retire(self._idle.pop(0))
        if self._closed or self._bytes + size > LIMIT:
            return None
        try:
            region = Region(size)
        except OSError:
            return None
        self._paths.add(region.path)
        self._bytes += size
        return region

    def _retire(self, region: Region) -> None:
        region.close()
        self._paths.discard(region.path)
        self._bytes -= region.size
        if region.known:
            self._retired.append(region.name)


def _rounded(size: int) -> int:
    """Up to an eighth more, so that requests of nearly the same size can use the same region."""
    step = max(mmap.PAGESIZE, 1 << max(0, size.bit_length() - 4))
    return -(-size // step) * step


def _sweep() -> list[str]:
    """Remove what clients that are dead left; their locks are gone."""
    names = []
    for path in FOLDER.glob(f"{PREFIX}*"):
        with suppress(OSError):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                names.append(path.name)
            finally:
                os.close(fd)
    return names


def _remove(owner: int, paths: set[Path]) -> None:
    """At the end of a process that did not close its client; not at that of one that it forked."""
    if os.getpid() == owner:
        for path in paths:
            path.unlink(missing_ok=True)
