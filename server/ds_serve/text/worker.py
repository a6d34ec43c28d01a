"""The text worker's life: load, serve, drain; and its death, with a reason."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import uvicorn
import uvloop

from ds_engines.errors import ConfigError, LoadError, ServeError, Unavailable
from ds_engines.openvino_model import ModelInfo, check_artifact
from ds_engines.openvino_tokenizer import TextTokenizer
from ds_engines.openvino_tools import style_of
from ds_serve import logs
from ds_serve.process_guard import die_with_parent
from ds_serve.repository.admission import admit
from ds_serve.text.app import TextApp
from ds_serve.text.loop_client import LoopClient
from ds_serve.text.messages import LogSettings
from ds_serve.text.plan import Reader
from ds_serve.text.settings import Settings, parse

log = logging.getLogger("ds_serve.text")

PERMANENT, FAILED = 3, 1
SIGNALS = (signal.SIGTERM, signal.SIGINT)
# What answers, already decided, may take to reach their clients.
FLUSH_SECONDS = 1.0


class _Server(uvicorn.Server):
    """uvicorn with the signals left to the worker."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Worker:
    """One model served on one socket, until a signal or the engine's end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._signalled = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGTERM; raises ServeError with the reason of any other end."""
        settings = self._settings
        info = await asyncio.to_thread(check_artifact, settings.artifact)
        with _listening(settings.uds) as listener:
            process = f"text-{settings.model}"
            logging_to = LogSettings(settings.log_format, settings.log_level, process)
            client = LoopClient(
                settings.engine,
                settings.max_queue_size,
                logging_to,
                settings.uds.with_suffix(".loop"),
                settings.hang_timeout,
            )
            app = TextApp(
                settings.model,
                client,
                settings.request_timeout,
                settings.max_num_seqs,
                [name for name, _ in settings.lora],
            )
            server = _server(app)
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            try:
                await client.start()
                loading = asyncio.create_task(self._load(client, app, info))
                await self._until_end(client, app, loading)
            finally:
                server.should_exit = True
                await client.stop()
                await serving

    async def _load(self, client: LoopClient, app: TextApp, info: ModelInfo) -> None:
        settings = self._settings
        template = settings.template()
        style = style_of(template or info.chat_template)
        tokenizer = await asyncio.to_thread(TextTokenizer, info, style.kept, template)
        log.info("tokenizer loaded", extra={"fields": {"tokens": len(tokenizer.pieces)}})
        loaded = await client.loaded
        # From now on there is something to drain. Before, a signal ends the process at once.
        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._signalled.set)
        caches = settings.prefix_caching and not settings.lora
        app.ready(Reader(tokenizer, style, loaded.max_seq_len, caches))
        fields = {
            "model": settings.model,
            "max_seq_len": loaded.max_seq_len,
            "kv_cache_mb": loaded.cache_bytes >> 20,
            "load_seconds": round(loaded.load_seconds, 2),
            "first_token_seconds": round(loaded.first_token_seconds, 3),
        }
        log.info("ready", extra={"fields": fields})

    async def _until_end(
        self, client: LoopClient, app: TextApp, loading: asyncio.Task[None]
    ) -> None:
        signalled = asyncio.create_task(self._signalled.wait())
        ends: set[asyncio.Future[Any]] = {signalled, client.ended}
        try:
            await asyncio.wait({loading, *ends}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done() and not client.ended.done():
                loading.result()
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            signalled.cancel()
            loading.cancel()
        if client.ended.done():
            await _flushed(app)
            raise client.ended.result()
        await self._drain(client, app)

    async def _drain(self, client: LoopClient, app: TextApp) -> None:
        app.draining = True
        limit = self._settings.drain_timeout
        log.info("draining", extra={"fields": {"pending": client.pending, "limit": limit}})
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(app.idle(), limit)
        if client.pending:
            log.warning("drain limit reached", extra={"fields": {"pending": client.pending}})
        client.fail_all(Unavailable("the server shut down before the answer was finished"))
        await _flushed(app)


async def _flushed(app: TextApp) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(app.idle(), FLUSH_SECONDS)


def _server(app: TextApp) -> uvicorn.Server:
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
def _listening(path: Path) -> Iterator[socket.socket]:
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


def _report(error: ServeError) -> int:
    """Tell the log and the supervisor why; returns the exit code."""
    reason = " ".join(str(error).split())
    log.error(reason)
    log.debug("the worker failed", exc_info=error)
    file = os.environ.get("DS_FAILURE_FILE")
    if file:
        Path(file).write_text(reason + "\n", encoding="utf-8")
    return PERMANENT if isinstance(error, LoadError | ConfigError) else FAILED


async def _run(settings: Settings) -> None:
    await Worker(settings).run()


def main() -> int:
    """Run the worker that the command line asks for; returns its exit code."""
    settings = parse(sys.argv[1:])
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    logs.configure(settings.log_format, settings.log_level, f"text-{settings.model}")
    try:
        if settings.parent_pid:
            die_with_parent(settings.parent_pid)
        admit(settings.model, settings.artifact, anyway=settings.allow_unverified)
        uvloop.run(_run(settings))
    except ServeError as error:
        return _report(error)
    except Exception as error:  # a fault of ours: still one line, and the traceback at debug level
        log.debug("the worker failed", exc_info=error)
        return _report(ServeError(f"internal error: {type(error).__name__}: {error}"))
    return 0
