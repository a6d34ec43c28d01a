"""What one hop between a gateway and a worker costs: ZeroMQ against a Unix stream socket.

`python -m loadtests.hop` sends messages of 300 bytes to a process that sends them back, with 1,
16 and 64 in flight, over both, in turns, and prints the medians and their ratio. Both ends run
on uvloop, and both ways are used as a server would: no future or task per message on the wire.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import struct
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import uvloop
import zmq
from rich.console import Console
from rich.table import Table

PAYLOAD = bytes(300)
IN_FLIGHT = (1, 16, 64)
LENGTH = struct.Struct("<I")

Send = Callable[[bytes], None]


class ZeroMQ:
    """A DEALER or ROUTER socket read from the loop, without zmq.asyncio's future per message."""

    def __init__(self, socket: zmq.Socket[bytes], on_message: Callable[[list[bytes]], None]):
        self._socket = socket
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(int(socket.get(zmq.FD)), self._read)

    def send(self, *frames: bytes) -> None:
        self._socket.send_multipart(frames, zmq.NOBLOCK)
        if int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
            self._loop.call_soon(self._read)

    def _read(self) -> None:
        while True:
            try:
                self._on_message(self._socket.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return


class Stream(asyncio.Protocol):
    """Messages with a length before each, over a Unix stream socket."""

    def __init__(self, on_message: Callable[[Stream, bytes], None]) -> None:
        self._on_message = on_message
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def send(self, payload: bytes) -> None:
        self._transport.write(LENGTH.pack(len(payload)) + payload)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        data, start = self._rest + data, 0
        while len(data) - start >= LENGTH.size:
            stop = start + LENGTH.size + LENGTH.unpack_from(data, start)[0]
            if stop > len(data):
                break
            self._on_message(self, data[start + LENGTH.size : stop])
            start = stop
        self._rest = data[start:]


def echo_zeromq(path: str) -> None:
    async def serve() -> None:
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        socket.bind(f"ipc://{path}")
        link = ZeroMQ(socket, lambda frames: link.send(*frames))
        await asyncio.Event().wait()

    uvloop.run(serve())


def echo_stream(path: str) -> None:
    async def serve() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(lambda: Stream(Stream.send), path)
        await server.serve_forever()

    uvloop.run(serve())


async def open_zeromq(path: str, on_message: Callable[[], None]) -> Send:
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    socket.connect(f"ipc://{path}")
    return ZeroMQ(socket, lambda _: on_message()).send


async def open_stream(path: str, on_message: Callable[[], None]) -> Send:
    loop = asyncio.get_running_loop()
    _, stream = await loop.create_unix_connection(lambda: Stream(lambda *_: on_message()), path)
    return stream.send


async def rate(
    path: str,
    connect: Callable[[str, Callable[[], None]], Awaitable[Send]],
    in_flight: int,
    messages: int,
) -> float:
    """Messages per second there and back; the first fifth warms up and does not count."""
    waiting: deque[asyncio.Future[None]] = deque()
    send = await connect(path, lambda: waiting.popleft().set_result(None))
    loop = asyncio.get_running_loop()

    async def caller(count: int) -> None:
        for _ in range(count):
            future = loop.create_future()
            waiting.append(future)
            send(PAYLOAD)
            await future

    async def all_callers(count: int) -> float:
        begun = time.perf_counter()
        await asyncio.gather(*(caller(count // in_flight) for _ in range(in_flight)))
        return time.perf_counter() - begun

    await all_callers(messages // 5)
    return messages / await all_callers(messages)


WAYS = {"ZeroMQ": (echo_zeromq, open_zeromq), "Unix stream": (echo_stream, open_stream)}


def measure(way: str, folder: Path, in_flight: int, messages: int) -> float:
    echo, connect = WAYS[way]
    path = str(folder / f"{way.replace(' ', '')}-{time.monotonic_ns()}")
    server = multiprocessing.get_context("spawn").Process(target=echo, args=(path,), daemon=True)
    server.start()
    try:
        while not Path(path).exists():
            time.sleep(0.05)
        return uvloop.run(rate(path, connect, in_flight, messages))
    finally:
        server.kill()
        server.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--messages", type=int, default=12_800)
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    arguments = parser.parse_args()
    columns = ("in flight", *(f"{way}, messages/s" for way in WAYS), "ratio")
    rows = list(measured(arguments.repeats, arguments.messages))
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    if arguments.markdown:
        ruler = ("---:",) * len(columns)
        lines = [f"| {' | '.join(line)} |" for line in (columns, ruler, *rows)]
        note = f"Medians of {arguments.repeats} interleaved repeats."
        arguments.markdown.write_text("\n".join([note, "", *lines]) + "\n")


def measured(repeats: int, messages: int) -> Iterator[tuple[str, ...]]:
    """A row for each number in flight: the median of each way, and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        for in_flight in IN_FLIGHT:
            runs: dict[str, list[float]] = {way: [] for way in WAYS}
            for _ in range(repeats):
                for way in WAYS:
                    runs[way].append(measure(way, Path(folder), in_flight, messages))
            medians = [statistics.median(runs[way]) for way in WAYS]
            ratio = f"{medians[1] / medians[0]:.2f}"
            yield str(in_flight), *(f"{median:,.0f}" for median in medians), ratio


if __name__ == "__main__":
    main()
