"""An open-loop client: requests leave when they are due, however late earlier answers are.

KServe v2 over HTTP with binary tensors, each connection one request at a time, as many connections
as it takes up to MOST. Latency counts from the moment that a request was due.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from loadtests.binary import HEADER_LENGTH, body_of
from loadtests.perf_analyzer import BenchmarkError
from loadtests.scenarios import Arrays

MOST = 256
DRAIN_SECONDS = 30.0
LATE = 0.002
"""Seconds. A request that leaves later than this was kept by the client, not by the server."""


class Open:
    """Sends `bodies` in turn at the times `due`, seconds from the start, and keeps the answers."""

    def __init__(self, address: str, model: str, requests: Sequence[Arrays]) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host, int(port)
        self._wires = [_wire(model, host, each) for each in requests]
        self._free: list[_Connection] = []
        self._backlog: deque[int] = deque()
        self._connections = 0
        self._due: Sequence[float] = ()
        self._begun = 0.0
        self._left = 0
        self._done = asyncio.Event()
        self.latency: list[float] = []
        self.answers: list[bytes | None] = []
        self.late = 0

    async def send(self, due: Sequence[float]) -> None:
        """All of them, and wait for the answers. Raises BenchmarkError where some do not come."""
        self._due, self._left = due, len(due)
        self.latency, self.answers, self.late = [0.0] * len(due), [None] * len(due), 0
        self._done.clear()
        loop = asyncio.get_running_loop()
        self._begun = loop.time()
        index = 0
        while index < len(due):
            now = loop.time() - self._begun
            while index < len(due) and due[index] <= now:
                self.late += now - due[index] > LATE
                self._start(index)
                index += 1
            if index < len(due):
                await asyncio.sleep(max(0.0, due[index] - (loop.time() - self._begun)))
        try:
            await asyncio.wait_for(self._done.wait(), DRAIN_SECONDS)
        except TimeoutError:
            raise BenchmarkError(f"{self._left} requests were not answered") from None

    def close(self) -> None:
        for connection in list(self._free):
            connection.close()

    def finished(self, connection: _Connection, index: int, answer: bytes | None) -> None:
        """None: the connection broke or the answer was no 200."""
        self._count(index, answer)
        if self._backlog:
            connection.send(self._backlog.popleft())
        else:
            self._free.append(connection)

    def lost(self, connection: _Connection, index: int | None) -> None:
        """A server may close a connection just as it is used again: another one then."""
        self._connections -= 1
        if connection in self._free:
            self._free.remove(connection)
        if index is not None:
            self._start(index)

    def wire(self, index: int) -> bytes:
        return self._wires[index % len(self._wires)]

    def _count(self, index: int, answer: bytes | None) -> None:
        self.latency[index] = time.monotonic() - self._begun - self._due[index]
        self.answers[index] = answer
        self._left -= 1
        if not self._left:
            self._done.set()

    def _start(self, index: int) -> None:
        if self._free:
            self._free.pop().send(index)
        elif self._connections < MOST:
            self._connections += 1
            asyncio.get_running_loop().create_task(self._connect(index))
        else:
            self._backlog.append(index)

    async def _connect(self, index: int) -> None:
        loop = asyncio.get_running_loop()
        made = _Connection(self)
        try:
            await loop.create_connection(lambda: made, self._host, self._port)
            made.send(index)
        except OSError:
            self._connections -= 1
            self._count(index, None)


class _Connection(asyncio.Protocol):
    def __init__(self, client: Open) -> None:
        self._client = client
        self._transport: Any = None  # uvloop's is no asyncio.Transport
        self._index: int | None = None
        self._read = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def send(self, index: int) -> None:
        self._index = index
        self._transport.write(self._client.wire(index))

    def close(self) -> None:
        self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._client.lost(self, self._index)

    def data_received(self, data: bytes) -> None:
        self._read += data
        head = self._read.find(b"\r\n\r\n")
        if head < 0:
            return
        fields = _fields(bytes(self._read[:head]))
        size = int(fields[b"content-length"])
        if len(self._read) < head + 4 + size:
            return
        body = bytes(self._read[head + 4 : head + 4 + size])
        del self._read[: head + 4 + size]
        right = fields[b""].startswith(b"HTTP/1.1 200")
        skip = int(fields.get(b"inference-header-content-length", size))
        index, self._index = self._index, None
        if index is not None:
            self._client.finished(self, index, body[skip:] if right else None)


def _fields(head: bytes) -> dict[bytes, bytes]:
    first, *lines = head.split(b"\r\n")
    pairs = (line.partition(b":") for line in lines)
    return {b"": first, **{name.strip().lower(): value.strip() for name, _, value in pairs}}


def _wire(model: str, host: str, inputs: Arrays) -> bytes:
    body, head = body_of(inputs)
    lines = (
        f"POST /v2/models/{model}/infer HTTP/1.1",
        f"Host: {host}",
        "Content-Type: application/octet-stream",
        f"Content-Length: {len(body)}",
        f"{HEADER_LENGTH}: {head}",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
