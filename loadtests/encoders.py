"""What joining requests gives an encoder: the same texts one by one, and joined into batches.

    python -m loadtests.encoders                 1, 8 and 32 clients, three rounds
    python -m loadtests.encoders --write         the same, into docs/text-encoders.md

One text a request, of 5 to 60 words. Workers on Unix sockets, with batches of one text and with
batches as they are usually, measured one after the other in changing order on the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.table import Table

from loadtests import report
from loadtests.peers.text.client import WORDS
from loadtests.perf_analyzer import BenchmarkError
from loadtests.start_up.subjects import fetched

MODEL = "all-minilm-l6-v2"
CLIENTS = (1, 8, 32)
START_SECONDS = 120.0
WAYS = {"one by one": ("--max-batch-tokens", "1"), "joined": ()}

PAGE = Path(__file__).resolve().parents[1] / "docs" / "text-encoders.md"
COLUMNS = (
    "clients",
    "texts/s one by one",
    "joined",
    "times as many",
    "lowest to highest",
    "median ms one by one",
    "joined",
)

Rates = dict[tuple[str, int], list[tuple[float, float]]]


@contextmanager
def worker(socket: Path, folder: Path, flags: Sequence[str]) -> Iterator[Path]:
    """A worker that listens on `socket`, until the end of the block. Raises BenchmarkError."""
    command = [sys.executable, "-m", "ds_serve.embed", "--uds", str(socket), "--model", MODEL]
    command += ["--artifact", str(folder), "--log-level", "warning", *flags]
    command += ["--parent-pid", str(os.getpid())]
    with subprocess.Popen(command) as process:
        try:
            _wait(process, socket)
            yield socket
        finally:
            process.terminate()


def _wait(process: subprocess.Popen[bytes], socket: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BenchmarkError(f"the worker ended with status {process.returncode}")
        if socket.exists() and asyncio.run(_ready(socket)):
            return
        time.sleep(0.2)
    raise BenchmarkError(f"the worker was not ready within {START_SECONDS:g} s")


async def _ready(socket: Path) -> bool:
    try:
        async with session(socket) as client, client.get("http://worker/health") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


def session(socket: Path) -> aiohttp.ClientSession:
    connector = aiohttp.UnixConnector(str(socket), limit=0)
    return aiohttp.ClientSession(connector=connector)


async def measured(socket: Path, clients: int, requests: int) -> tuple[float, float]:
    """Texts a second, and the median time of a request in milliseconds."""
    chance = random.Random(clients)
    texts = iter(
        [" ".join(chance.choices(WORDS, k=chance.randint(5, 60))) for _ in range(requests)]
    )
    seconds: list[float] = []

    async def client(http: aiohttp.ClientSession) -> None:
        for text in texts:
            begun = time.perf_counter()
            body = {"model": MODEL, "input": text, "encoding_format": "base64"}
            async with http.post("http://worker/v1/embeddings", json=body) as answer:
                if answer.status != 200:
                    raise BenchmarkError(f"status {answer.status}: {await answer.text()}")
                await answer.read()
            seconds.append(time.perf_counter() - begun)

    async with session(socket) as http:
        begun = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client(http))
        return requests / (time.perf_counter() - begun), 1000 * statistics.median(seconds)


def run(rounds: int, requests: int, console: Console) -> Rates:
    """All rounds, after one that does not count."""
    rates: Rates = {(way, clients): [] for way in WAYS for clients in CLIENTS}
    model = fetched(MODEL)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sockets = {
            way: stack.enter_context(worker(folder / f"{number}.sock", model.parent, flags))
            for number, (way, flags) in enumerate(WAYS.items())
        }
        for round_ in range(rounds + 1):
            for way, clients in random.Random(round_).sample(list(rates), len(rates)):
                found = asyncio.run(measured(sockets[way], clients, requests))
                if round_:
                    rates[way, clients].append(found)
                console.print(f"round {round_}: {clients} clients, {way}: {found[0]:,.0f}/s")
    return rates


def rows(rates: Rates) -> list[tuple[str, ...]]:
    """Medians of the rounds; how many times as many is told round by round."""
    found: list[tuple[str, ...]] = []
    for clients in CLIENTS:
        one, joined = rates["one by one", clients], rates["joined", clients]
        ratios = [after[0] / before[0] for before, after in zip(one, joined, strict=True)]
        speeds = [statistics.median(each[0] for each in way) for way in (one, joined)]
        times = [statistics.median(each[1] for each in way) for way in (one, joined)]
        found.append(
            (
                str(clients),
                *(f"{speed:,.0f}" for speed in speeds),
                f"{statistics.median(ratios):.2f}",
                f"{min(ratios):.2f} to {max(ratios):.2f}",
                *(f"{time:,.1f}" for time in times),
            )
        )
    return found


def _write(given: argparse.Namespace, lines: Sequence[tuple[str, ...]]) -> None:
    about = (
        f"{report.machine({})} {MODEL}, one text of 5 to 60 words a request, {given.requests} "
        f"requests, {given.rounds} rounds; the worker on its socket, without a gateway."
    )
    whole = [COLUMNS, tuple("---:" for _ in COLUMNS), *lines]
    text = "\n".join(f"| {' | '.join(line)} |" for line in whole)
    report.write(PAGE, "encoders", f"{about}\n\n{text}")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.encoders",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=400, help="in each measurement")
    parser.add_argument("--write", action="store_true", help=f"put the table into docs/{PAGE.name}")
    given = parser.parse_args()
    console = Console()
    try:
        rates = run(max(1, given.rounds), given.requests, console)
        shown = Table(*COLUMNS)
        for row in rows(rates):
            shown.add_row(*row)
        console.print(shown)
        if given.write:
            _write(given, rows(rates))
    except BenchmarkError as error:
        console.print(str(error), style="red", markup=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
