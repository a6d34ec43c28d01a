"""The life of an encoder's worker: load, serve, drain; and its death, with a reason."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import time

import uvloop

from ds_engines import encoder_folder
from ds_engines.encoder import EncoderEngine
from ds_engines.encoder_folder import EncoderInfo
from ds_engines.encoder_tokens import EncoderTokenizer
from ds_engines.errors import EngineFailure, ServeError
from ds_serve import logs
from ds_serve.embed.app import EncoderApp
from ds_serve.embed.encoding import Encoder
from ds_serve.embed.joining import Joiner
from ds_serve.embed.queue import LengthQueue
from ds_serve.embed.settings import Settings, parse
from ds_serve.process_guard import die_with_parent
from ds_serve.repository.admission import admit
from ds_serve.text.serving import SIGNALS, flushed, listening, report, server

log = logging.getLogger("ds_serve.embed")

_LOOK_SECONDS = 1.0


class Worker:
    """One model served on one socket, until a signal or the engine's end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._signalled = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGTERM; raises ServeError with the reason of any other end."""
        settings = self._settings
        app = EncoderApp(settings.model, settings.request_timeout, settings.max_batch_tokens)
        with listening(settings.uds) as listener:
            http = server(app)
            serving = asyncio.create_task(http.serve(sockets=[listener]))
            try:
                await self._serve(app)
            finally:
                http.should_exit = True
                await serving

    async def _serve(self, app: EncoderApp) -> None:
        settings, begun = self._settings, time.perf_counter()
        info, engine, tokenizer = await asyncio.to_thread(_load, settings)
        queue = LengthQueue(settings.max_batch_tokens, settings.max_queue_tokens, info.positions)
        joiner = Joiner(engine, queue, app.on_load)
        encoder = Encoder(info, tokenizer, joiner)
        # From now on there is something to drain. Before, a signal ends the process at once.
        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._signalled.set)
        app.ready(encoder)
        fields = {
            "model": settings.model,
            "architecture": info.architecture,
            "max_seq_len": info.max_seq_len,
            "width": engine.width,
            "load_seconds": round(time.perf_counter() - begun, 2),
        }
        log.info("ready", extra={"fields": fields})
        try:
            await self._until_signal(joiner)
            await self._drain(app, joiner)
        except EngineFailure as error:
            joiner.fail_all(error)
            await flushed(app)
            raise
        finally:
            joiner.close()
            encoder.close()

    async def _until_signal(self, joiner: Joiner) -> None:
        """Raises EngineFailure where a batch takes too long."""
        limit = self._settings.hang_timeout
        while not self._signalled.is_set():
            if limit and joiner.busy > limit:
                raise EngineFailure(f"the engine hung: a batch took over {limit:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._signalled.wait(), _LOOK_SECONDS)

    async def _drain(self, app: EncoderApp, joiner: Joiner) -> None:
        app.draining = True
        limit = self._settings.drain_timeout
        log.info("draining", extra={"fields": {"pending": joiner.pending, "limit": limit}})
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(app.idle(), limit)
        if joiner.pending:
            log.warning("drain limit reached", extra={"fields": {"pending": joiner.pending}})
        joiner.close()
        await flushed(app)


def _load(settings: Settings) -> tuple[EncoderInfo, EncoderEngine, EncoderTokenizer]:
    info = encoder_folder.read(settings.artifact, settings.max_seq_len)
    tokenizer = EncoderTokenizer(info)
    engine = EncoderEngine(info, settings.threads, half=settings.dtype == "bfloat16")
    return info, engine, tokenizer


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
        return report(log, error)
    except Exception as error:  # a fault of ours: still one line, and the traceback at debug level
        log.debug("the worker failed", exc_info=error)
        return report(log, ServeError(f"internal error: {type(error).__name__}: {error}"))
    return 0
