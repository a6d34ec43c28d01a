"""The private folder of one running server: sockets, child configs, metrics."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ds_engines.errors import ConfigError

PREFIX = "ds-serve-"
LONGEST = 107
"""Bytes in the path of a Unix socket, on Linux."""
BELOW = 20
"""Bytes for the sockets' own names below the folder."""
_NAME = re.compile(rf"{PREFIX}(\d+)-")


@contextlib.contextmanager
def run_folder() -> Iterator[Path]:
    """A fresh folder, removed at the end; what killed servers left behind goes first.

    Raises ConfigError where sockets in it would have too long a path.
    """
    base = Path(tempfile.gettempdir())
    _check(base)
    _sweep(base)
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=base))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check(base: Path) -> None:
    most = LONGEST - BELOW - len(f"/{PREFIX}{os.getpid()}-12345678")
    if len(os.fsencode(base)) > most:
        raise ConfigError(
            f"the folder for temporary files, {base}, has too long a path for sockets in it: set "
            f"TMPDIR to one of at most {most} bytes"
        )


def _sweep(base: Path) -> None:
    for folder in base.glob(f"{PREFIX}*"):
        match = _NAME.match(folder.name)
        if match and not _alive(int(match[1])):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
