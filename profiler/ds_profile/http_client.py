"""The least of an HTTP client: what it costs is taken from the server on the same machine."""

from __future__ import annotations

import asyncio
from typing import cast

import httptools


class HttpConnection(asyncio.Protocol):
    """One connection, one request at a time; opened anew where the server has closed it."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._body: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)

    async def request(self, message: bytes, seconds: float) -> tuple[int, bytes]:
        """Status and body of the answer to a whole HTTP/1.1 message.

        Raises OSError, TimeoutError.
        """
        loop = asyncio.get_running_loop()
        if self._transport is None:
            await loop.create_connection(lambda: self, self._host, self._port)
        assert self._transport is not None, "it is connected"
        self._answer = loop.create_future()
        timer = loop.call_later(seconds, self._late)
        self._transport.write(message)
        try:
            return await self._answer
        finally:
            timer.cancel()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _late(self) -> None:
        self._fail(TimeoutError("no answer came in time"))
        self.close()

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    # What follows is called by the loop and by the parser.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._parser = httptools.HttpResponseParser(self)
        self._body = []

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._fail(ConnectionError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"the server answered no HTTP: {error}"))
            self.close()

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        body, self._body = b"".join(self._body), []
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), body))
