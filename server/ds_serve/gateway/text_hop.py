"""Connections to one OpenAI server: a worker's socket, or another machine's port.

Written for streams: what arrives in one turn of the event loop is handed on as one piece, and
nothing is done for a chunk but to parse and keep it.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import cast
from urllib.parse import urlsplit

import httptools

from ds_engines.errors import EngineFailure, Lost, ServeError
from ds_serve.gateway.text_load import Load, read

IDLE_SECONDS = 4.0
"""Younger than the 5 s after which uvicorn, and so vLLM, closes a connection that is idle."""

CONNECT_SECONDS = 10.0
HELD_BYTES = 256 * 1024
"""What one answer may hold that its client has not taken; then the server is made to wait."""

JOIN_BELOW = 64 * 1024

Headers = Mapping[str, str]


class Refused(Lost):
    """No connection could be made: nothing was sent."""

    @property
    def kind(self) -> str:
        return Lost.__name__


class Reply:
    """An answer as it arrives. `headers` have small letters; of several of a name, the last."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.complete = False
        self.started = False
        self._chunks: list[bytes] = []
        self._held = 0
        self._error: ServeError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._connection: _Connection | None = None

    @property
    def events(self) -> bool:
        """Whether it is a stream of server-sent events."""
        return self.headers.get("content-type", "").startswith("text/event-stream")

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body, each time all that has come since. Raises Lost where it breaks off."""
        while True:
            while not self._chunks:
                if self._error is not None:
                    raise self._error
                if self.complete:
                    return
                await self._news()
            yield self._take()

    async def read(self) -> bytes:
        """The whole body."""
        return b"".join([piece async for piece in self.pieces()])

    async def begun(self) -> None:
        """Wait for status and headers. Raises Lost."""
        while not self.started:
            if self._error is not None:
                raise self._error
            await self._news()

    async def first(self) -> None:
        """Wait until there is something of the body, or it has ended. Raises Lost."""
        while not self._chunks and not self.complete:
            if self._error is not None:
                raise self._error
            await self._news()

    def _take(self) -> bytes:
        chunks, self._chunks = self._chunks, []
        if self._held > HELD_BYTES and self._connection is not None:
            self._connection.resume()
        self._held = 0
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def _news(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _add(self, data: bytes) -> bool:
        """Whether too much is held now."""
        self._chunks.append(data)
        self._held += len(data)
        return self._held > HELD_BYTES

    def _fail(self, error: ServeError) -> None:
        if not self.complete and self._error is None:
            self._error = error
        self._wake()


class _Connection(asyncio.Protocol):
    """One connection, which carries one exchange at a time. Methods without underscore that are
    named `on_…` are the parser's.
    """

    def __init__(self, lost: str) -> None:
        self.reply: Reply | None = None
        self.open = True
        self._lost = lost
        self.used = False
        self.idle_since = 0.0
        self.free: asyncio.Event | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._keep = False
        self._skip = False
        self._ends_by_closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        if self.free is not None:
            self.free.set()
        reply = self.reply
        if reply is None:
            return
        if reply.started and self._ends_by_closing and error is None:
            reply.complete = True
            reply._wake()
        else:
            reply._fail(Lost(self._lost))

    def pause_writing(self) -> None:
        self.free = asyncio.Event()

    def resume_writing(self) -> None:
        if self.free is not None:
            self.free.set()
            self.free = None

    def data_received(self, data: bytes) -> None:
        reply = self.reply
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._transport.abort()
            if reply is not None:
                reply._fail(EngineFailure(f"its answer is not HTTP: {error}"))
            return
        if reply is None:
            self._transport.abort()  # nobody has asked
        else:
            reply._wake()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.reply is not None:
            self.reply.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        reply = self.reply
        if reply is None:
            return
        status = self._parser.get_status_code()
        self._skip = status < 200  # 100 Continue and its like announce the answer
        if self._skip:
            reply.headers = {}
            return
        reply.status, reply.started = status, True
        length = "content-length" in reply.headers or "transfer-encoding" in reply.headers
        self._ends_by_closing = not length and status not in (204, 304)

    def on_body(self, body: bytes) -> None:
        if self.reply is not None and self.reply._add(body):
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._skip or self.reply is None:
            return
        self._keep = self._parser.should_keep_alive()
        self.reply.complete = True

    def begin(self, reply: Reply, data: Iterable[bytes]) -> None:
        self.reply = reply
        self.used = True
        self._keep = False
        reply._connection = self
        for piece in data:
            self._transport.write(piece)

    async def write(self, data: bytes) -> None:
        """Raises Lost where the other side is gone."""
        if not self.open:
            raise Lost(self._lost)
        self._transport.write(data)
        if self.free is not None:
            await self.free.wait()

    def end(self) -> bool:
        """Nobody reads the reply any more; whether the connection can carry another."""
        reply, self.reply = self.reply, None
        if reply is not None:
            reply._connection = None
        if self.open and reply is not None and reply.complete and self._keep:
            self._transport.resume_reading()
            self.idle_since = time.monotonic()
            return True
        self.abort()
        return False

    def abort(self) -> None:
        self.open = False
        self._transport.abort()

    def resume(self) -> None:
        if self.open:
            self._transport.resume_reading()


class Hop:
    """`address` is a socket's path, or http:// or https:// with host and port. `lost` is what is
    said of a request whose server went away.
    """

    def __init__(self, address: str, lost: str) -> None:
        self.address = address
        self._lost = lost
        self.in_flight = 0
        self._idle: list[_Connection] = []
        self._replies: set[Reply] = set()
        self._reason: ServeError | None = None
        self._tls: ssl.SSLContext | None = None
        self._host = "worker"
        if not address.startswith("/"):
            self._parts = urlsplit(address)
            self._host = self._parts.netloc
            if self._parts.scheme == "https":
                self._tls = ssl.create_default_context()

    @asynccontextmanager
    async def exchange(
        self,
        method: str,
        path: str,
        body: bytes | AsyncIterator[bytes],
        headers: Headers,
    ) -> AsyncIterator[Reply]:
        """The answer, from its headers on. Raises Refused, Lost, or what `close` was told."""
        if self._reason is not None:
            raise self._reason
        reply = Reply()
        self._replies.add(reply)
        self.in_flight += 1
        connection: _Connection | None = None
        try:
            connection = await self._ask(reply, method, path, body, headers)
            yield reply
        finally:
            self.in_flight -= 1
            self._replies.discard(reply)
            if connection is not None and connection.end():
                self._keep(connection)

    async def _ask(
        self,
        reply: Reply,
        method: str,
        path: str,
        body: bytes | AsyncIterator[bytes],
        headers: Headers,
    ) -> _Connection:
        """Send the request and wait for the answer's headers."""
        connection = self._reused() or await self._connect()
        again = connection.used and isinstance(body, bytes)
        try:
            return await self._send(connection, reply, method, path, body, headers)
        except Lost:
            # It was closed while it was idle, which may cross with a request on its way.
            if not again or reply.started or self._reason is not None:
                raise
        reply._error = None
        return await self._send(await self._connect(), reply, method, path, body, headers)

    async def _send(
        self,
        connection: _Connection,
        reply: Reply,
        method: str,
        path: str,
        body: bytes | AsyncIterator[bytes],
        headers: Headers,
    ) -> _Connection:
        try:
            if isinstance(body, bytes):
                head = self._head(method, path, headers, len(body))
                small = len(body) < JOIN_BELOW
                connection.begin(reply, (head + body,) if small else (head, body))
            else:
                connection.begin(reply, (self._head(method, path, headers, None),))
                async for piece in body:
                    await connection.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await connection.write(b"0\r\n\r\n")
            await reply.begun()
        except BaseException:
            connection.end()
            raise
        return connection

    def _head(self, method: str, path: str, headers: Headers, length: int | None) -> bytes:
        size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
        lines = [f"{method} {path} HTTP/1.1", f"host: {self._host}", size]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _keep(self, connection: _Connection) -> None:
        if self._reason is None:
            self._idle.append(connection)
        else:
            connection.abort()

    def _reused(self) -> _Connection | None:
        oldest = time.monotonic() - IDLE_SECONDS
        while self._idle:
            connection = self._idle.pop()
            if connection.open and connection.idle_since > oldest:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                if self.address.startswith("/"):
                    return (await loop.create_unix_connection(self._new, self.address))[1]
                secure = self._parts.scheme == "https"
                port = self._parts.port or (443 if secure else 80)
                return (
                    await loop.create_connection(
                        self._new, self._parts.hostname or "", port, ssl=self._tls
                    )
                )[1]
        except TimeoutError:
            said = f"{self._lost}: no connection within {CONNECT_SECONDS:g} s"
            raise self._reason or Refused(said) from None
        except (OSError, ssl.SSLError) as error:
            raise self._reason or Refused(f"{self._lost}: no connection: {error}") from None

    def _new(self) -> _Connection:
        return _Connection(self._lost)

    def close(self, reason: ServeError) -> None:
        """Requests in flight break off; they then raise `reason`."""
        self._reason = reason
        for connection in self._idle:
            connection.abort()
        self._idle.clear()
        for reply in list(self._replies):
            connection_of = reply._connection
            reply._fail(reason)
            if connection_of is not None:
                with suppress(RuntimeError):
                    connection_of.abort()


async def load_of(hop: Hop) -> Load:
    """What a server's metrics say of its cache. Raises Lost."""
    async with hop.exchange("GET", "/metrics", b"", {}) as reply:
        text = await reply.read()
    return read(text.decode(errors="replace")) if reply.status == 200 else Load()
