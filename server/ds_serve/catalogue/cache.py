"""Where fetched models live, and the lock that keeps two processes from fetching one twice."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ds_engines.errors import ConfigError
from ds_serve.catalogue.entries import Entry


def default_root() -> Path:
    """$DS_SERVE_CACHE, else ds-serve in $XDG_CACHE_HOME, else in ~/.cache."""
    if own := os.environ.get("DS_SERVE_CACHE"):
        return Path(own).expanduser().absolute()
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = xdg if xdg.is_absolute() else Path.home() / ".cache"
    return base / "ds-serve"


class Place:
    """An entry's folders in the cache: where it will be, and where it is put together.

    Both are on one file system, so that moving from one to the other is atomic.
    """

    def __init__(self, root: Path, entry: Entry) -> None:
        self.root = root
        self.folder = root / "catalogue" / entry.name / f"{entry.package}-{entry.version}"
        self.staging = root / "catalogue" / ".staging" / entry.name
        self.lock = root / "catalogue" / ".locks" / entry.name
        self.used = root / "catalogue" / ".used" / f"{entry.name}.{self.folder.name}"

    def prepare(self) -> None:
        """Make the folders; ConfigError where the cache cannot be written."""
        try:
            for folder in (self.folder.parent, self.staging, self.lock.parent):
                folder.mkdir(parents=True, exist_ok=True)
            probe = self.staging / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"the model cache {self.root} cannot be written: {error.strerror} "
                f"({error.filename}); set DS_SERVE_CACHE to a folder that can be"
            ) from error


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[int]:
    """Hold an exclusive lock on `path`; `waiting` is called once if another process has it.

    Yields the lock's file descriptor. A child that inherits it keeps the lock when we die, and
    the kernel frees it when the last holder is gone: it is never left behind.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def hold(path: Path) -> int:
    """Say that what the lock `path` stands for is in use, until this process ends or closes the
    descriptor that is returned; -1 where the cache cannot be written, so that nobody removes
    anything either. Its time of change says when it was used last.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        os.utime(path)
    except OSError:
        return -1
    return descriptor


MADE = ("openvino", "quantized")
"""Folders of the cache in which each is what a model was made into when a server started."""


def used_made(root: Path, kind: str, name: str) -> Path:
    """The lock that is held as long as what was made is in use."""
    return root / ".used" / f"{kind}.{name}"


def keep_made(root: Path, kind: str, name: str) -> None:
    """Hold what is made, or was, until this process ends."""
    hold(used_made(root, kind, name))


def keep(path: Path) -> None:
    """Hold what a path belongs to, where it is in the cache, until this process ends."""
    root = default_root()
    path = Path(os.path.normpath(path.absolute()))
    for kind in ("catalogue", "pulled", *MADE):
        inside = path.parts[len((root / kind).parts) :]
        if not inside or not path.is_relative_to(root / kind):
            continue
        if kind in MADE:
            keep_made(root, kind, inside[0])
        elif len(inside) > 1:
            hold(root / kind / ".used" / f"{inside[0]}.{inside[1]}")


@contextlib.contextmanager
def unused(path: Path) -> Iterator[bool]:
    """Whether nobody holds what the lock `path` stands for; then nobody can begin to, meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make a rename into or within `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
