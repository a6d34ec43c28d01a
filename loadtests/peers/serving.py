"""A peer's server for the length of some measurements: started, found right, stopped."""

from __future__ import annotations

import http.client
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from loadtests.peers import environments, processes
from loadtests.peers.base import Array, Peer, Request, Setup
from loadtests.peers.workloads import Workload
from loadtests.perf_analyzer import BenchmarkError
from loadtests.server import free_ports

START_SECONDS = 120.0
TOLERANCE = 1e-3
PLAIN = ("JSON", "bytes")
GRPC = "gRPC"


@dataclass(frozen=True)
class Place:
    """What all servers of a run are given.

    `pinned` are the cores to keep to, None for all. `settings` override those of the peers, by
    key; `options` are for ds-serve's command line.
    """

    pinned: frozenset[int] | None = None
    settings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    options: tuple[str, ...] = ()

    @property
    def cores(self) -> int:
        return len(self.pinned or os.sched_getaffinity(0))

    def for_peer(self, peer: Peer) -> dict[str, float]:
        return {**peer.settings, **self.settings.get(peer.key, {})}


@dataclass(frozen=True)
class Served:
    """A server that answers.

    `requests` has one for each protocol of plain HTTP; `data` is a folder with the same row for
    perf_analyzer, in a file that is called like the input; `checked` are the ways by which its
    answers were found right.
    """

    http: str
    grpc: str
    processes: processes.Running
    requests: dict[str, Request]
    data: Path
    checked: Sequence[str]

    def counted(self, model: str) -> tuple[int, int] | None:
        """Requests that succeeded and failed by Triton's statistics; None where there are none."""
        try:
            status, _, body = exchange(self.http, "GET", f"/v2/models/{model}/stats")
            (entry,) = json.loads(body)["model_stats"] if status == 200 else [{}]
            counts = entry["inference_stats"]
            return int(counts["success"]["count"]), int(counts["fail"]["count"])
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
            return None


@dataclass(frozen=True)
class Example:
    """A row and what ONNX Runtime makes of it."""

    row: Array
    output: Array


def example(work: Workload, model: Path) -> Example:
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    row = work.rows(1)
    (output,) = session.run([work.output], {work.input: row})
    return Example(row, output)


@contextmanager
def serving(
    peer: Peer, work: Workload, model: Path, expected: Example, place: Place
) -> Iterator[Served]:
    """Start the peer's server and compare its answers with ONNX Runtime's.

    Raises BenchmarkError where it does not start, or answers otherwise, with what it printed.
    """
    python = environments.python(peer.key)
    ports = free_ports(2)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        settings = place.for_peer(peer)
        setup = Setup(
            work, model, folder, python, ports[0], ports[1], place.cores, settings, place.options
        )
        launch = peer.launch(setup)
        with processes.running(launch, folder, place.pinned) as running:
            plain = [each for each in peer.protocols if each in PLAIN]
            requests = {each: peer.request(work, each, expected.row) for each in plain}
            addresses = [f"127.0.0.1:{port}" for port in ports]
            data = folder / "rows"
            data.mkdir()
            (data / work.input).write_bytes(expected.row.tobytes())
            grpc = any(each.startswith(GRPC) for each in peer.protocols)
            checked = [*plain, GRPC] if grpc else plain
            served = Served(addresses[0], addresses[1], running, requests, data, checked)
            _wait(served, requests[plain[0]])
            for protocol in plain:
                _compare(protocol, _asked(peer, work, served, protocol), expected)
            if grpc:
                _compare(GRPC, _asked_by_grpc(work, served, expected), expected)
            yield served


def exchange(
    address: str, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body. Raises OSError or HTTPException."""
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request(method, path, body or None, headers or {})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def post(address: str, request: Request) -> tuple[int, dict[str, str], bytes]:
    return exchange(address, "POST", request.path, request.body, request.headers)


def _wait(served: Served, request: Request) -> None:
    """Until a request is answered well; servers listen before their model is there."""
    until = time.monotonic() + START_SECONDS
    problem = "nothing listens"
    while time.monotonic() < until:
        served.processes.check()
        try:
            status, _, body = post(served.http, request)
        except (OSError, http.client.HTTPException) as error:
            problem = str(error)
        else:
            if status == 200:
                return
            problem = f"status {status}: {body[:500].decode(errors='replace')}"
        time.sleep(0.2)
    printed = served.processes.printed()
    raise BenchmarkError(f"no answer after {START_SECONDS:.0f} s ({problem}):\n{printed}")


def _asked(peer: Peer, work: Workload, served: Served, protocol: str) -> Array:
    try:
        status, headers, body = post(served.http, served.requests[protocol])
    except (OSError, http.client.HTTPException) as error:
        raise BenchmarkError(f"{protocol}: no answer: {error}") from None
    if status != 200:
        shown = body[:500].decode(errors="replace")
        raise BenchmarkError(f"{protocol}: status {status}: {shown}\n{served.processes.printed()}")
    try:
        return peer.answer(work, headers, body)
    except (KeyError, TypeError, ValueError) as error:
        raise BenchmarkError(f"{protocol}: not understood: {body[:200]!r}: {error!r}") from None


def _asked_by_grpc(work: Workload, served: Served, expected: Example) -> Array:
    """By NVIDIA's client, which is of the same make as its load generator."""
    from tritonclient import grpc  # type: ignore[import-untyped]
    from tritonclient.utils import (  # type: ignore[import-untyped]
        InferenceServerException,
    )

    tensor = grpc.InferInput(work.input, list(expected.row.shape), work.datatype)
    tensor.set_data_from_numpy(expected.row)
    try:
        with grpc.InferenceServerClient(served.grpc) as client:
            output: Array | None = client.infer(work.name, [tensor], client_timeout=60).as_numpy(
                work.output
            )
    except InferenceServerException as error:
        raise BenchmarkError(f"gRPC: {error.message()}") from None
    if output is None:
        raise BenchmarkError(f"gRPC: no output {work.output}")
    return output


def _compare(protocol: str, output: Array, expected: Example) -> None:
    right = expected.output
    if output.shape != right.shape or not np.allclose(output, right, TOLERANCE, TOLERANCE):
        raise BenchmarkError(f"{protocol}: not what ONNX Runtime answers: {output} for {right}")
