"""What the gateway adds to a text worker: per request, per streamed chunk, to the first token.

`python -m loadtests.text_hop` starts a tiny OpenAI server on a Unix socket, which streams fixed
chunks at a fixed pace, and ds-serve before it, and asks both the same, in turns: one request after
the other for latencies, many at once for what the gateways' processors do for each chunk. It prints
a table; `--markdown FILE` puts it between marks in a page.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from loadtests.perf_analyzer import BenchmarkError
from loadtests.report import machine, write
from loadtests.server import running

CHUNK = json.dumps(
    {
        "id": "chatcmpl-0123456789abcdef",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "bench",
        "choices": [{"index": 0, "delta": {"content": " token"}, "finish_reason": None}],
    }
).encode()
EVENT = b"data: " + CHUNK + b"\n\n"
PIECE = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
LAST = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
WHOLE = json.dumps({"id": "1", "object": "chat.completion", "choices": [], "x": "y" * 400}).encode()
PROMPT = "word " * 400


class Worker(asyncio.Protocol):
    """Answers every request whose body is JSON: `stream` decides how, `max_tokens` how long, and
    `pace` how many seconds lie between two chunks.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._held = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._held += data
        head, end, body = self._held.partition(b"\r\n\r\n")
        if not end:
            return
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        size = int(length or 0)
        if len(body) >= size:
            self._held = body[size:]
            self._answer(json.loads(body[:size] or b"{}"))

    def _answer(self, asked: dict[str, object]) -> None:
        write = self._transport.write  # type: ignore[attr-defined]
        if not asked.get("stream"):
            write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: ")
            write(b"%d\r\n\r\n%b" % (len(WHOLE), WHOLE))
            return
        write(HEAD + PIECE)
        self._go_on(int(str(asked["max_tokens"])) - 1, float(str(asked.get("pace", 0))))

    def _go_on(self, left: int, pace: float) -> None:
        write = self._transport.write  # type: ignore[attr-defined]
        if left <= 0:
            write(LAST)
            return
        write(PIECE)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(pace, self._go_on, left - 1, pace)


async def serve(path: str) -> None:
    server = await asyncio.get_running_loop().create_unix_server(Worker, path)
    await server.serve_forever()


@dataclass
class Seen:
    """Of one run: times in seconds, and what the server's processors did."""

    whole: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    chunks: int = 0
    seconds: float = 0.0
    cpu: float = 0.0


class Client(asyncio.Protocol):
    """One connection that asks one thing after the other."""

    def __init__(self, request: bytes, seen: Seen) -> None:
        self._request = request
        self._seen = seen
        self._done: asyncio.Future[None] | None = None
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    async def ask(self) -> None:
        self._done = asyncio.get_running_loop().create_future()
        self._first = 0.0
        self._begun = time.perf_counter()
        self._transport.write(self._request)  # type: ignore[attr-defined]
        await self._done
        self._seen.whole.append(time.perf_counter() - self._begun)

    def data_received(self, data: bytes) -> None:
        if not self._first and b"data: {" in data:
            self._first = time.perf_counter() - self._begun
            self._seen.first.append(self._first)
        self._seen.chunks += data.count(b"data: {")
        tail = (self._tail + data)[-16:]
        self._tail = tail
        ends = tail.endswith((b"0\r\n\r\n", b'y"}'))
        if ends and self._done is not None and not self._done.done():
            self._tail = b""
            self._done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(BenchmarkError("the server closed the connection"))


def request_of(body: dict[str, object]) -> bytes:
    data = json.dumps({"model": "bench", "messages": [{"role": "user", "content": PROMPT}]} | body)
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(data)}\r\n\r\n{data}".encode()


async def load(where: str, clients: int, each: int, body: dict[str, object]) -> Seen:
    """`each` requests on each of so many connections to a socket's path or host:port."""
    seen = Seen()
    loop = asyncio.get_running_loop()
    request = request_of(body)
    made = []
    for _ in range(clients):
        if "/" in where:
            _, one = await loop.create_unix_connection(lambda: Client(request, seen), where)
        else:
            host, _, port = where.rpartition(":")
            _, one = await loop.create_connection(lambda: Client(request, seen), host, int(port))
        made.append(one)
    await asyncio.gather(*(one.ask() for one in made))  # warms up
    seen.whole, seen.first, seen.chunks = [], [], 0

    async def run(one: Client) -> None:
        for _ in range(each):
            await one.ask()

    begun = time.perf_counter()
    await asyncio.gather(*map(run, made))
    seen.seconds = time.perf_counter() - begun
    for one in made:
        one._transport.close()
    return seen


def gateways(port: int) -> list[int]:
    """Process ids of the gateways below the server that this process has started."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes()
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            above = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if b"ds_serve.gateway" in line and above == os.getpid():
            found.append(int(entry.name))
    return found


def cpu_seconds(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


@contextmanager
def worker(folder: Path) -> Iterator[str]:
    path = str(folder / "worker.sock")
    command = [sys.executable, "-m", "loadtests.text_hop", "--serve", path]
    process = subprocess.Popen(command)
    try:
        while not Path(path).exists():
            if process.poll() is not None:
                raise BenchmarkError("the tiny worker ended")
            time.sleep(0.02)
        yield path
    finally:
        process.kill()
        process.wait()


LATENCY = {"whole answer": {}, "stream of 32": {"stream": True, "max_tokens": 32, "pace": 0.001}}


def measured(given: argparse.Namespace) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory() as name, worker(Path(name)) as path:
        flags = ["--gateways", str(given.gateways)]
        with running(f"bench=unix:{path}#bench", flags) as server:
            pids = gateways(int(server.http.rpartition(":")[2]))
            for what, body in LATENCY.items():
                rows += latencies(what, body, path, server.http, given)
            rows += streams(path, server.http, pids, given)
    return rows


def latencies(
    what: str, body: dict[str, object], path: str, http: str, given: argparse.Namespace
) -> Iterator[tuple[str, ...]]:
    """Medians one at a time, directly and through the gateway, in turns."""
    seen: dict[str, list[Seen]] = {path: [], http: []}
    for _ in range(given.repeats):
        for where, runs in seen.items():
            runs.append(uvloop.run(load(where, 1, given.requests, body)))
    direct, through = ([t for run in runs for t in run.whole] for runs in seen.values())
    yield row(f"{what}: all of it, ms", direct, through)
    if body:
        direct, through = ([t for run in runs for t in run.first] for runs in seen.values())
        yield row(f"{what}: first chunk, ms", direct, through)


def row(what: str, direct: list[float], through: list[float]) -> tuple[str, ...]:
    one, other = statistics.median(direct) * 1000, statistics.median(through) * 1000
    return what, f"{one:.3f}", f"{other:.3f}", f"{other - one:+.3f}"


def streams(
    path: str, http: str, pids: list[int], given: argparse.Namespace
) -> Iterator[tuple[str, ...]]:
    """Many streams at once, with the pace of a real engine."""
    body: dict[str, object] = {"stream": True, "max_tokens": 128, "pace": given.pace}
    seen: dict[str, list[Seen]] = {path: [], http: []}
    for _ in range(given.repeats):
        for where, runs in seen.items():
            before = cpu_seconds(pids)
            run = uvloop.run(load(where, given.streams, given.rounds, body))
            run.cpu = cpu_seconds(pids) - before
            runs.append(run)
    direct, through = (
        [statistics.median(each) for each in zip(*map(figures, runs), strict=True)]
        for runs in seen.values()
    )
    at_once = f"{given.streams} streams at once"
    yield (
        f"{at_once}: chunks/s",
        f"{direct[0]:,.0f}",
        f"{through[0]:,.0f}",
        (f"{through[0] / direct[0]:.1%}"),
    )
    yield (
        f"{at_once}: first chunk, ms",
        f"{direct[1]:.2f}",
        f"{through[1]:.2f}",
        (f"{through[1] - direct[1]:+.2f}"),
    )
    yield f"{at_once}: gateways' processor time for a chunk, µs", "", f"{through[2]:.1f}", ""


def figures(run: Seen) -> tuple[float, float, float]:
    first = statistics.median(run.first) * 1000
    return run.chunks / run.seconds, first, run.cpu / run.chunks * 1e6


COLUMNS = ("what", "directly", "through the gateway", "difference")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", metavar="PATH", help=argparse.SUPPRESS)
    parser.add_argument("--gateways", type=int, default=1)
    parser.add_argument("--requests", type=int, default=200, help="one at a time, in each repeat")
    parser.add_argument("--streams", type=int, default=32, help="streams at once")
    parser.add_argument("--rounds", type=int, default=3, help="answers on each of them")
    parser.add_argument("--pace", type=float, default=0.01, help="seconds from chunk to chunk")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    given = parser.parse_args()
    if given.serve:
        uvloop.run(serve(given.serve))
        return
    rows = measured(given)
    table = Table(*COLUMNS)
    for each in rows:
        table.add_row(*each)
    Console().print(table)
    if given.markdown:
        lines = [COLUMNS, ("---", "---:", "---:", "---:"), *rows]
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        about = f"{machine({})} {given.gateways} gateways, medians of {given.repeats} repeats."
        write(given.markdown, "text-hop", f"{about}\n\n{text}")


if __name__ == "__main__":
    main()
