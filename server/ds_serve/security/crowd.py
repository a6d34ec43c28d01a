"""No more HTTP connections than a gateway may hold."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ds_serve import metrics

log = logging.getLogger(__name__)

FULL = 503
LINGER = 0.5
"""Seconds that a connection which is refused stays, so that its client reads why: what it has sent
meanwhile would otherwise turn the close into a reset."""


class Cap:
    """How many connections there may be, and how many there are. `most` 0: any number."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.open = 0
        body = b'{"error":"the server has no room for another connection (--max-connections)"}'
        self.answer = b"%b%b%b" % (
            STATUS_LINE[FULL],
            b"content-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n" % len(body),
            body,
        )

    @property
    def full(self) -> bool:
        return 0 < self.most <= self.open


class Capped(HttpToolsProtocol):
    """A connection that counts. Put it before the class whose connections are to: `class
    Counted(Capped, Protocol)`, made with `cap=Cap(…)`.
    """

    def __init__(self, *arguments: Any, cap: Cap, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._cap = cap

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if self._cap.full:
            transport.set_protocol(_Refused(transport, self._cap.answer))
            return
        self._cap.open += 1
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cap.open -= 1
        super().connection_lost(exc)


class _Refused(asyncio.Protocol):
    """Says so, and reads what comes until the connection ends."""

    def __init__(self, transport: asyncio.Transport, answer: bytes) -> None:
        log.info("a connection is refused: --max-connections are open")
        metrics.gateway_responses.labels("http", str(FULL)).inc()
        transport.write(answer)
        if transport.can_write_eof():
            transport.write_eof()
        asyncio.get_running_loop().call_later(LINGER, transport.close)
