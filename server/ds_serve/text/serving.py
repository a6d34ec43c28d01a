"""What the processes of text workers have in common: a socket, a server on it, a reason to end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import stat
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, cast

import uvicorn
import uvloop

from ds_engines.errors import ConfigError, LoadError, ServeError
from ds_serve import logs
from ds_serve.process_guard import die_with_parent
from ds_serve.repository.admission import admit
from ds_serve.text.base_app import BaseApp
from ds_serve.text.worker_settings import WorkerSettings

PERMANENT, FAILED = 3, 1
SIGNALS = (signal.SIGTERM, signal.SIGINT)
# What answers, already decided, may take to reach their clients.
FLUSH_SECONDS = 1.0


class _Server(uvicorn.Server):
    """uvicorn with the signals left to the worker."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def flushed(app: BaseApp) -> None:
    """Give answers a moment to leave."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(app.idle(), FLUSH_SECONDS)


async def drained(
    app: BaseApp, log: logging.Logger, limit: float, pending: Callable[[], int]
) -> None:
    """Admit no more, and wait `limit` seconds for what is `pending`."""
    app.draining = True
    log.info("draining", extra={"fields": {"pending": pending(), "limit": limit}})
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(app.idle(), limit)
    if pending():
        log.warning("drain limit reached", extra={"fields": {"pending": pending()}})


def server(app: BaseApp) -> uvicorn.Server:
    """What serves the application; `should_exit` ends it."""
    config = uvicorn.Config(
        cast("Any", app),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
        timeout_keep_alive=75,
    )
    return _Server(config)


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A listening Unix socket that only its owner may use, gone from the disk at the end."""
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(2048)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {path}: {error.strerror or error}") from error
    try:
        yield listener
    finally:
        listener.close()
        path.unlink(missing_ok=True)


def _clear(path: Path) -> None:
    """Remove a socket that a dead process left; leave anything else alone."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"--uds {path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise ConfigError(f"--uds {path} is in use by another process")


def run(
    settings: WorkerSettings, log: logging.Logger, life: Callable[[], Coroutine[Any, Any, None]]
) -> int:
    """A worker's process; returns its exit code."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    logs.configure(settings.log_format, settings.log_level, f"text-{settings.model}")
    try:
        if settings.parent_pid:
            die_with_parent(settings.parent_pid)
        admit(settings.model, settings.artifact, anyway=settings.allow_unverified)
        uvloop.run(life())
    except ServeError as error:
        return report(log, error)
    except Exception as error:  # a fault of ours: still one line, and the traceback at debug level
        log.debug("the worker failed", exc_info=error)
        return report(log, ServeError(f"internal error: {type(error).__name__}: {error}"))
    return 0


def report(log: logging.Logger, error: ServeError) -> int:
    """Tell the log and the supervisor why; returns the exit code."""
    reason = " ".join(str(error).split())
    log.error(reason)
    log.debug("the worker failed", exc_info=error)
    file = os.environ.get("DS_FAILURE_FILE")
    if file:
        Path(file).write_text(reason + "\n", encoding="utf-8")
    return PERMANENT if isinstance(error, LoadError | ConfigError) else FAILED
