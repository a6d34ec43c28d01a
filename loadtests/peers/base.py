"""What a peer is: how its server is started, and how it is asked.

A peer is one module and one class. All of its server runs in an environment of its own, from a
script in apps/, which is told in one JSON file what to serve.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from loadtests.peers.workloads import Workload

APPS = Path(__file__).resolve().parent / "apps"
MAX_BATCH = 64

Array = NDArray[Any]


@dataclass(frozen=True)
class Request:
    """One HTTP POST that carries one row."""

    path: str
    body: bytes
    headers: dict[str, str]


@dataclass(frozen=True)
class Launch:
    """The command that starts a server, and what its environment has besides ours."""

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Setup:
    """What a server is to serve, where and with what.

    `folder` is its own, empty and temporary. `cores` are those it may use, `settings` the peer's
    with what the command line overrides, `options` are for ds-serve's command line.
    """

    work: Workload
    model: Path
    folder: Path
    python: Path
    http: int
    grpc: int
    cores: int
    settings: Mapping[str, float]
    options: tuple[str, ...] = ()

    @property
    def workers(self) -> int:
        return int(self.settings["workers"])

    def write(self, **more: object) -> dict[str, str]:
        """Write what apps/common.py reads; returns the environment that leads an app there.

        Engine threads are the cores shared among the workers, so that these do not fight.
        """
        given = {
            "model": str(self.model),
            "input": self.work.input,
            "output": self.work.output,
            "datatype": self.work.datatype,
            "shape": self.work.shape,
            "http": self.http,
            "grpc": self.grpc,
            "cores": self.cores,
            "threads": max(1, self.cores // max(1, self.workers)),
            "max_batch": MAX_BATCH,
        }
        path = self.folder / "setup.json"
        path.write_text(json.dumps(given | {**self.settings, "workers": self.workers} | more))
        return {"PEER_SETUP": str(path), "PYTHONPATH": str(APPS)}

    def program(self, name: str) -> str:
        """A program of the peer's environment."""
        return str(self.python.parent / name)


class Peer(Protocol):
    """`key` names its environment and its lines in versions.toml.

    `settings` are numbers that the command line can override; `chosen` tells the reader how it is
    set up and why.
    """

    key: str
    name: str
    protocols: Sequence[str]
    settings: Mapping[str, float]
    chosen: str

    def launch(self, setup: Setup) -> Launch:
        """Write what the server needs into `setup.folder`. Raises BenchmarkError."""

    def request(self, work: Workload, protocol: str, row: Array) -> Request:
        """`row` of shape [1, ...] as this server wants it; `protocol` is JSON or bytes."""

    def answer(self, work: Workload, headers: dict[str, str], body: bytes) -> Array:
        """The output in an answer's body. Raises ValueError, KeyError or TypeError."""


def environment(launch: Launch) -> dict[str, str]:
    """Ours with the launch's; no server asks a proxy for what is on this machine."""
    local = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    ours = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return ours | local | launch.environment
