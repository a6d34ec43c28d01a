"""One HTTP exchange: reading a bounded body, answering once, noticing that the client left."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

from ds_engines.errors import Cancelled, ServeError, TooLarge
from ds_serve.anthropic_errors import error_body, is_anthropic
from ds_serve.text.answers import encode, event, named_event
from ds_serve.text.errors import BadField, body_of, headers_of, status_of

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_BODY = 16 << 20


class Exchange:
    """A request and the answer to it. `status` is 0 until the answer begins."""

    def __init__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        self.path: str = scope["path"]
        self.method: str = scope["method"]
        self._headers = {key.lower(): value.decode("latin-1") for key, value in scope["headers"]}
        self._receive = receive
        self._send = send
        self.arrived = time.monotonic()
        self.id = self._request_id()
        self.status = 0

    def _request_id(self) -> str:
        given = self._headers.get(b"x-request-id", "")
        return given if 0 < len(given) <= 128 and given.isprintable() else secrets.token_hex(16)

    def timeout(self, default: float) -> float | None:
        """Seconds that the answer may take: the header's or the default, whichever is less."""
        given = self._headers.get(b"x-request-timeout")
        if given is None:
            return default or None
        try:
            seconds = float(given)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            raise BadField(
                "X-Request-Timeout", f"X-Request-Timeout must be seconds above 0, not {given!r:.40}"
            )
        return min(seconds, default) if default else seconds

    async def body(self) -> bytes:
        """The whole body. Raises TooLarge beyond MAX_BODY, Cancelled where the client left."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Cancelled("the client left")
            part = message.get("body", b"")
            size += len(part)
            if size > MAX_BODY:
                raise TooLarge(f"the body has more than {MAX_BODY} bytes")
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    async def while_connected(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`; cancel it and raise Cancelled as soon as the client has left."""
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Cancelled("the client left")
            await task
        finally:
            gone.cancel()
            task.cancel()
            # The work's own clean-up must be over before the exchange is.
            await asyncio.wait((task,))

    async def _gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def json(self, body: object, status: int = 200, **headers: str) -> None:
        """Answer with one JSON object."""
        await self.answer(encode(body), status, "application/json", headers)

    async def answer(
        self, body: bytes, status: int, content_type: str, headers: dict[str, str] | None = None
    ) -> None:
        """Answer with one body."""
        extra = (headers or {}) | {"content-length": str(len(body))}
        await self._begin(status, content_type, extra)
        await self._send({"type": "http.response.body", "body": body})

    async def open_stream(self) -> None:
        """Begin a stream of events."""
        extra = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        await self._begin(200, "text/event-stream; charset=utf-8", extra)

    async def write(self, data: bytes) -> None:
        """Send a part of the stream."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def close_stream(self) -> None:
        """End the stream."""
        await self._send({"type": "http.response.body", "body": b""})

    async def fail(self, error: ServeError) -> None:
        """Answer with an error: a status, or in a stream that has begun an event and no [DONE]."""
        status, body = status_of(error), body_of(error)
        if is_anthropic(self.path):
            body = error_body(status, str(error))
        if self.status == 0:
            headers = {key.replace("-", "_"): value for key, value in headers_of(error).items()}
            await self.json(body, status, **headers)
            return
        await self.write(named_event(body) if is_anthropic(self.path) else event(body))
        await self.close_stream()

    async def _begin(self, status: int, content_type: str, headers: dict[str, str]) -> None:
        self.status = status
        fields = {"content-type": content_type, "x-request-id": self.id} | headers
        raw = [(key.replace("_", "-").encode(), value.encode()) for key, value in fields.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})
