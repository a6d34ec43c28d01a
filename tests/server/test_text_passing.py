"""How the gateway passes a text worker's answers on, above all those that break off."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ds_engines.spec import ModelSpec
from ds_serve.gateway.budget import Budget
from ds_serve.gateway.config import Limits
from ds_serve.gateway.gateway import Gateway
from ds_serve.gateway.http.app import Application
from ds_serve.transport.messages import ModelState, Registry

EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"


class Upstream:
    """A text worker that writes these parts and closes the connection."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in self.parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.02)  # a part should arrive by itself
        writer.close()
        await writer.wait_closed()
        self.ended.set()


@pytest.fixture
async def upstream(tmp_path: Path) -> AsyncIterator[Upstream]:
    made = Upstream()
    async with await asyncio.start_unix_server(made.serve, tmp_path / "sock"):
        yield made
        await made.ended.wait()


@pytest.fixture
async def application(upstream: Upstream, tmp_path: Path) -> AsyncIterator[Application]:
    gateway = Gateway(Limits())
    spec = ModelSpec(name="m", engine="openvino-genai", artifact=tmp_path, task="text")
    state = ModelState("m", "ready", "", str(tmp_path / "sock"), 1, spec)
    await gateway.update(Registry([state]))
    yield Application(gateway, Budget(1 << 20, 1 << 20))
    gateway.close()


async def ask(application: Application) -> list[dict[str, Any]]:
    """What the application sends for a completion."""
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    arrived = asyncio.Queue[dict[str, Any]]()
    arrived.put_nowait({"type": "http.request", "body": b'{"model": "m"}', "more_body": False})
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(dict(message))

    await application(scope, arrived.get, send)
    return sent


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def bodies(sent: list[dict[str, Any]]) -> list[bytes]:
    return [message["body"] for message in sent[1:]]


async def test_a_stream_is_passed_on_as_it_comes(
    upstream: Upstream, application: Application
) -> None:
    upstream.parts = [EVENTS + CHUNKED, chunk(b"data: 1\n\n"), chunk(b"data: 2\n\n"), chunk(b"")]
    sent = await ask(application)
    assert sent[0]["status"] == 200
    assert bodies(sent) == [b"data: 1\n\n", b"data: 2\n\n", b""]
    assert sent[-1]["more_body"] is False


async def test_an_event_in_two_parts_leaves_whole(
    upstream: Upstream, application: Application
) -> None:
    upstream.parts = [EVENTS + CHUNKED, chunk(b"data: 1\n\nda"), chunk(b"ta: 2\n\n"), chunk(b"")]
    assert bodies(await ask(application)) == [b"data: 1\n\n", b"data: 2\n\n", b""]


async def test_an_end_without_an_empty_line_is_passed_on(
    upstream: Upstream, application: Application
) -> None:
    upstream.parts = [EVENTS + CHUNKED, chunk(b"data: 1\n"), chunk(b"")]
    assert bodies(await ask(application)) == [b"data: 1\n", b""]


async def test_a_stream_that_breaks_off_within_an_event(
    upstream: Upstream, application: Application
) -> None:
    """The error follows the last whole event: half an event would swallow it."""
    upstream.parts = [EVENTS + CHUNKED, chunk(b"data: 1\n\n"), chunk(b'data: {"te')]
    sent = await ask(application)
    assert sent[0]["status"] == 200
    first, last = bodies(sent)
    assert first == b"data: 1\n\n"
    assert last.startswith(b"data: ")
    assert last.endswith(b"\n\n")
    error = json.loads(last.removeprefix(b"data: "))["error"]
    assert "'m' lost this request" in error["message"]
    assert (error["type"], error["code"]) == ("service_unavailable_error", "unavailable")
    assert sent[-1]["more_body"] is False


async def test_a_worker_that_says_nothing(upstream: Upstream, application: Application) -> None:
    upstream.parts = []
    sent = await ask(application)
    assert sent[0]["status"] == 503
    assert "'m' lost this request" in json.loads(b"".join(bodies(sent)))["error"]["message"]


async def test_a_stream_that_breaks_off_before_its_first_event(
    upstream: Upstream, application: Application
) -> None:
    upstream.parts = [EVENTS + CHUNKED, chunk(b"data: {")]
    sent = await ask(application)
    assert sent[0]["status"] == 503


async def test_a_whole_answer_that_breaks_off_is_not_completed(
    upstream: Upstream, application: Application
) -> None:
    """Its length was announced: nothing can follow, so the connection has to break too."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 90\r\n\r\n"
    upstream.parts = [head, b'{"id": 1, ']
    sent = await ask(application)
    assert sent[0]["status"] == 200
    assert (b"content-length", b"90") in sent[0]["headers"]
    assert bodies(sent) == [b'{"id": 1, ']
    assert sent[-1]["more_body"] is True
