"""The infer route: the one path where every microsecond counts."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from functools import partial

from ds_engines.errors import Cancelled, EngineFailure, ServeError
from ds_serve import metrics
from ds_serve.edge import marks
from ds_serve.gateway import classification
from ds_serve.gateway.budget import Budget
from ds_serve.gateway.gateway import Gateway
from ds_serve.gateway.http import compression, errors, kserve_codec
from ds_serve.gateway.http.answer import Answer, Receive, Scope, Send, Watch
from ds_serve.gateway.http.body import check_announced, pieces
from ds_serve.gateway.http.compression import ACCEPT_ENCODING, CONTENT_ENCODING
from ds_serve.gateway.http.kserve_codec import HEADER_LENGTH
from ds_serve.gateway.http.request_ids import HEADER, RequestIds
from ds_serve.gateway.requests import Abandon, Done, InferReply, resolve
from ds_serve.security.asgi import caller_of
from ds_serve.security.guard import Caller, Guard
from ds_serve.spans import parent_of
from ds_serve.transport.arena import Block

log = logging.getLogger(__name__)

PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")

Headers = dict[bytes, bytes]


class InferRoute:
    """POST /v2/models/{model}[/versions/{version}]/infer."""

    def __init__(
        self,
        gateway: Gateway,
        budget: Budget,
        ids: RequestIds,
        in_flight: metrics.Tally,
        guard: Guard,
    ) -> None:
        self.guard = guard
        self.gateway = gateway
        self.budget = budget
        self.ids = ids
        self.in_flight = in_flight
        self.succeeded = metrics.Tally(metrics.gateway_responses.labels("http", "200").inc)

    def call(self, model: str, version: str, headers: Headers, caller: Caller) -> Call:
        """A request whose headers are there, and whose body is to come."""
        return Call(self, model, version, headers, caller)

    def takes(self, headers: Headers) -> bool:
        """Whether a body of the length that the headers announce may come."""
        try:
            check_announced(headers, self.budget)
        except ServeError:
            return False
        return True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As an ASGI application, for requests that cannot take the quick way."""
        match = PATH.fullmatch(scope["path"])
        assert match is not None, "the application has matched the path"
        call = self.call(match[1], match[2] or "", dict(scope["headers"]), caller_of(scope))
        try:
            answer = await _read(call, receive)
            if answer is None:
                answer = await _answered(call, receive)
        except Cancelled:
            return
        finally:
            call.abandon()
        if answer is not None:
            close = [(b"connection", b"close")] if self.gateway.draining else []
            await answer.send(send, [(HEADER, call.request_id), *close])


class Call:
    """One inference request over HTTP: `feed` it the body, then `complete` it.

    What ends it (an answer, a refusal or `abandon`) gives back what it holds.
    """

    __slots__ = (
        "_abandon", "_block", "_caller", "_chunks", "_done", "_ended", "_route", "_size", "_trace",
        "_wanted", "headers", "model", "request_id", "version",
    )  # fmt: skip

    def __init__(
        self, route: InferRoute, model: str, version: str, headers: Headers, caller: Caller
    ) -> None:
        self._caller = caller
        self.model = model
        self.version = version
        self.headers = headers
        self.request_id = route.ids.of(headers.get(HEADER))
        self._route = route
        self._chunks: list[bytes] = []
        self._size = 0
        self._block: Block | None = None
        self._ended = False
        self._abandon: Abandon | None = None
        self._done: Callable[[Answer], None] = _nobody
        self._wanted = kserve_codec.ALL_JSON
        tracer = route.gateway.tracer
        self._trace = tracer.begin("HTTP_RECV_START", parent_of(headers)) if tracer.on else None
        route.in_flight.add(1)

    @property
    def draining(self) -> bool:
        return self._route.gateway.draining

    def check_announced(self) -> None:
        """Raises what the headers alone are refused for."""
        check_announced(self.headers, self._route.budget)

    def feed(self, chunk: bytes) -> Answer | None:
        """A piece of the body; the answer where it is refused."""
        budget = self._route.budget
        try:
            budget.check(self._size + len(chunk))
            budget.take(len(chunk))
        except ServeError as error:
            return self.refuse(error)
        if not self._size:
            self._block = self._room(len(chunk))
        if self._block is None:
            self._chunks.append(chunk)
        elif self._size + len(chunk) <= len(self._block.view):
            self._block.view[self._size : self._size + len(chunk)] = chunk
        self._size += len(chunk)
        return None

    def complete(self, done: Callable[[Answer], None]) -> None:
        """The body is whole. `done` is told the answer, unless the call is abandoned first."""
        self._done = done
        gateway = self._route.gateway
        if self._trace is not None:
            self._trace.mark("HTTP_RECV_END")
        try:
            request, self._wanted = kserve_codec.decode(
                self.model,
                self.version,
                self.headers,
                self._body(),
                gateway.seconds(self.model),
                gateway.regions_of(self._caller),
            )
            request.trace = self._trace
            request.partition = self._caller.name
            request.rank = self._caller.priority
            request.block = self._block
            answer: Done = self._answer
            if self._wanted.classes:
                spec = gateway.spec(self.model, self.version)
                answer = classification.done(spec, self._wanted.classes, answer)
            self._abandon = gateway.begin(request, answer)
            self._block = None
        except Exception as error:
            done(self.refuse(error))

    def _room(self, here: int) -> Block | None:
        """Where the worker will read the body, if there is such memory and it is worth while."""
        if CONTENT_ENCODING in self.headers:
            return None  # its length is not the one that is announced
        json = self.headers.get(HEADER_LENGTH, b"")
        whole = self.headers.get(b"content-length", b"")
        if not json.isdigit() or not whole.isdigit() or not here < int(whole) > int(json):
            return None
        return self._route.gateway.room(self.model, int(whole), before=int(json))

    def _body(self) -> bytes | memoryview:
        if self._block is not None:
            return self._block.view[: self._size]
        return self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)

    def abandon(self) -> None:
        """Nobody waits any more; nothing happens where the call has ended."""
        if self._abandon is not None:
            self._abandon()
        self._end()

    def refuse(self, error: Exception) -> Answer:
        """The answer that says why there is no other; the call has ended."""
        self._end()
        if not isinstance(error, ServeError):
            log.error("the gateway failed on a request to %r", self.model, exc_info=error)
            error = EngineFailure("the server failed on this request; its log says why")
        if self._trace is not None:
            self._trace.failed(self.model, self.version, str(error))
            self._route.gateway.tracer.keep(self._trace)
        answer = errors.kserve(error)
        metrics.gateway_responses.labels("http", str(answer.status)).inc()
        level = logging.WARNING if answer.status >= 500 else logging.INFO
        fields = {
            "request_id": self.request_id.decode(), "model": self.model, "status": answer.status
        }  # fmt: skip
        log.log(level, "refused: %s", error, extra={"fields": fields})
        return answer

    def _answer(self, outcome: InferReply | ServeError) -> None:
        if self._ended:
            return
        gateway = self._route.gateway
        try:
            if isinstance(outcome, ServeError):
                raise outcome
            answer = kserve_codec.encode(outcome, self._wanted, gateway.regions_of(self._caller))
            if outcome.parameters:
                answer.headers.extend(marks.headers(outcome.parameters))
        except Exception as error:
            answer = self.refuse(error)
        else:
            self._end()
            self._route.succeeded.add(1)
            if ACCEPT_ENCODING in self.headers and compression.worth_it(answer):
                self._pack(answer)
                return
        self._tell(answer)

    def _pack(self, answer: Answer) -> None:
        """Tell the answer packed, if the client takes that; a long one a little later."""
        coding = compression.accepted(self.headers)
        if coding is None:
            self._tell(answer)
        elif sum(map(len, answer.chunks)) < compression.ASIDE:
            self._tell(compression.packed(answer, coding))
        else:
            packing = asyncio.get_running_loop().run_in_executor(
                None, compression.packed, answer, coding
            )
            packing.add_done_callback(lambda done: self._tell(done.result()))

    def _tell(self, answer: Answer) -> None:
        if self._trace is None or self._trace.error:
            self._done(answer)
        else:
            self._trace.mark("HTTP_SEND_START")
            self._done(answer)
            self._trace.mark("HTTP_SEND_END")
            self._route.gateway.tracer.keep(self._trace)

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._caller.close()
            self._chunks = []
            if self._block is not None:
                self._block.free()
                self._block = None
            self._route.budget.give(self._size)
            self._route.in_flight.add(-1)


async def _read(call: Call, receive: Receive) -> Answer | None:
    """Feed the body to the call; the answer where it is refused. Raises Cancelled."""
    try:
        call.check_announced()
        async for chunk in pieces(call.headers, receive):
            if (refused := call.feed(chunk)) is not None:
                return refused
    except Cancelled:
        raise
    except ServeError as error:
        return call.refuse(error)
    return None


async def _answered(call: Call, receive: Receive) -> Answer | None:
    """The answer; None where the client left before it was there."""
    answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    call.complete(partial(resolve, answer))
    watch = Watch(receive)
    try:
        return await answer
    except asyncio.CancelledError:
        if watch.gone:
            return None
        raise
    finally:
        watch.stop()


def _nobody(answer: Answer) -> None:
    """Where nobody waits for the answer yet."""
