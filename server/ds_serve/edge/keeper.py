"""Keeps a tensor model that another server has: ready once that server has said what it is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from itertools import count
from typing import TypeVar

import msgspec

from ds_engines.errors import EngineFailure, ServeError
from ds_engines.spec import ModelSpec
from ds_serve.edge import remote
from ds_serve.edge.upstream import Key, Server
from ds_serve.supervisor.worker import LOADING, READY, STOPPED, Keeper
from ds_serve.upstream import Upstream

log = logging.getLogger(__name__)

AGAIN = 2.0
"""Seconds to the next question to a server that has not said what the model is."""

SECONDS = 5.0
"""How long its answer may take."""

_serials = count(1)

T = TypeVar("T")


class TensorUpstreamKeeper(Keeper):
    """This server is ready without it: its other models are not to wait for a server elsewhere."""

    def __init__(
        self, name: str, version: str, upstream: Upstream, on_change: Callable[[], None]
    ) -> None:
        super().__init__(name, version, on_change)
        self.state.upstream = upstream
        self._upstream = upstream
        self._asked = asyncio.Event()
        self._ended = asyncio.Event()

    async def run(self) -> None:
        while not self._stopping and not await self._found():
            self._asked.set()
            try:
                async with asyncio.timeout(AGAIN):
                    await self._ended.wait()
            except TimeoutError:
                continue
        self._asked.set()
        await self._ended.wait()
        self._become(STOPPED)

    async def settled(self) -> None:
        """One that cannot be reached has settled too: nobody knows when it will be there."""
        await self._asked.wait()

    async def stop(self, grace: float) -> None:
        self.kill()

    def kill(self) -> None:
        self._stopping = True
        self._ended.set()

    async def _found(self) -> bool:
        try:
            async with asyncio.timeout(SECONDS):
                spec = await ask(self._upstream, self.name, self.state.version)
        except (ServeError, TimeoutError) as error:
            self._missing(str(error) or f"its server did not answer within {SECONDS:g} s")
            return False
        if self._stopping:
            return False
        self.state.spec = spec
        self.state.address = f"upstream-{self.name}-{next(_serials)}"
        self._become(READY)
        return True

    def _missing(self, reason: str) -> None:
        self.state.required = False
        if reason != self.state.reason:
            log.warning("model %s is not known yet: %s", self.name, reason)
            self._become(LOADING, reason)


async def ask(upstream: Upstream, name: str, version: str) -> ModelSpec:
    """What a model is, by the first server that says it. Raises errors of ds_engines.errors."""
    error: ServeError = EngineFailure("it has no server")
    for url in upstream.urls:
        server = Server(url, f"no answer of {url}")
        try:
            return await _ask_one(server, upstream, name, version)
        except ServeError as one:
            error = one
        finally:
            server.hop.close(EngineFailure("it was asked"))
    raise error


async def _ask_one(server: Server, upstream: Upstream, name: str, version: str) -> ModelSpec:
    path = remote.path_of(server.base, upstream.model or name)
    headers = Key(name, upstream).headers()
    found = await _read(server, path, headers, name, remote.Metadata)
    assert found is not None, "it is needed"
    config = await _read(server, f"{path}/config", headers, name, remote.Config, needed=False)
    return remote.spec_of(name, version, found, config or remote.Config())


async def _read(
    server: Server,
    path: str,
    headers: dict[str, str],
    name: str,
    kind: type[T],
    *,
    needed: bool = True,
) -> T | None:
    async with server.hop.exchange("GET", path, b"", headers) as reply:
        body = await reply.read()
        if reply.status != 200:
            if not needed and reply.status == 404:
                return None
            raise remote.fault(reply.status, reply.headers, body, name)
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise EngineFailure(f"its server's {path} is not KServe's: {error}") from None
