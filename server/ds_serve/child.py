"""What every child process does first: read its config, log, and die with its parent."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ds_serve import logs
from ds_serve.logs import LogSettings
from ds_serve.process_guard import die_with_parent

PERMANENT = 3
"""Exit status of a child that would fail again in the same way."""

GARBAGE = 10_000
"""New objects between two looks at the youngest: some hundred requests."""

FAILURE_FILE = "DS_FAILURE_FILE"


class ChildConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Common to all children: the child's name, and the socket where the supervisor listens."""

    identity: str
    control: Path
    parent_pid: int
    logs: LogSettings = LogSettings()


Config = TypeVar("Config", bound=ChildConfig)


def begin(path: str, kind: type[Config]) -> Config:
    """Read the config file, and prepare the process.

    The supervisor alone decides when a child ends: a signal to the whole process group must not
    take a worker from under the requests that the gateways still hold.
    """
    config = resume(path, kind)
    die_with_parent(config.parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return config


def resume(path: str, kind: type[Config]) -> Config:
    """`begin` for a process that has begun and then become another program."""
    config = msgspec.json.decode(Path(path).read_bytes(), type=kind, dec_hook=_decode)
    logs.apply(config.logs, config.identity)
    return config


def settle() -> None:
    """Everything that lives as long as the process is there: the garbage collector need not look
    at it again and again, which takes tens of milliseconds each time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE)


def write(config: ChildConfig, path: Path) -> None:
    """Write the config for `begin` to read."""
    path.write_bytes(msgspec.json.encode(config, enc_hook=str))


def fail(reason: str, *, permanent: bool = False) -> int:
    """Tell the supervisor why this child cannot go on; returns the exit status."""
    logging.getLogger(__name__).error("%s", reason)
    if FAILURE_FILE in os.environ:
        Path(os.environ[FAILURE_FILE]).write_text(reason)
    sys.stderr.flush()
    return PERMANENT if permanent else 1


def _decode(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(kind)
