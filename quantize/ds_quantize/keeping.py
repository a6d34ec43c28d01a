"""How much a work folder keeps: what was used longest ago goes first, and never what is in use.

Each run holds a shared lock on every stage that it uses, until it ends, however it does. A stage
is removed under an exclusive one, so only where no run has it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

from ds_quantize.errors import QuantizeError

VARIABLE = "DS_QUANTIZE_KEEP"
USUAL_GB = 20.0
"""What a work folder keeps where nothing else is said."""

LOCKS = ".locks"
PARTIAL, RESUME = ".partial", ".resume"
"""Endings of folders: of a stage that is being made, and of what its training goes on from."""

# The user may have given a folder with files of others: no other names are touched.
_STAGE = re.compile(r"(?P<stage>[a-z0-9-]+-[0-9a-f]{20})(?P<ending>\.partial|\.resume)?")


def limit(gigabytes: float | None = None) -> int:
    """Bytes that a work folder keeps: as given, else as the environment says, else the usual.

    Raises QuantizeError for a variable that is no number.
    """
    said = os.environ.get(VARIABLE) if gigabytes is None else gigabytes
    try:
        value = USUAL_GB if said in (None, "") else float(said)
        if value < 0:
            raise ValueError
        return int(value * 1e9)
    except (ValueError, OverflowError):
        raise QuantizeError(f"{VARIABLE} is {said!r}; give gigabytes, such as 20") from None


class Uses:
    """The stages that a run uses. They are kept at least as long as this object."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._held: dict[str, int] = {}
        weakref.finalize(self, _close, self._held)

    def hold(self, stage: str) -> None:
        """Keep this stage from being removed; from now on it was used last."""
        if stage not in self._held:
            self._held[stage] = _locked(self._root, stage, fcntl.LOCK_SH)
        with contextlib.suppress(OSError):
            os.utime(self._root / stage)


def prune(root: Path, most: int) -> list[str]:
    """Remove stages, those used longest ago first, until no more than `most` bytes are left, and
    what interrupted runs have left half made; their names. Stages in use stay.
    """
    found = sorted(_folders(root), key=lambda path: path.stat().st_mtime)
    sizes = {path: _size(path) for path in found}
    left, removed = sum(sizes.values()), []
    for path in found:
        half = path.name.endswith(PARTIAL)
        if (half or left > most) and _removed(path):
            left -= sizes[path]
            removed.append(path.name)
    return removed


def _folders(root: Path) -> Iterator[Path]:
    return (path for path in root.iterdir() if _STAGE.fullmatch(path.name) and path.is_dir())


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # another run may be at it
            total += path.lstat().st_size
    return total


def _removed(path: Path) -> bool:
    """Whether it could be: no run has it."""
    stage = path.name.partition(".")[0]
    try:
        lock = _locked(path.parent, stage, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    try:
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)
    return not path.exists()


def _locked(root: Path, stage: str, kind: int) -> int:
    """The descriptor that holds the lock."""
    lock = root / LOCKS / f"{stage}.used"
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, kind)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _close(held: dict[str, int]) -> None:
    for descriptor in held.values():
        os.close(descriptor)
