"""Streams of requests as an ASGI application, for a server with HTTP/2 and trailers: inference, and
server reflection.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from google.protobuf.message import DecodeError, Message
from grpc import StatusCode
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

from ds_engines.errors import (
    DeadlineExceeded,
    EngineFailure,
    InvalidRequest,
    ServeError,
    Unavailable,
    Unsupported,
)
from ds_proto import grpc_service_pb2 as pb
from ds_proto.service import METHODS
from ds_serve.gateway.grpc import framing, reflection
from ds_serve.gateway.grpc.errors import refusal
from ds_serve.gateway.grpc.stream import Service, Stream
from ds_serve.gateway.http.request_ids import HEADER, RequestIds
from ds_serve.security.guard import Guard
from ds_serve.spans import PARENT

log = logging.getLogger(__name__)

METHOD = METHODS["ModelStreamInfer"]
LAST_WRITES = 1.0
"""Seconds that a stream which fails gets to say why."""

UNSEEN_WRITES = 0.2
"""Seconds for what other threads of this process still have to write: the last answers, of unary
calls too. They do not tell when they have."""

PROBE = 0.5
"""Seconds between two looks whether the client is still there, once it has sent everything."""

START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/grpc"), (b"grpc-accept-encoding", b"gzip")],
    "trailers": True,
}

AnyStream = Stream | reflection.Stream
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], "asyncio.Future[None]"]


class Streams:
    """The application. `send` must begin to write when it is called, awaited or not."""

    def __init__(self, service: Service, ids: RequestIds, largest: int, guard: Guard) -> None:
        self._service = service
        self._guard = guard
        self._ids = ids
        self._largest = largest
        self._tasks: dict[asyncio.Task[Any], Stream | None] = {}  # of requests for inference
        self._stopping = False

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks[task] = None
        call = _Call(receive, send)
        try:
            await self._run(scope, call, task)
            await call.end(framing.trailers(StatusCode.OK))
        except ServeError as error:
            await self._refuse(scope, call, error)
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            await self._refuse(scope, call, Unavailable("the server is shutting down"))
        except _Gone:
            pass
        except Exception:
            log.exception("the gateway failed on a stream")
            failure = EngineFailure("the server failed; its log says why")
            await self._refuse(scope, call, failure)
        finally:
            call.close()
            del self._tasks[task]

    async def stop(self, grace: float | None) -> None:
        """No new streams, and `grace` seconds for those that run."""
        self._stopping = True
        for task, stream in self._tasks.items():
            if stream is not None and not stream.busy:
                task.cancel()
        if self._tasks and grace:
            await asyncio.wait(self._tasks, timeout=grace)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=LAST_WRITES)
        await asyncio.sleep(UNSEEN_WRITES)

    async def _run(self, scope: dict[str, Any], call: _Call, task: asyncio.Task[Any]) -> None:
        path = scope["path"]
        if path != METHOD.path and path not in reflection.PATHS:
            raise Unsupported(f"{path} is not offered by this server")
        if self._stopping:
            raise Unavailable("the server is shutting down")
        headers = scope["headers"]
        reader = framing.Reader(self._largest, framing.find(headers, b"grpc-encoding"))
        seconds = framing.seconds(headers)
        parent = framing.find(headers, PARENT.encode()) or b""
        identity = self._guard.identify(framing.find(headers, b"authorization"))
        if path == METHOD.path:
            kind, named = pb.ModelInferRequest, parent.decode("latin-1")
            inference = Stream(self._service, seconds, call.emit, named, identity)
            self._tasks[task] = inference
            stream: AnyStream = inference
        else:
            kind, stream = ServerReflectionRequest, reflection.Stream(call.emit)
        try:
            async with asyncio.timeout(seconds):
                await call.run(reader, kind, stream)
        except TimeoutError:
            raise DeadlineExceeded(f"the stream was not done within {seconds:g} s") from None

    async def _refuse(self, scope: dict[str, Any], call: _Call, error: ServeError) -> None:
        given = framing.find(scope["headers"], HEADER)
        name = scope["path"].rpartition("/")[2]
        code, message, trailers = refusal(name, self._ids.of(given), error)
        try:
            async with asyncio.timeout(LAST_WRITES):
                await call.end(framing.trailers(code, message, trailers))
        except (TimeoutError, _Gone):
            return


class _Gone(Exception):
    """The client is."""


class _Call:
    """One stream of requests, by callbacks. Answers of one turn of the loop are written together.

    What `receive` returns is never cancelled: the server would trip over it.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._all_read: asyncio.Future[ServeError | None] = self._loop.create_future()
        self._kind: Any = None
        self._stream: AnyStream | None = None
        self._started = False
        self._gone = False
        self._frames: list[bytes] = []
        self._writing: asyncio.Future[None] | None = None
        self._flushing: asyncio.Handle | None = None
        self._written = asyncio.Event()

    async def run(self, reader: framing.Reader, kind: Any, stream: AnyStream) -> None:
        """Until all requests, which are messages of that kind, are answered. Raises what ends the
        stream.
        """
        self._kind, self._stream = kind, stream
        self._read(reader, stream)
        wrong = await self._all_read
        while stream.busy:
            try:
                await asyncio.wait_for(stream.finished(), PROBE)
            except TimeoutError:
                self._probe()
        self._check()
        if wrong is not None:
            raise wrong

    def emit(self, answer: Message) -> None:
        """An answer, which leaves with all others of this turn of the loop."""
        self._frames.append(framing.frame(answer.SerializeToString()))
        if self._writing is None and self._flushing is None:
            self._flushing = self._loop.call_soon(self._flush)

    async def end(self, trailers: list[tuple[bytes, bytes]]) -> None:
        """Write what is left, and the trailers. Raises _Gone."""
        self.close()
        while self._frames or self._writing:
            self._flush()
            self._written.clear()
            await self._written.wait()
            self._check()
        self._start()
        self._send({"type": "http.response.body", "body": b""})
        self._send({"type": "http.response.trailers", "headers": trailers})

    def close(self) -> None:
        """Take nothing more, and abandon what is not answered."""
        self._all_read.cancel()
        if self._stream is not None:
            self._stream.close()

    def _read(self, reader: framing.Reader, stream: AnyStream) -> None:
        event = asyncio.ensure_future(self._receive())
        event.add_done_callback(partial(self._arrived, reader, stream))

    def _arrived(
        self, reader: framing.Reader, stream: AnyStream, event: asyncio.Future[dict[str, Any]]
    ) -> None:
        if self._all_read.done():
            return
        given = event.result()
        if given["type"] == "http.disconnect":
            self._all_read.set_exception(_Gone())
            return
        try:
            messages = deque(reader.feed(given["body"]))
            self._take(messages, stream)
            if messages:
                waiting = asyncio.ensure_future(self._take_slowly(messages, stream))
                waiting.add_done_callback(lambda _: self._go_on(reader, stream, given["more_body"]))
                self._all_read.add_done_callback(lambda _: waiting.cancel())
            else:
                self._go_on(reader, stream, given["more_body"])
        except ServeError as error:
            self._all_read.set_result(error)

    def _go_on(self, reader: framing.Reader, stream: AnyStream, more: bool) -> None:
        if self._all_read.done():
            return
        if more:
            self._read(reader, stream)
        else:
            self._all_read.set_result(reader.end())

    async def _take_slowly(self, messages: deque[bytes], stream: AnyStream) -> None:
        """As answers make room; only then is the stream read further."""
        try:
            while messages:
                await stream.room()
                self._take(messages, stream)
        except ServeError as error:
            self._all_read.set_result(error)

    def _take(self, messages: deque[bytes], stream: AnyStream) -> None:
        """Begin as many as there is room for. Raises InvalidRequest for bytes that are none."""
        while messages and not stream.full:
            try:
                request = self._kind.FromString(messages.popleft())
            except DecodeError:
                name = self._kind.DESCRIPTOR.full_name
                raise InvalidRequest(f"the request's bytes are no {name}") from None
            stream.take(request)

    def _flush(self) -> None:
        """Write what is there, unless a write is under way; its end writes the rest."""
        self._flushing = None
        if self._writing is None and self._frames:
            body, count = b"".join(self._frames), len(self._frames)
            self._frames.clear()
            self._write(body, count)

    def _probe(self) -> None:
        """An empty write: it fails where the client is gone, which nothing else tells."""
        if self._writing is None and not self._frames:
            self._write(b"", 0)

    def _write(self, body: bytes, count: int) -> None:
        self._start()
        event = {"type": "http.response.body", "body": body, "more_body": True}
        self._writing = writing = asyncio.ensure_future(self._send(event))
        writing.add_done_callback(lambda done: self._wrote(done, count))

    def _wrote(self, done: asyncio.Future[None], count: int) -> None:
        self._writing = None
        if done.cancelled() or done.exception() is not None:
            self._gone = True
            self._frames.clear()
            if not self._all_read.done():
                self._all_read.set_exception(_Gone())
            self.close()
        assert self._stream is not None
        self._stream.sent(count)
        self._flush()
        self._written.set()

    def _start(self) -> None:
        if not self._started:
            self._started = True
            self._send(START)

    def _check(self) -> None:
        if self._gone:
            raise _Gone
