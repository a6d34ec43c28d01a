"""What the benchmarks are: each a program of its own that writes its table as Markdown."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.peers import environments

SOAK = "3m"
PEER_SECONDS = 3


@dataclass(frozen=True)
class Part:
    """One benchmark. `words` follow `python -m`; `--markdown FILE` is added to them.

    `missing` says why it cannot be run here; such a part is left out unless it is asked for.
    """

    name: str
    title: str
    words: Sequence[str]
    missing: Callable[[], str] = lambda: ""

    def command(self, table: Path) -> list[str]:
        return [sys.executable, "-m", *self.words, "--markdown", str(table)]


def parts(soak: str = SOAK, repeats: int = 3) -> dict[str, Part]:
    """All, in the order in which they run. `soak`: how long that one lasts, such as 30m."""
    times = ["--repeats", str(repeats)]
    peers = ["--workloads", "mlp", "--repeats", str(repeats), "--seconds", str(PEER_SECONDS)]
    listed = (
        Part(
            "mlp",
            "A tiny model over each protocol, beside its engine alone",
            ["loadtests.mlp", "--anyway", *times, "--seconds", "3"],
        ),
        Part("hop", "From process to process and back", ["loadtests.hop", *times]),
        Part(
            "start-up",
            "Time to be ready, and memory, beside the engine's library alone",
            ["loadtests.start_up", *times],
        ),
        Part("step", "Load that rises sixfold at once", ["loadtests.load", "step"]),
        Part(
            "soak",
            f"Half load for {soak}",
            # Memory of some minutes has no slope worth a bound: it is shown with its error.
            ["loadtests.load", "soak", "--duration", soak, *_loose(soak)],
        ),
        Part(
            "peers",
            "The tiny model behind other servers",
            ["loadtests.peers", "run", *_installed(), *peers, "--anyway"],
            _no_peers,
        ),
    )
    return {part.name: part for part in listed}


def _loose(soak: str) -> list[str]:
    return [] if soak.endswith("h") or soak == "30m" else ["--require", "memory_slope=1000"]


def _installed() -> list[str]:
    return [name for name in environments.serving("tensors") if environments.installed(name)]


def _no_peers() -> str:
    if _installed():
        return ""
    return "no other server is installed: python -m loadtests.peers install"
