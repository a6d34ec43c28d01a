"""What is around a request whose body is read whole and whose answer may be a stream of events."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod

from ds_engines.errors import Cancelled, EngineFailure, ServeError
from ds_serve import metrics
from ds_serve.gateway.budget import Budget
from ds_serve.gateway.gateway import Gateway
from ds_serve.gateway.http.answer import Answer, Headers, Receive, Scope, Send, Watch
from ds_serve.gateway.http.body import read_body
from ds_serve.gateway.http.request_ids import HEADER, RequestIds
from ds_serve.spans import parent_of
from ds_serve.tracing import Trace

log = logging.getLogger(__name__)

EVENT_END = b"\n\n"


class Route(ABC):
    """Says how a request is answered, and what a refusal looks like."""

    def __init__(self, gateway: Gateway, budget: Budget, ids: RequestIds) -> None:
        self._gateway = gateway
        self._budget = budget
        self._ids = ids

    @abstractmethod
    async def run(
        self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, out: Out
    ) -> None:
        """Read the body and answer to `out`. Raises the errors of ds_engines.errors."""

    @abstractmethod
    def refusal(self, error: ServeError) -> Answer:
        """The error as this route's clients know it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        out = Out(send, self._ids.of(headers.get(HEADER)), closing=self._gateway.draining)
        tracer = self._gateway.tracer
        if tracer.on:
            out.trace = tracer.begin("HTTP_RECV_START", parent_of(headers))
        try:
            await self.run(scope, headers, receive, out)
        except Cancelled:
            log.info("cancelled", extra={"fields": {"request_id": out.request_id.decode()}})
            return
        except ServeError as error:
            answer = self.refusal(error)
            _log(error, answer.status, scope["path"], out)
            await out.fail(answer)
            if out.trace is not None:
                out.trace.failed(out.trace.model, out.trace.version, str(error))
        if out.trace is not None:
            out.trace.mark("HTTP_SEND_END")
            tracer.keep(out.trace)
        metrics.gateway_responses.labels("http", str(out.status)).inc()


class Framed(Route):
    """A route to which bodies are brought whole."""

    @abstractmethod
    async def answer(
        self, scope: Scope, headers: dict[bytes, bytes], body: bytes, out: Out
    ) -> None:
        """Answer to `out`, and say in its trace which model it is. Raises the errors of
        ds_engines.errors.
        """

    async def run(
        self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, out: Out
    ) -> None:
        body = await read_body(headers, receive, self._budget)
        if out.trace is not None:
            out.trace.mark("HTTP_RECV_END")
        watch = Watch(receive)
        try:
            await self.answer(scope, headers, body, out)
        except asyncio.CancelledError:
            if watch.gone and out.over:
                return  # it had its whole answer
            if watch.gone:
                raise Cancelled("the client left") from None
            raise
        except ServeError:
            raise
        except Exception as error:
            log.exception("the gateway failed on %s", scope["path"])
            raise EngineFailure("the server failed on this request; its log says why") from error
        finally:
            watch.stop()
            self._budget.give(len(body))


class Out:
    """The client's side of one answer: started or not, whole or broken off.

    `status` is that of the answer, or of the error that ended it. `has_events` must be right before
    the answer starts; `error_event` is how an event with an error begins. `trace`: of the request,
    where its turn has come. `over`: nothing is to come that the client waits for. `marks`: headers
    that say which tier the answer is from.
    """

    def __init__(self, send: Send, request_id: bytes, *, closing: bool) -> None:
        self.request_id = request_id
        self.status = 200
        self.has_events = False
        self.error_event = b"data: "
        self.trace: Trace | None = None
        self._send = send
        self.started = False
        self.over = False
        self.marks: Headers = []
        self._extra = [(HEADER, request_id)]
        if closing:
            self._extra.append((b"connection", b"close"))

    async def whole(self, answer: Answer) -> None:
        self._begin(answer.status)
        await answer.send(self._send, [*self._extra, *self.marks])

    async def start(self, status: int, headers: Headers) -> None:
        """Nothing happens the second time."""
        if self.started:
            return
        self._begin(status)
        headers = headers + self._extra + self.marks
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    def _begin(self, status: int) -> None:
        self.started = True
        self.status = status
        if self.trace is not None:
            self.trace.mark("HTTP_SEND_START")

    async def write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, last: bytes = b"") -> None:
        await self._send({"type": "http.response.body", "body": last, "more_body": False})

    async def fail(self, answer: Answer) -> None:
        """The error as an answer, or as the last event of a stream that has begun. Any other
        answer breaks off, and its connection closes: the one sign that is left.
        """
        if not self.started:
            await self.whole(answer)
            return
        self.status = answer.status
        if self.has_events:
            await self.end(self.error_event + b"".join(answer.chunks) + EVENT_END)


def event(data: bytes) -> bytes:
    return b"data: " + data + EVENT_END


def _log(error: ServeError, status: int, path: str, out: Out) -> None:
    fields = {"request_id": out.request_id.decode(), "path": path, "status": status}
    level = logging.WARNING if status >= 500 else logging.INFO
    log.log(level, "refused: %s", error, extra={"fields": fields})
