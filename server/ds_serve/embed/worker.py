"""The life of an encoder's worker: load, serve, drain; and its death, with a reason."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time

from ds_engines import encoder_folder
from ds_engines.encoder import EncoderEngine
from ds_engines.encoder_folder import EncoderInfo
from ds_engines.encoder_tokens import EncoderTokenizer
from ds_engines.errors import EngineFailure
from ds_serve.embed.app import EncoderApp
from ds_serve.embed.encoding import Encoder
from ds_serve.embed.joining import Joiner
from ds_serve.embed.queue import LengthQueue
from ds_serve.embed.settings import Settings, parse
from ds_serve.text.serving import SIGNALS, drained, flushed, listening, run, server

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
            await drained(app, log, settings.drain_timeout, lambda: joiner.pending)
            joiner.close()
            await flushed(app)
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
    return run(settings, log, lambda: _run(settings))
