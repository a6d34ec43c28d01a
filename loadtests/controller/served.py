"""The same question to a real server: fixed settings under a rate that goes up and down again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import uvloop
from numpy.typing import NDArray

from loadtests import model
from loadtests.controller.arrivals import steps
from loadtests.controller.client import Open
from loadtests.controller.policy import Setting
from loadtests.models import fraud
from loadtests.peers import encoder
from loadtests.perf_analyzer import BenchmarkError
from loadtests.scenarios import Arrays
from loadtests.server import Server, running

DIFFERENT = 16
"""Requests that are sent in turn."""

WARM_UP = [index * 0.01 for index in range(100)]


@dataclass(frozen=True)
class Workload:
    """`rates` are requests a second, one step after the other; `delays` seconds to try."""

    write: Callable[[Path], None]
    row: Callable[[np.random.Generator], Arrays]
    rates: tuple[float, ...]
    delays: tuple[float, ...]


WORKLOADS = {
    "mlp": Workload(
        model.write,
        lambda random: {model.INPUT: random.random((1, model.FEATURES), dtype=np.float32)},
        (200, 1000, 200),
        (0.0, 0.001, 0.003),
    ),
    "fraud": Workload(
        fraud.write,
        lambda random: {fraud.INPUT: random.random((1, 24, 16), dtype=np.float32)},
        (200, 800, 200),
        (0.0, 0.001, 0.003),
    ),
    "encoder": Workload(
        encoder.write,
        lambda random: {encoder.INPUT: random.integers(1, 30_000, (1, encoder.TOKENS))},
        (8, 25, 8),
        (0.0, 0.01, 0.04),
    ),
}


@dataclass(frozen=True)
class Run:
    """p99 in seconds at each step; shares of right answers, and of requests that left late."""

    p99: NDArray[np.float64]
    equal: float
    late: float


def measure(name: str, setting: Setting, seconds: float, seed: int, folder: Path) -> Run:
    """One server, started for it. Raises BenchmarkError, also where a request fails."""
    work = WORKLOADS[name]
    file = folder / f"{name}.onnx"
    if not file.exists():
        work.write(file)
    random = np.random.default_rng(0)
    requests = [work.row(random) for _ in range(DIFFERENT)]
    expected = _alone(file, requests)
    due, step = steps(work.rates, seconds, seed)
    with tempfile.TemporaryDirectory() as place:
        at = _configured(Path(place), name, file, setting)
        with running(f"{name}={at}") as server:
            client = uvloop.run(_load(server, name, requests, due))
    took = np.array(client.latency)
    return Run(
        p99=np.array([np.percentile(took[step == each], 99) for each in range(len(work.rates))]),
        equal=_equal(client.answers, expected),
        late=client.late / len(due),
    )


def _configured(place: Path, name: str, file: Path, setting: Setting) -> Path:
    """A model folder that has the setting in its config.pbtxt."""
    (place / name / "1").mkdir(parents=True)
    (place / name / "1" / "model.onnx").symlink_to(file.resolve())
    (place / name / "config.pbtxt").write_text(
        "max_batch_size: 64\n"
        f"dynamic_batching {{ max_queue_delay_microseconds: {setting.delay * 1e6:.0f} }}\n"
        f"instance_group [{{ count: {setting.slots} }}]\n"
    )
    return place / name


async def _load(server: Server, name: str, requests: list[Arrays], due: Sequence[float]) -> Open:
    client = Open(server.http, name, requests)
    await client.send(WARM_UP)
    await client.send(due)
    client.close()
    return client


def _alone(file: Path, requests: Sequence[Arrays]) -> list[NDArray[np.float32]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return [session.run(None, dict(each))[0] for each in requests]


def _equal(answers: Sequence[bytes | None], expected: Sequence[NDArray[np.float32]]) -> float:
    failed = sum(answer is None for answer in answers)
    if failed:
        raise BenchmarkError(f"{failed} of {len(answers)} requests failed")
    return float(
        np.mean(
            [
                np.allclose(
                    np.frombuffer(answer or b"", np.float32),
                    expected[index % len(expected)].ravel(),
                    rtol=1e-3,
                    atol=1e-5,
                )
                for index, answer in enumerate(answers)
            ]
        )
    )
