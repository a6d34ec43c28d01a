"""Entry of the process that owns the files: it knows the models as a gateway does."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import uvloop
from aiohttp import web

from ds_engines.errors import ConfigError
from ds_serve import child, logs, metrics
from ds_serve.batches.app import build
from ds_serve.batches.runner import Runner
from ds_serve.batches.store import Store
from ds_serve.gateway.__main__ import keep_updated, update
from ds_serve.gateway.config import GatewayConfig
from ds_serve.gateway.gateway import Gateway
from ds_serve.gateway.http.files import SOCKET
from ds_serve.security.key_file import KeyFile
from ds_serve.transport.codec import frames_of, read_from_supervisor
from ds_serve.transport.link import Link, connect
from ds_serve.transport.messages import Hello, Listening, Registry, Stop, Tuning

log = logging.getLogger("ds_serve.batches")


async def serve(config: GatewayConfig, store: Store) -> None:
    gateway = Gateway(config.limits, folder=config.control.parent)
    registries: asyncio.Queue[Registry] = asyncio.Queue()
    stop: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def obey(link: Link, frames: list[memoryview]) -> None:
        for message in read_from_supervisor(frames):
            match message:
                case Registry():
                    registries.put_nowait(message)
                case Tuning():
                    logs.apply(message.logs, config.identity)
                case Stop() if not stop.done():
                    stop.set_result(message.grace)

    supervisor = await connect(config.control, Link(obey))
    supervisor.send(frames_of([Hello(config.identity)]))
    await update(gateway, registries, supervisor)
    updating = asyncio.create_task(keep_updated(gateway, registries, supervisor))
    runner = Runner(gateway, store, _allows(config), config.batch_requests)
    site = web.AppRunner(build(store, runner, config.limits.max_request_bytes), access_log=None)
    await site.setup()
    await web.UnixSite(site, str(config.control.parent / SOCKET)).start()
    runner.resume()
    supervisor.send(frames_of([Listening()]))
    await stop
    await runner.close()
    await site.cleanup()
    updating.cancel()
    gateway.close()
    metrics.tell_all()
    supervisor.close()


def _allows(config: GatewayConfig) -> Callable[[str, str], bool]:
    """A key that was withdrawn meanwhile allows nothing."""
    if not config.security.keys:
        return lambda owner, model: True
    file = KeyFile(Path(config.security.keys))

    def allows(owner: str, model: str) -> bool:
        key = file.keys.named(owner)
        return key is not None and key.allows(model)

    return allows


def main() -> int:
    config = child.begin(sys.argv[1], GatewayConfig)
    try:
        store = Store(Path(config.files))
    except ConfigError as error:
        return child.fail(str(error), permanent=True)
    uvloop.run(serve(config, store))
    store.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
