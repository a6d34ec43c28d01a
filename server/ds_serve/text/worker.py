"""The text worker's life: load, serve, drain; and its death, with a reason."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

from ds_engines.errors import Unavailable
from ds_engines.openvino_model import ModelInfo, check_artifact
from ds_engines.openvino_tokenizer import TextTokenizer
from ds_engines.openvino_tools import style_of
from ds_serve.text.app import TextApp
from ds_serve.text.loop_client import LoopClient
from ds_serve.text.messages import LogSettings
from ds_serve.text.plan import Reader
from ds_serve.text.serving import SIGNALS, drained, flushed, listening, run, server
from ds_serve.text.settings import Settings, parse

log = logging.getLogger("ds_serve.text")


class Worker:
    """One model served on one socket, until a signal or the engine's end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._signalled = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGTERM; raises ServeError with the reason of any other end."""
        settings = self._settings
        info = await asyncio.to_thread(check_artifact, settings.artifact)
        with listening(settings.uds) as listener:
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
            http = server(app)
            serving = asyncio.create_task(http.serve(sockets=[listener]))
            try:
                await client.start()
                loading = asyncio.create_task(self._load(client, app, info))
                await self._until_end(client, app, loading)
            finally:
                http.should_exit = True
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
        app.ready(Reader(tokenizer, style, loaded.max_seq_len, caches), loaded.blocks)
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
            await flushed(app)
            raise client.ended.result()
        await drained(app, log, self._settings.drain_timeout, lambda: client.pending)
        client.fail_all(Unavailable("the server shut down before the answer was finished"))
        await flushed(app)


async def _run(settings: Settings) -> None:
    await Worker(settings).run()


def main() -> int:
    """Run the worker that the command line asks for; returns its exit code."""
    settings = parse(sys.argv[1:])
    return run(settings, log, lambda: _run(settings))
