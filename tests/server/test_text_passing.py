"""How the gateway passes a text worker's answers on, above all those that break off."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from collecting import Collector, attributes

from ds_engines.spec import ModelSpec
from ds_serve.gateway.budget import Budget
from ds_serve.gateway.config import Limits
from ds_serve.gateway.gateway import Gateway
from ds_serve.gateway.http.app import Application
from ds_serve.tracing import TIMESTAMPS, TraceSettings
from ds_serve.transport.messages import ModelState, Registry

EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"


class Upstream:
    """A text worker that writes these parts and closes the connection."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.asked = b""
        self.ended = asyncio.Event()
        self.ended.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.ended.clear()
        try:
            asked = await reader.readuntil(b"\r\n\r\n")
            if asked.startswith(b"GET /metrics"):  # it has none
                return
            self.asked = asked
            for part in self.parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.02)  # a part should arrive by itself
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            self.ended.set()


@pytest.fixture
async def upstream(tmp_path: Path) -> AsyncIterator[Upstream]:
    made = Upstream()
    async with await asyncio.start_unix_server(made.serve, tmp_path / "sock"):
        yield made
        await made.ended.wait()


@pytest.fixture
async def gateway(upstream: Upstream, tmp_path: Path) -> AsyncIterator[Gateway]:
    gateway = Gateway(Limits())
    spec = ModelSpec(name="m", engine="openvino-genai", artifact=tmp_path, task="text")
    state = ModelState("m", "ready", "", str(tmp_path / "sock"), 1, spec)
    await gateway.update(Registry([state]))
    yield gateway
    gateway.close()


@pytest.fixture
def application(gateway: Gateway) -> Application:
    return Application(gateway, Budget(1 << 20, 1 << 20))


async def ask(
    application: Application, leaves_after: bytes = b"", **headers: str
) -> list[dict[str, Any]]:
    """What the application sends for a completion. The client leaves where a part ends so."""
    said = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": said}
    arrived = asyncio.Queue[dict[str, Any]]()
    arrived.put_nowait({"type": "http.request", "body": b'{"model": "m"}', "more_body": False})
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(dict(message))
        if leaves_after and sent[-1].get("body", b"").endswith(leaves_after):
            arrived.put_nowait({"type": "http.disconnect"})

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


PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNTRACED = PARENT[:-1] + "0"
WHOLE = b"HTTP/1.1 %s\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}"


def told(upstream: Upstream) -> str:
    """The span that the worker was told to be below."""
    head = [line.partition(": ") for line in upstream.asked.decode().splitlines()]
    return next((value for name, _, value in head if name.lower() == "traceparent"), "")


async def test_the_callers_span_is_passed_on(upstream: Upstream, application: Application) -> None:
    upstream.parts = [WHOLE % b"200 OK"]
    await ask(application, traceparent=PARENT, tracestate="a=b")
    assert told(upstream) == PARENT
    assert b"tracestate: a=b" in upstream.asked
    await ask(application)
    assert told(upstream) == ""


@pytest.fixture
def collector(gateway: Gateway) -> Iterator[Collector]:
    made = Collector()
    gateway.tracer.update(TraceSettings("", TIMESTAMPS, 1, otlp_endpoint=made.address))
    yield made
    made.close()


async def sent_by(gateway: Gateway, collector: Collector) -> list[Any]:
    """The spans of requests, once all are sent."""
    await asyncio.to_thread(gateway.tracer.close)
    return collector.roots()


@pytest.mark.parametrize("parent", [PARENT, "", "nonsense"])
async def test_a_worker_is_told_of_the_span_that_is_sent(
    upstream: Upstream,
    application: Application,
    gateway: Gateway,
    collector: Collector,
    parent: str,
) -> None:
    upstream.parts = [EVENTS + CHUNKED, chunk(b"data: 1\n\n"), chunk(b"data: 2\n\n"), chunk(b"")]
    await ask(application, **{"traceparent": parent, "x-request-id": "a1"})
    (root,) = await sent_by(gateway, collector)
    assert told(upstream) == f"00-{root.trace_id.hex()}-{root.span_id.hex()}-01"
    assert root.parent_span_id.hex() == (PARENT.split("-")[2] if parent == PARENT else "")
    if parent == PARENT:
        assert root.trace_id.hex() == PARENT.split("-")[1]
    assert attributes(root) == {"model_name": "m", "model_version": "1", "id": "a1"}
    below = sorted(collector.below(root), key=lambda span: span.start_time_unix_nano)
    assert [span.name for span in below] == ["first_answer", "more_answers"]
    assert below[1].end_time_unix_nano - below[1].start_time_unix_nano > 0


async def test_a_caller_that_does_not_trace(
    upstream: Upstream, application: Application, gateway: Gateway, collector: Collector
) -> None:
    upstream.parts = [WHOLE % b"200 OK"]
    await ask(application, traceparent=UNTRACED)
    assert told(upstream) == UNTRACED
    assert await sent_by(gateway, collector) == []


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([WHOLE % b"400 Bad Request"], "the model's worker answered 400"),
        ([], "model 'm' lost this request: its worker went away"),
    ],
)
async def test_a_text_that_fails_is_a_span_with_its_error(
    upstream: Upstream,
    application: Application,
    gateway: Gateway,
    collector: Collector,
    parts: list[bytes],
    said: str,
) -> None:
    upstream.parts = parts
    await ask(application)
    (root,) = await sent_by(gateway, collector)
    assert (root.status.code, root.status.message) == (2, said)


@pytest.mark.parametrize(("last", "kept"), [(b"data: [DONE]", True), (b"data: 1", False)])
async def test_a_client_that_leaves_with_its_whole_answer_has_not_cancelled(
    upstream: Upstream, application: Application, gateway: Gateway, collector: Collector,
    last: bytes, kept: bool,
) -> None:  # fmt: skip
    """The stream's end comes after the event that says so."""
    waits = [b"" for _ in range(50)]
    upstream.parts = [EVENTS + CHUNKED, chunk(b"data: 0\n\n"), chunk(last + b"\n\n"), *waits]
    sent = await ask(application, leaves_after=last + b"\n\n")
    assert bodies(sent) == [b"data: 0\n\n", last + b"\n\n"]
    roots = await sent_by(gateway, collector)
    assert [attributes(root)["model_name"] for root in roots] == ["m"] * kept
    assert all(root.status.code != 2 for root in roots)


async def test_times_of_a_text(
    upstream: Upstream, application: Application, gateway: Gateway, tmp_path: Path
) -> None:
    gateway.tracer.update(TraceSettings(str(tmp_path / "trace.json"), TIMESTAMPS, 1))
    for status in (b"400 Bad Request", b"200 OK"):
        upstream.parts = [WHOLE % status]
        await ask(application, **{"x-request-id": status.decode()[:3]})
    gateway.tracer.flush()
    about, times = json.loads((tmp_path / "trace.json").read_text())
    assert (about["model_name"], about["request_id"]) == ("m", "200")
    assert [mark["name"] for mark in times["timestamps"]] == [
        "HTTP_RECV_START", "HTTP_RECV_END", "REQUEST_START", "INFER_RESPONSE_COMPLETE",
        "HTTP_SEND_START", "REQUEST_END", "HTTP_SEND_END",
    ]  # fmt: skip
    values = [mark["ns"] for mark in times["timestamps"]]
    assert values == sorted(values)
