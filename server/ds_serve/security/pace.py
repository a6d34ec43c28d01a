"""Clients that send, or read, so slowly that they only hold a connection.

One timer a connection looks at it now and then; an ordinary request, which comes in one piece, pays
for a few attributes. What is watched: a connection on which no request begins, a request's headers,
its body, and an answer that is not taken. Headers are bounded in bytes too; bodies are where they
are read.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ds_serve.security.settings import Pace

log = logging.getLogger(__name__)

TIMEOUT = 408
HEADERS_TOO_LARGE = 431

_IDLE, _HEAD, _BODY = range(3)


class Paced(HttpToolsProtocol):
    """A connection of uvicorn's that is watched. Put it before the class that it is to watch:
    `class Watched(Paced, Protocol)`, made with `pace=Pace(…)`.
    """

    def __init__(self, *arguments: Any, pace: Pace, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._pace = pace
        self._phase = _IDLE
        self._begun = 0  # requests of this connection
        self._head_bytes = 0
        self._body_bytes = 0
        self._watch = _Watch(self)

    # Called by the transport.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch.start()

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._phase == _HEAD:
            self._head_bytes += len(data)
            if self._head_bytes > self._pace.header_bytes:
                most = self._pace.header_bytes
                self._turn_away(HEADERS_TOO_LARGE, f"the headers have more than {most} bytes")

    # Called by the parser.

    def on_message_begin(self) -> None:
        self._phase = _HEAD
        self._begun += 1
        self._head_bytes = self._body_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._phase = _BODY
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._phase = _IDLE
        super().on_message_complete()

    def _turn_away(self, status: int, why: str) -> None:
        """Answer, where the request has none yet, and end the connection."""
        if self.transport.is_closing():
            return
        log.info("%s: %s", self.client[0] if self.client else "a client", why)
        answered = self._phase == _BODY and self.cycle is not None and _has_begun(self.cycle)
        if status and not answered:
            self.transport.write(_answer(status, why))
        self._phase = _IDLE
        self.transport.close()


class _Watch:
    """Compares a connection with what it was when it was last looked at."""

    def __init__(self, connection: Paced) -> None:
        self._connection = connection
        self._timer: asyncio.TimerHandle | None = None
        self._seen: tuple[int, int] | None = None
        self._since = self._taken_at = 0.0
        self._received = self._unsent = 0

    def start(self) -> None:
        self._since = self._taken_at = self._connection.loop.time()
        self._again()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _again(self) -> None:
        one = self._connection
        self._timer = one.loop.call_later(one._pace.look_every, self._look)

    def _look(self) -> None:
        if self._connection.transport.is_closing():
            return
        now = self._connection.loop.time()
        self._look_at_what_comes(now)
        self._look_at_what_goes(now)
        self._again()

    def _look_at_what_comes(self, now: float) -> None:
        one, pace = self._connection, self._connection._pace
        seen = (one._begun, one._phase)
        if seen != self._seen:
            self._seen, self._since, self._received = seen, now, one._body_bytes
            return
        waited = now - self._since
        if one._phase == _IDLE:
            if not one._begun and waited >= pace.first_request:
                one._turn_away(0, "no request came")
        elif one._phase == _HEAD:
            if waited >= pace.headers:
                one._turn_away(TIMEOUT, f"the headers took more than {pace.headers:g} s")
        elif one.flow.read_paused or one._body_bytes - self._received >= pace.body_bytes:
            self._since, self._received = now, one._body_bytes
        elif waited >= pace.body_pause:
            one._turn_away(
                TIMEOUT, f"less than {pace.body_bytes} bytes of the body in {pace.body_pause:g} s"
            )

    def _look_at_what_goes(self, now: float) -> None:
        one = self._connection
        unsent = one.transport.get_write_buffer_size()
        if not unsent or unsent < self._unsent:
            self._taken_at = now
        elif now - self._taken_at >= one._pace.answer_pause:
            log.info("%s takes no answer", one.client[0] if one.client else "a client")
            one.transport.abort()
        self._unsent = unsent


def _has_begun(cycle: Any) -> bool:
    """Whether some of the answer may have been sent."""
    return bool(getattr(cycle, "response_started", False) or cycle.response_complete)


def _answer(status: int, why: str) -> bytes:
    head = b"content-type: text/plain\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    return STATUS_LINE[status] + head % len(why) + why.encode()
