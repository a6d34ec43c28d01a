"""A tensor model that another server has, asked over KServe v2."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Collection, Iterator
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
from ds_engines.spec import ModelSpec
from ds_serve import metrics
from ds_serve.edge import remote
from ds_serve.ensemble.accounts import Accounts
from ds_serve.gateway.breaker import Breaker
from ds_serve.gateway.requests import Abandon, Done, InferReply, InferRequest, check, end_by_timeout
from ds_serve.gateway.text_hop import Hop, Refused
from ds_serve.gateway.text_probe import Probe
from ds_serve.tracing import IN_WORKER
from ds_serve.transport.arena import Block
from ds_serve.transport.messages import ModelState, Statistics
from ds_serve.upstream import Upstream

log = logging.getLogger(__name__)

AWAY = frozenset({502, 503, 504})
REFUSED = frozenset({401, 403})

TELLING = 0.25
"""Seconds without an answer that tell something of a server; a client may want to wait for less."""

KEY_SECONDS = 1.0
"""How old the key may be: its file may be given a new one while the server runs."""


class Key:
    """The key for another server, as it is now."""

    def __init__(self, name: str, upstream: Upstream) -> None:
        self._name = name
        self._upstream = upstream
        self._key, self._read = "", -KEY_SECONDS

    def headers(self) -> dict[str, str]:
        """Raises Unavailable where the key cannot be read."""
        now = time.monotonic()
        if now - self._read >= KEY_SECONDS:
            try:
                self._key, self._read = self._upstream.secret(), now
            except ConfigError as error:
                raise Unavailable(f"model {self._name!r}: its key cannot be read") from error
        return {"authorization": f"Bearer {self._key}"} if self._key else {}


class Server:
    """One of those that have the model."""

    def __init__(self, url: str, lost: str) -> None:
        self.url = url
        parts = urlsplit(url)
        self.base = parts.path.rstrip("/")
        self.hop = Hop(f"{parts.scheme}://{parts.netloc}", lost)
        self.breaker = Breaker()


class UpstreamBackend:
    """Passes requests on, and leaves a server alone that does not answer. A request is sent once:
    whether to send it again is for whoever asks to say. `probe`: seconds from one look at a
    server to the next; 0 for none.
    """

    def __init__(self, spec: ModelSpec, upstream: Upstream, probe: float) -> None:
        self.spec = spec
        self.held = 0
        self.accounts = Accounts(spec)
        self._model = upstream.model or spec.name
        self._upstream = upstream
        self._key = Key(spec.name, upstream)
        lost = f"model {spec.name!r} lost this request: its server went away"
        self._lost, self._probe = lost, probe
        self._servers: list[Server] = []
        self._probes: list[Probe] = []
        self._leaving: list[Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._use(upstream)

    async def move(self, state: ModelState) -> None:
        if state.upstream is not None:
            self._use(state.upstream)

    def _use(self, upstream: Upstream) -> None:
        """The servers are these from now on; what others have under way, they finish."""
        had = {server.url: (server, probe) for server, probe in self._pairs()}
        self._servers, self._probes = [], []
        for url in upstream.urls:
            server, probe = had.pop(url) if url in had else self._new(url)
            self._servers.append(server)
            self._probes.append(probe)
        for server, probe in had.values():
            probe.close()
            self._leaving.append(server)
        for server in [one for one in self._leaving if not one.hop.in_flight]:
            self._leaving.remove(server)
            server.hop.close(Lost(self._lost))
        self._tell()

    def _pairs(self) -> Iterator[tuple[Server, Probe]]:
        return zip(self._servers, self._probes, strict=True)

    def _new(self, url: str) -> tuple[Server, Probe]:
        server = Server(url, self._lost)
        there = partial(self._is_there, server)
        return server, Probe(server.breaker, there, self._tell, self._probe)

    @property
    def trouble(self) -> str:
        if all(server.breaker.wait for server in self._servers):
            return "its server fails or does not answer, and is left alone"
        return ""

    @property
    def in_flight(self) -> int:
        return len(self._tasks) + self.held

    def room(self, size: int, before: int) -> Block | None:
        return None

    def begin(self, request: InferRequest, done: Done) -> Abandon:
        rows = check(self.spec, request)
        end_by_timeout(request)
        task = asyncio.ensure_future(self._finish(request, rows, done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

        def abandon() -> None:
            task.cancel()

        return abandon

    async def submit(self, request: InferRequest) -> AsyncIterator[InferReply]:
        yield await self.infer(request)

    async def infer(self, request: InferRequest) -> InferReply:
        rows = check(self.spec, request)
        end_by_timeout(request)
        return await self._counted(request, rows)

    async def statistics(self) -> Statistics:
        return self.accounts.statistics()

    def close(self, reason: ServeError) -> None:
        for probe in self._probes:
            probe.close()
        for server in (*self._servers, *self._leaving):
            server.hop.close(reason)

    async def _finish(self, request: InferRequest, rows: int, done: Done) -> None:
        try:
            outcome: InferReply | ServeError = await self._counted(request, rows)
        except ServeError as error:
            outcome = error
        except Exception:
            log.exception("the gateway failed on a request to %r", self.spec.name)
            outcome = EngineFailure("the server failed on this request; its log says why")
        done(outcome)

    async def _counted(self, request: InferRequest, rows: int) -> InferReply:
        begun = time.monotonic_ns()
        if request.trace is not None:
            request.trace.mark("REQUEST_START")
        try:
            reply = await self._ask(request)
        except ServeError as error:
            self.accounts.failed(error.kind, time.monotonic() - request.arrived)
            raise
        except asyncio.CancelledError:
            self.accounts.failed("Cancelled", time.monotonic() - request.arrived)
            raise
        self.accounts.answered(rows, time.monotonic() - request.arrived)
        if request.trace is not None:
            times = [begun] * 3 + [time.monotonic_ns()] * (len(IN_WORKER) - 3)
            request.trace.answered(self.spec, request.id, times)
        return reply

    async def _ask(self, request: InferRequest) -> InferReply:
        """Of the first server that takes a connection: those that do not were sent nothing."""
        tried: set[str] = set()
        while True:
            server = self._pick(tried)
            tried.add(server.url)
            try:
                return await self._ask_one(server, request)
            except Refused as error:
                if tried.issuperset(one.url for one in self._servers):
                    raise Lost(str(error)) from None

    async def _ask_one(self, server: Server, request: InferRequest) -> InferReply:
        seconds = max(0.001, request.deadline - time.monotonic())
        try:
            async with asyncio.timeout(seconds):
                status, headers, body = await self._exchange(server, request, seconds)
        except TimeoutError:
            if seconds >= TELLING:
                self._judge(server, 0)
            raise DeadlineExceeded(
                f"model {self.spec.name!r}: its server did not answer within {seconds:.3f} s"
            ) from None
        self._judge(server, status)
        if status in REFUSED:
            raise Unavailable(self._refused(status), retry_after=None)
        if status != 200:
            raise remote.fault(status, headers, body, self.spec.name)
        outputs, said = remote.decode(headers, body)
        return InferReply(request.model, self.spec.version, request.id, outputs, True, said or None)

    async def _exchange(
        self, server: Server, request: InferRequest, seconds: float
    ) -> tuple[int, dict[str, str], bytes]:
        body, headers = remote.encode(request)
        headers |= {"x-request-timeout": f"{seconds:.3f}", **self._key.headers()}
        if request.trace is not None:
            headers |= request.trace.passed_on()
        path = remote.path_of(server.base, self._model) + "/infer"
        try:
            async with server.hop.exchange("POST", path, body, headers) as reply:
                return reply.status, reply.headers, await reply.read()
        except Lost:
            self._judge(server, 0)
            raise
        except BaseException:
            server.breaker.gave_up()
            raise

    def _refused(self, status: int) -> str:
        hint = "" if self._upstream.key else f"; give it by --upstream-key {self.spec.name}=FILE"
        return (
            f"model {self.spec.name!r}: its server refuses the key of this server ({status}){hint}"
        )

    def _pick(self, tried: Collection[str] = ()) -> Server:
        """The one with the least under way. Raises Unavailable where all are left alone."""
        for server in sorted(self._servers, key=lambda each: each.hop.in_flight):
            if server.url not in tried and server.breaker.allows():
                return server
        raise Unavailable(
            f"model {self.spec.name!r}: its server has failed again and again and is left alone",
            retry_after=max(1.0, min(server.breaker.wait for server in self._servers)),
        )

    def _judge(self, server: Server, status: int) -> None:
        """Tell breaker and metrics. A server that is busy is not broken."""
        code = str(status) if status else "lost"
        metrics.upstream_answers.labels(self.spec.name, code).inc()
        if not status or status >= 500:
            server.breaker.failed(silent=not status)
        else:
            for one, probe in self._pairs():
                if one is server:
                    probe.answered()
            server.breaker.succeeded()
        self._tell()

    def _tell(self) -> None:
        best = min(server.breaker.state for server in self._servers)
        metrics.upstream_breaker.labels(self.spec.name).set(best)

    async def _is_there(self, server: Server) -> bool:
        """It costs a server nothing to say whether it lives."""
        try:
            path = f"{server.base}/health/live"
            async with server.hop.exchange("GET", path, b"", self._key.headers()) as reply:
                return reply.status not in AWAY
        except (Lost, EngineFailure):
            return False
        except Unavailable:  # the key cannot be read: nothing is known of the server
            return True
