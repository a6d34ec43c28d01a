"""Keeps a tensor model that another server has: ready once that server has said what it is, and
another where it says something else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import TypeVar

import msgspec

from ds_engines.errors import EngineFailure, ServeError
from ds_engines.spec import ModelSpec
from ds_serve.edge import remote
from ds_serve.edge.upstream import Key, Server
from ds_serve.supervisor.worker import LOADING, READY, IdleKeeper
from ds_serve.upstream import Upstream

log = logging.getLogger(__name__)

AGAIN = 2.0
"""Seconds to the next question to a server that has not said what the model is."""

SECONDS = 5.0
"""How long its answer may take."""

LOOKS = 6
"""Looks whether a server is there, for each question what its model is."""

_serials = count(1)

T = TypeVar("T")


class TensorUpstreamKeeper(IdleKeeper):
    """This server is ready without it: its other models are not to wait for a server elsewhere.
    `probe`: seconds from one look at the server to the next; 0: it is asked once what the model is.
    """

    def __init__(
        self,
        name: str,
        version: str,
        upstream: Upstream,
        probe: float,
        on_change: Callable[[], None],
    ) -> None:
        super().__init__(name, version, on_change)
        self.state.upstream = upstream
        self._upstream = upstream
        self._anew = LOOKS * probe
        self._asked = asyncio.Event()

    async def run(self) -> None:
        while not self._stopping:
            found = await self._found()
            self._asked.set()
            if found and not self._anew:
                break
            with suppress(TimeoutError):
                async with asyncio.timeout(self._anew if found else AGAIN):
                    await self._ended.wait()
        self._asked.set()
        await super().run()

    async def settled(self) -> None:
        """One that cannot be reached has settled too: nobody knows when it will be there."""
        await self._asked.wait()

    async def _found(self) -> bool:
        """Whether the server has said what the model is. What is known holds while it is away."""
        try:
            async with asyncio.timeout(SECONDS):
                spec = await ask(self._upstream, self.name, self.state.version)
        except (ServeError, TimeoutError) as error:
            if not self.ready:
                self._missing(str(error) or f"its server did not answer within {SECONDS:g} s")
            return self.ready
        if not self._stopping and spec != self.state.spec:
            self._known(spec)
        return True

    def _known(self, spec: ModelSpec) -> None:
        """Another address is another model to the gateways, which check requests anew."""
        if self.ready:
            log.warning("model %s is another on its server than before", self.name)
        self.state.spec = spec
        self.state.address = f"upstream-{self.name}-{next(_serials)}"
        self._become(READY)

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
