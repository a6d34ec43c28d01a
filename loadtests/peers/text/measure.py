"""The measurements: each text server in turn, round after round, with more and more clients."""

from __future__ import annotations

import asyncio
import http.client
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from loadtests.peers import environments, processes
from loadtests.peers.measure import Meter
from loadtests.peers.processes import Running
from loadtests.peers.serving import Place
from loadtests.peers.text import results
from loadtests.peers.text.client import Chats
from loadtests.peers.text.results import TextRow, TextSample
from loadtests.peers.text.servers import TextPeer, TextSetup
from loadtests.perf_analyzer import BenchmarkError
from loadtests.server import free_ports

START_SECONDS = 300.0
WARM_CLIENTS = 4


@dataclass(frozen=True)
class TextPlan:
    """What to measure, and how long each; prompts and answers of so many tokens."""

    peers: Sequence[TextPeer]
    clients: Sequence[int] = (1, 8, 32)
    repeats: int = 3
    seconds: float = 20.0
    warm_up: float = 5.0
    tokens_in: int = 64
    tokens_out: int = 64
    place: Place = field(default_factory=Place)


@dataclass
class TextResults:
    samples: dict[tuple[str, int], list[TextSample]] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    """Why a server has no rows, by its name."""

    def rows(self) -> list[TextRow]:
        kept = {key: found for key, found in self.samples.items() if key[0] not in self.refusals}
        return [TextRow(*key, tuple(found)) for key, found in kept.items()]

    def others(self) -> float:
        """The part of the machine, 0 to 1, that other programs took: the median of all samples."""
        shares = [each.others for found in self.samples.values() for each in found]
        return median(shares) if shares else 0.0


def run(plan: TextPlan, advance: Callable[[str], None]) -> TextResults:
    """All rounds; a server that fails once is named, and left out from then on."""
    found = TextResults()
    for _ in range(plan.repeats):
        for peer in plan.peers:
            if peer.name not in found.refusals:
                try:
                    _round(plan, peer, found)
                except BenchmarkError as error:
                    found.refusals[peer.name] = str(error)
            advance(peer.name)
    return found


def _round(plan: TextPlan, peer: TextPeer, found: TextResults) -> None:
    """Start it, warm it up, and measure it with each number of clients. Raises BenchmarkError."""
    python = environments.python(peer.key)
    (port,) = free_ports(1)
    launch = peer.launch(TextSetup(python, port, plan.place.cores))
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        processes.running(launch, Path(folder), plan.place.pinned) as running,
    ):
        try:
            _measured(plan, peer, found, running, port)
        except BenchmarkError as error:
            raise BenchmarkError(f"{error}\n{running.printed()}") from None


def _measured(
    plan: TextPlan, peer: TextPeer, found: TextResults, running: Running, port: int
) -> None:
    _wait(running, port)
    chats = Chats(port, peer.model(), plan.tokens_out, peer.body(plan.tokens_out))
    words = asyncio.run(chats.words_for(plan.tokens_in))
    asyncio.run(chats.load(WARM_CLIENTS, words, plan.warm_up))
    for clients in plan.clients:
        meter, before = Meter(), running.cpu_seconds()
        seen = asyncio.run(chats.load(clients, words, plan.seconds))
        others = meter.others(running.cpu_seconds() - before)
        sample = results.sample(seen, running.memory(), others)
        found.samples.setdefault((peer.name, clients), []).append(sample)
        running.check()


def _wait(running: Running, port: int) -> None:
    """Until it is ready. Raises BenchmarkError."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        running.check()
        if any(_ok(port, path) for path in ("/health/ready", "/health")):
            return
        time.sleep(0.2)
    raise BenchmarkError(f"not ready after {START_SECONDS:.0f} s")


def _ok(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
