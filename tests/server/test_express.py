"""Connections of the HTTP server: requests one behind the other, idle ones, and the two ways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from ds_serve.gateway.http.answer import Answer
from ds_serve.gateway.http.express import JOIN_BELOW, Protocol, wire
from ds_serve.security.guard import EVERYBODY, Caller

IDLE = 0.3


class Call:
    """Answers with its body, after as many seconds as the header says."""

    draining = False
    request_id = b"some-id"

    def __init__(self, headers: dict[bytes, bytes]) -> None:
        self.body = b""
        self.seconds = float(headers.get(b"seconds", b"0"))
        self.abandoned = False

    def feed(self, chunk: bytes) -> None:
        self.body += chunk

    def complete(self, done: Callable[[Answer], None]) -> None:
        answer = Answer(200, [self.body], [(b"way", b"quick")])
        asyncio.get_running_loop().call_later(self.seconds, done, answer)

    def abandon(self) -> None:
        self.abandoned = True


class Route:
    guard = EVERYBODY

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def takes(self, headers: dict[bytes, bytes]) -> bool:
        return True

    def call(self, model: str, version: str, headers: dict[bytes, bytes], caller: Caller) -> Call:
        self.calls.append(Call(headers))
        return self.calls[-1]


async def application(scope: Any, receive: Any, send: Any) -> None:
    body = (await receive())["body"]
    headers = [(b"content-length", b"%d" % len(body)), (b"way", b"asgi")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving(
    route: Route,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    config = uvicorn.Config(
        application, lifespan="off", log_config=None, ws="none", proxy_headers=False
    )
    config.timeout_keep_alive = IDLE  # type: ignore[assignment]
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()

    def make() -> Protocol:
        return Protocol(config=config, server_state=state, app_state={}, infer=route)

    server = await loop.create_server(make, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        yield reader, writer
    finally:
        writer.close()
        server.close()


def request(body: bytes, path: str = "/v2/models/any/infer", **headers: str) -> bytes:
    lines = [f"{name}: {value}" for name, value in headers.items()]
    head = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join([*head, "", ""]).encode() + body


async def answer(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    """Which way it came, and its body."""
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)).decode().lower()
    fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
    return fields["way"], await reader.readexactly(int(fields["content-length"]))


async def test_inference_goes_the_quick_way_and_the_rest_does_not() -> None:
    async with serving(Route()) as (reader, writer):
        for path, way in (
            ("/v2/models/any/infer", "quick"),
            ("/v2/models/any/versions/1/infer", "quick"),
            ("/v2/models/an%79/infer", "asgi"),
            ("/v2/models/any/infer?x=1", "asgi"),
            ("/v2/models/any", "asgi"),
        ):
            writer.write(request(b"body", path))
            assert await answer(reader) == (way, b"body"), path


async def test_a_chunked_body_goes_the_long_way() -> None:
    async with serving(Route()) as (reader, writer):
        head = b"POST /v2/models/any/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked"
        writer.write(head + b"\r\n\r\n4\r\nbody\r\n0\r\n\r\n")
        assert await answer(reader) == ("asgi", b"body")


async def test_requests_sent_without_waiting_are_answered_in_order() -> None:
    """The second waits for the first, and so takes the long way; the third comes after both."""
    async with serving(Route()) as (reader, writer):
        writer.write(request(b"first", seconds="0.1") + request(b"second") + request(b"third"))
        answers = [await answer(reader) for _ in range(3)]
        assert [body for _, body in answers] == [b"first", b"second", b"third"]
        assert answers[0][0] == "quick"
        writer.write(request(b"fourth"))
        assert await answer(reader) == ("quick", b"fourth")


async def test_a_body_may_come_in_pieces() -> None:
    async with serving(Route()) as (reader, writer):
        whole = request(b"0123456789")
        for start in range(0, len(whole), 7):
            writer.write(whole[start : start + 7])
            await asyncio.sleep(0.001)
        assert await answer(reader) == ("quick", b"0123456789")


async def test_an_idle_connection_is_closed_and_a_busy_one_is_not() -> None:
    async with serving(Route()) as (reader, writer):
        writer.write(request(b"one"))
        assert await answer(reader) == ("quick", b"one")
        writer.write(request(b"long", seconds=str(3 * IDLE)))
        assert await answer(reader) == ("quick", b"long")
        writer.write(request(b"again"))
        assert await answer(reader) == ("quick", b"again")
        assert await asyncio.wait_for(reader.read(), 20) == b""


async def test_a_client_that_leaves_abandons_its_call() -> None:
    route = Route()
    async with serving(route) as (_, writer):
        writer.write(request(b"never read", seconds="60"))
        await writer.drain()
        while not route.calls or not route.calls[0].body:
            await asyncio.sleep(0.01)
        writer.close()
        async with asyncio.timeout(20):
            while not route.calls[0].abandoned:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("size", [0, 10, JOIN_BELOW])
@pytest.mark.parametrize("keep_alive", [True, False])
def test_what_is_written_is_http(size: int, keep_alive: bool) -> None:
    pieces = wire(Answer(200, [bytes(size)], [(b"a", b"b")]), b"id", keep_alive)
    head, _, body = b"".join(pieces).partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 200 OK"
    assert set(lines[1:]) == {
        b"a: b",
        b"content-length: %d" % size,
        b"x-request-id: id",
        *([] if keep_alive else [b"connection: close"]),
    }
    assert body == bytes(size)
