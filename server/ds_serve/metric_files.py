"""What processes that have ended have counted, kept in one file for each kind of metric.

Without that, each worker that ever was would leave files behind that every reader adds up anew.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client.mmap_dict import MmapedDict

LOCK = "lock"
ENDED = "ended"
KINDS = ("counter", "histogram")


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """While the block runs, no file goes and nothing is counted twice."""
    with (folder / LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def keep(folder: Path, pid: int) -> None:
    """Add what a dead process has counted to what others before it have, and remove its files."""
    with (folder / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for kind in KINDS:
            file = folder / f"{kind}_{pid}.db"
            if file.exists():
                _add(file, folder / f"{kind}_{ENDED}.db")
                file.unlink()


def _add(file: Path, to: Path) -> None:
    total = MmapedDict(str(to))  # type: ignore[no-untyped-call]
    for key, value, _, _ in MmapedDict.read_all_values_from_file(str(file)):  # type: ignore[no-untyped-call]
        before, _ = total.read_value(key)  # type: ignore[no-untyped-call]
        total.write_value(key, before + value, 0.0)  # type: ignore[no-untyped-call]
    total.close()  # type: ignore[no-untyped-call]
