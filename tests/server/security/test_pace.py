"""Slow clients, against uvicorn with the connections that a gateway has."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager, nullcontext
from functools import partial

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ds_serve.security.pace import Paced
from ds_serve.security.settings import Pace

QUICK = Pace(
    first_request=0.6, headers=0.6, body_pause=0.6, answer_pause=0.6, body_bytes=10,
    look_every=0.1, header_bytes=1000,
)  # fmt: skip


class Watched(Paced, HttpToolsProtocol):
    """As a gateway's connections, without the quick way."""


class Application:
    """Answers with the bytes of the body; /large with as many as nobody takes at once."""

    def __init__(self):
        self.left = asyncio.Event()
        self.held = asyncio.Event()

    async def __call__(self, scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left.set()
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
        if scope["path"] == "/held":
            await self.held.wait()
        answer = bytes(50_000_000) if scope["path"] == "/large" else body
        headers = [(b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


@asynccontextmanager
async def served(application, pace=QUICK):
    config = uvicorn.Config(
        application, http=partial(Watched, pace=pace), lifespan="off", ws="none", log_config=None
    )
    server = uvicorn.Server(config)
    server.capture_signals = nullcontext
    listener = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(server.serve([listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await serving


@asynccontextmanager
async def connected(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def trickle(port, start, piece, seconds=0.1):
    """Send `start`, then pieces until the server ends the connection; what it said."""
    async with connected(port) as (reader, writer):
        answer = asyncio.create_task(reader.read())
        writer.write(start)
        while not answer.done():
            writer.write(piece)
            await asyncio.wait([answer], timeout=seconds)
        return await answer


async def test_headers_that_trickle_end_the_connection():
    async with served(Application()) as port:
        said = await trickle(port, b"GET / HTTP/1.1\r\nhost: a\r\n", b"a: b\r\n")
    assert said.startswith(b"HTTP/1.1 408 ")
    assert said.endswith(b"the headers took more than 0.6 s")


async def test_a_body_that_trickles_ends_the_connection_and_the_request():
    application = Application()
    async with served(application) as port:
        said = await trickle(port, b"POST / HTTP/1.1\r\ncontent-length: 9999\r\n\r\n", b"x")
        await asyncio.wait_for(application.left.wait(), 10)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b"less than 10 bytes of the body in 0.6 s" in said


async def test_a_body_that_comes_steadily_may_take_long():
    async with (
        served(Application()) as port,
        connected(port) as (reader, writer),
    ):
        writer.write(b"POST / HTTP/1.1\r\ncontent-length: 200\r\n\r\n")
        for _ in range(20):
            writer.write(b"0123456789")
            await asyncio.sleep(0.1)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert await reader.readexactly(200) == b"0123456789" * 20


async def test_a_connection_without_a_request_is_closed():
    async with served(Application()) as port, connected(port) as (reader, _):
        assert await reader.read() == b""


async def test_a_connection_between_requests_and_a_long_answer_are_left_alone():
    application = Application()
    async with served(application) as port, connected(port) as (reader, writer):
        for path in (b"/", b"/held", b"/"):
            writer.write(b"GET %b HTTP/1.1\r\nhost: a\r\n\r\n" % path)
            asyncio.get_running_loop().call_later(1.5, application.held.set)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            await asyncio.sleep(0.8)


async def test_an_answer_that_nobody_takes_ends_the_connection():
    async with served(Application()) as port, connected(port) as (reader, writer):
        writer.write(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n")
        await asyncio.sleep(2)
        await reader.readuntil(b"\r\n\r\n")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await reader.readexactly(50_000_000)


async def test_headers_may_not_be_large():
    async with served(Application()) as port:
        said = await trickle(port, b"GET / HTTP/1.1\r\n", b"a: %b\r\n" % (b"b" * 100), 0.01)
        assert said.startswith(b"HTTP/1.1 431 ")
        async with connected(port) as (reader, writer):
            writer.write(b"GET /%b HTTP/1.1\r\nhost: a\r\n\r\n" % (b"a" * 900))
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
