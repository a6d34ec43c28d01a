"""The way to a text model that another server has, or several alike."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from urllib.parse import urlsplit

from ds_engines.errors import (
    ConfigError,
    DeadlineExceeded,
    EngineFailure,
    Lost,
    ServeError,
    Unavailable,
)
from ds_serve import metrics
from ds_serve.gateway.breaker import Breaker
from ds_serve.gateway.config import Limits
from ds_serve.gateway.text_admission import Admission
from ds_serve.gateway.text_hop import Hop, Reply, load_of
from ds_serve.gateway.text_load import Load, together
from ds_serve.gateway.text_probe import Probe
from ds_serve.gateway.text_replicas import in_order
from ds_serve.gateway.text_way import LOOK_SECONDS, Ask, prefix_of
from ds_serve.security.text_ledger import Seat
from ds_serve.upstream import ENGINE, SOCKET, Upstream

RETRIES = 2
BACKOFF = 0.25
"""Seconds before the first retry; before each further one twice as many, and never the same."""

PATIENCE = 10.0
"""Seconds that a server may ask to be left alone for, and still is asked again."""

AGAIN = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed."""

AWAY = frozenset({502, 503, 504})
"""What a server says that is not there, or something before it."""

OURS = frozenset({401, 403})
"""What a server says to a key that is wrong, which is not the client's."""

KEPT = (
    "accept",
    "content-type",
    "traceparent",
    "tracestate",
    "x-request-id",
    "anthropic-version",
    "anthropic-beta",
)

KEY_SECONDS = 1.0
"""How old the key may be: its file may be given a new one while the server runs."""


class _Server:
    """One of those that have the model."""

    def __init__(self, url: str, lost: str) -> None:
        self.address = url
        self.local = url.startswith(SOCKET)
        parts = urlsplit(url)
        where = url[len(SOCKET) :] if self.local else f"{parts.scheme}://{parts.netloc}"
        self._base = "/v1" if self.local else parts.path.rstrip("/")
        self._root = "" if self.local else self._base.removesuffix("/v1")
        self.hop = Hop(where, lost)
        self.breaker = Breaker()

    def path(self, path: str) -> str:
        """Where it has what the gateway has at `path`."""
        if path.startswith("/v1/"):
            return self._base + path.removeprefix("/v1")
        return self._root + path


class UpstreamWay:
    """A request is sent again only while nothing of an answer has come. `seat`, `limits`: as a
    worker's.
    """

    def __init__(self, name: str, upstream: Upstream, *, seat: Seat, limits: Limits) -> None:
        self._name = name
        self._upstream = upstream
        self.remote = upstream.remote
        self._routing = limits.replica_routing
        self._lost = f"model {name!r} lost this request: its server went away"
        self._servers: dict[str, _Server] = {}
        self._probes: dict[str, Probe] = {}
        self._leaving: list[_Server] = []
        self._every = limits.upstream_probe
        self._reason: ServeError | None = None
        self._key, self._key_read = "", -KEY_SECONDS
        self._admission = Admission(
            name, seat, self._look, limits.max_tokens_in_flight, limits.max_text_queue
        )
        self.move(upstream)

    def move(self, upstream: Upstream) -> None:
        """The servers are these from now on; what others have under way, they finish."""
        for url in self._servers.keys() - set(upstream.urls):
            self._probes.pop(url).close()
            self._leaving.append(self._servers.pop(url))
        for url in upstream.urls:
            if url not in self._servers:
                server = self._servers[url] = _Server(url, self._lost)
                there = partial(self._is_there, server)
                self._probes[url] = Probe(server.breaker, there, self._tell, self._every)
        for server in [one for one in self._leaving if not one.hop.in_flight]:
            self._leaving.remove(server)
            server.hop.close(Lost(self._lost))
        self._tell()

    @property
    def trouble(self) -> str:
        if all(server.breaker.wait for server in self._servers.values()):
            return "its server fails or does not answer, and is left alone"
        return ""

    @property
    def addresses(self) -> list[str]:
        return list(self._servers)

    @property
    def in_flight(self) -> int:
        held = sum(one.hop.in_flight for one in (*self._servers.values(), *self._leaving))
        return self._admission.waiting + held

    def pump(self) -> None:
        self._admission.pump()

    @asynccontextmanager
    async def forward(self, ask: Ask) -> AsyncIterator[Reply]:
        """The answer. Raises DeadlineExceeded, Unavailable where no server answers or may be asked,
        Lost.
        """
        until = time.monotonic() + ask.timeout
        body = ask.for_engine(ENGINE, (self._name, self._upstream.model or self._name))
        try:
            async with AsyncExitStack() as stack, asyncio.timeout(ask.timeout):
                if ask.about is not None and ask.about.tokens:
                    about = (ask.key, ask.about.tokens, ask.priority, ask.timeout)
                    await stack.enter_async_context(self._admission.room(*about))
                yield await self._answer(stack, ask, body, until)
        except TimeoutError:
            raise DeadlineExceeded(
                f"model {self._name!r}: its server did not answer within {ask.timeout:g} s"
            ) from None

    async def _answer(self, stack: AsyncExitStack, ask: Ask, body: bytes, until: float) -> Reply:
        """The first answer that is not worth another try, or the last one."""
        headers = self._headers(ask)
        for left in range(RETRIES, -1, -1):
            server = self._pick(ask)
            attempt = await stack.enter_async_context(AsyncExitStack())
            pause = BACKOFF * 2 ** (RETRIES - left) * random.uniform(0.5, 1.5)  # noqa: S311
            try:
                exchange = server.hop.exchange(ask.method, server.path(ask.path), body, headers)
                reply = await attempt.enter_async_context(exchange)
                await reply.first()
            except Lost:
                self._judge(server, 0)
                if not left or self._reason is not None:
                    raise
            except BaseException:
                server.breaker.gave_up()
                raise
            else:
                self._judge(server, reply.status)
                if reply.status in OURS:
                    raise Unavailable(self._refused(reply.status), retry_after=None)
                asked = _seconds(reply.headers.get("retry-after"))
                pause = pause if asked is None else asked
                late = pause > PATIENCE or time.monotonic() + pause > until
                if reply.status not in AGAIN or not left or late:
                    return reply
            await attempt.aclose()
            metrics.upstream_retries.labels(self._name).inc()
            await asyncio.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _refused(self, status: int) -> str:
        hint = "" if self._upstream.key else f"; give it by --upstream-key {self._name}=FILE"
        return f"model {self._name!r}: its server refuses the key of this server ({status}){hint}"

    def _pick(self, ask: Ask) -> _Server:
        """Raises Unavailable where all are left alone."""
        prefix = prefix_of(ask, self._routing)
        loads = {
            url: server.hop.in_flight
            for url, server in self._servers.items()
            if ask.address in ("", url)
        }
        for url in in_order(prefix, loads):
            if self._servers[url].breaker.allows():
                return self._servers[url]
        wait = min(server.breaker.wait for server in self._servers.values())
        raise Unavailable(
            f"model {self._name!r}: its server has failed again and again and is left alone",
            retry_after=max(1.0, wait),
        )

    def _judge(self, server: _Server, status: int) -> None:
        """What the breaker is told, and the metrics. A server that is busy is not broken."""
        metrics.upstream_answers.labels(self._name, str(status) if status else "lost").inc()
        if not status or status >= 500:
            server.breaker.failed(silent=not status)
        else:
            if server.address in self._probes:
                self._probes[server.address].answered()
            server.breaker.succeeded()
        self._tell()

    def _tell(self) -> None:
        best = min(server.breaker.state for server in self._servers.values())
        metrics.upstream_breaker.labels(self._name).set(best)

    async def _is_there(self, server: _Server) -> bool:
        """Any server has a list of models; what it says of it does not matter."""
        path = "/v1/models"
        try:
            headers = self._headers(Ask("GET", path, b"", {}, 0))
            async with server.hop.exchange("GET", server.path(path), b"", headers) as reply:
                return reply.status not in AWAY
        except (Lost, EngineFailure):
            return False
        except Unavailable:  # the key cannot be read: nothing is known of the server
            return True

    def _headers(self, ask: Ask) -> dict[str, str]:
        """The client's, but its key, and this server's own key."""
        headers = {name: ask.headers[name] for name in KEPT if name in ask.headers}
        if key := self._secret():
            headers["authorization"] = f"Bearer {key}"
            if ask.path.startswith("/v1/messages"):
                headers["x-api-key"] = key
        return headers

    def _secret(self) -> str:
        now = time.monotonic()
        if now - self._key_read >= KEY_SECONDS:
            self._key_read = now
            try:
                self._key = self._upstream.secret()
            except ConfigError as error:
                raise Unavailable(f"model {self._name!r}: its key cannot be read") from error
        return self._key

    async def _look(self) -> Load:
        """What the servers' metrics say, where they are on this machine."""
        if self.remote:
            return Load()
        async with asyncio.timeout(LOOK_SECONDS):
            hops = [server.hop for server in self._servers.values()]
            return together(await asyncio.gather(*map(load_of, hops)))

    def close(self, reason: ServeError) -> None:
        """Requests in flight break off; they then raise `reason`."""
        self._reason = reason
        self._admission.close(reason)
        for probe in self._probes.values():
            probe.close()
        for server in (*self._servers.values(), *self._leaving):
            server.hop.close(reason)


def _seconds(retry_after: str | None) -> float | None:
    """Of the header, which may be a date too: that is as good as none."""
    try:
        return max(0.0, float(retry_after)) if retry_after else None
    except ValueError:
        return None
