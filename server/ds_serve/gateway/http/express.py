"""The quick way of an inference request: from uvicorn's parser to the gateway and back.

A request to the infer route needs nothing of ASGI: no scope, no task, no messages. uvicorn's
protocol still reads HTTP and looks after connections; for such a request an `Exchange` stands
where its own cycle of request and response would. Whatever is unusual about a request (chunked, a
pipelined one, `Expect`, an escaped path) goes the ASGI way, through `infer.InferRoute`.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ds_engines.errors import ServeError
from ds_serve.gateway.http.answer import Answer
from ds_serve.gateway.http.infer import Call, InferRoute
from ds_serve.gateway.http.request_ids import HEADER
from ds_serve.security.asgi import AUTHORIZATION
from ds_serve.security.guard import Kind

PATH = re.compile(rb"/v2/models/([\w.~-]+)(?:/versions/(\w+))?/infer")
UNUSUAL = frozenset({b"transfer-encoding", b"content-encoding", b"expect", b"upgrade"})
JOIN_BELOW = 64 * 1024
"""Bytes. Longer bodies are written beside their headers, not copied behind them."""


class Exchange:
    """One request and its answer. uvicorn knows it by the attributes without underscore."""

    def __init__(self, protocol: Protocol, call: Call, keep_alive: bool) -> None:
        self.response_complete = False
        self.disconnected = False
        self.keep_alive = keep_alive
        self.message_event: Exchange | _Over = self
        self._protocol = protocol
        self._call = call

    def set(self) -> None:
        """uvicorn's word that something happened to the connection; only its end matters here."""
        if self.disconnected:
            self.lost()

    def lost(self) -> None:
        """The client left."""
        if not self.response_complete:
            self.response_complete = True
            self._call.abandon()
            self._let_go()

    def feed(self, chunk: bytes) -> None:
        if not self.response_complete and (refused := self._call.feed(chunk)) is not None:
            self._send(refused)

    def complete(self) -> None:
        if not self.response_complete:
            self._call.complete(self._send)

    def _send(self, answer: Answer) -> None:
        """Write the answer, and let the connection go on with its next request."""
        if self.response_complete:
            return
        self.response_complete = True
        if self._call.draining:
            self.keep_alive = False
        transport = self._protocol.transport
        pieces = wire(answer, self._call.request_id, self.keep_alive)
        if len(pieces) == 1:
            transport.write(pieces[0])
        else:
            transport.writelines(pieces)
        if not self.keep_alive:
            transport.close()
        self._let_go()
        self._protocol.on_response_complete()

    def _let_go(self) -> None:
        """What holds each other would be left to the garbage collector, request by request."""
        self.message_event = OVER
        del self._call


class _Over:
    """Stands for an exchange that has ended, of which uvicorn may tell something still."""

    def set(self) -> None:
        pass


OVER = _Over()


def wire(answer: Answer, request_id: bytes, keep_alive: bool) -> list[bytes | memoryview]:
    """The answer's bytes, in as few pieces as pays."""
    length = sum(map(len, answer.chunks))
    head = [STATUS_LINE[answer.status]]
    for name, value in answer.headers:
        head += (name, b": ", value, b"\r\n")
    if not keep_alive:
        head.append(b"connection: close\r\n")
    head.append(b"content-length: %d\r\n%b: %b\r\n\r\n" % (length, HEADER, request_id))
    if length < JOIN_BELOW:
        return [b"".join((*head, *answer.chunks))]
    return [b"".join(head), *answer.chunks]


class Protocol(HttpToolsProtocol):
    """A connection of uvicorn's, on which inference requests take the quick way."""

    def __init__(self, *arguments: Any, infer: InferRoute, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._infer = infer
        self._reading: Exchange | None = None
        self._running: Exchange | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._answered = 0.0

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self._running is not None:
            self._running.lost()

    # uvicorn makes and cancels a timer for each request. Here one timer looks now and then whether
    # the connection has been idle for long.

    def on_response_complete(self) -> None:
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        self._answered = self.loop.time()
        if self._idle_timer is None:
            self._watch_idle(self.timeout_keep_alive)

    def _unset_keepalive_if_required(self) -> None:
        """uvicorn's own timer is never made: it makes one where no pipelined request waits."""

    def _watch_idle(self, seconds: float) -> None:
        self._idle_timer = self.loop.call_later(seconds, self._close_if_idle)

    def _close_if_idle(self) -> None:
        busy = self.cycle is not None and not self.cycle.response_complete
        left = self._answered + self.timeout_keep_alive - self.loop.time()
        if busy or left > 0:
            self._watch_idle(self.timeout_keep_alive if busy else left)
        elif not self.transport.is_closing():
            self.transport.close()

    # What follows is called by the parser. uvicorn makes a scope where a message begins; here
    # that waits until the headers say that one is needed.

    def on_message_begin(self) -> None:
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._reading = None

    def on_headers_complete(self) -> None:
        self._reading = self._exchange()
        if self._reading is not None:
            self._running = self._reading
            self.cycle = self._reading  # type: ignore[assignment]
            return
        url, expect, headers = self.url, self.expect_100_continue, self.headers
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers.extend(headers)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._reading is not None:
            self._reading.feed(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._reading is not None:
            self._reading.complete()
        else:
            super().on_message_complete()

    def _exchange(self) -> Exchange | None:
        """None where the request must take the ASGI way."""
        match = PATH.fullmatch(self.url)
        parser = self.parser
        if match is None or parser.get_method() != b"POST" or parser.get_http_version() != "1.1":
            return None
        # Another request is under way, or its answer is not taken: uvicorn makes this one wait.
        if self.flow.write_paused or (self.cycle is not None and not self.cycle.response_complete):
            return None
        headers = dict(self.headers)
        if not UNUSUAL.isdisjoint(headers) or not self._infer.takes(headers):
            return None
        model = match[1].decode()
        try:
            caller = self._infer.guard.check(headers.get(AUTHORIZATION), model, Kind.INFER)
        except ServeError:
            return None
        call = self._infer.call(model, (match[2] or b"").decode(), headers, caller)
        return Exchange(self, call, parser.should_keep_alive())
