"""A ds-serve process for the length of a benchmark."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ds_client import Client, ClientError
from loadtests.perf_analyzer import BenchmarkError

START_SECONDS = 150.0
STOP_SECONDS = 30.0


@dataclass(frozen=True)
class Server:
    """Where it listens, as host:port, and its process."""

    http: str
    grpc: str
    pid: int = 0

    def counted(self, model: str) -> tuple[int, int]:
        """Requests that succeeded and that failed since the start. Raises BenchmarkError."""
        try:
            with Client(self.grpc, timeout=10) as client:
                (statistics,) = client.statistics(model)
        except ClientError as error:
            raise BenchmarkError(f"the server gives no statistics: {error}") from None
        durations = statistics.durations
        counts = [durations[name].count if name in durations else 0 for name in ("success", "fail")]
        return counts[0], counts[1]


@contextmanager
def running(
    model: str, arguments: Sequence[str] = (), log_file: Path | None = None
) -> Iterator[Server]:
    """ds-serve with one `model` (NAME=PATH), stopped in the end. `log_file`: where it prints to.

    Raises BenchmarkError where it does not become ready, with what it printed.
    """
    with started(["--model", model, *arguments], log_file) as server:
        yield server


@contextmanager
def started(arguments: Sequence[str], log_file: Path | None = None) -> Iterator[Server]:
    """The same with all that the command line says."""
    http_port, grpc_port = free_ports(2)
    command = [sys.executable, "-m", "ds_serve.cli", *arguments]
    command += ["--http-port", str(http_port), "--grpc-port", str(grpc_port)]
    with log_file.open("w+") if log_file else tempfile.TemporaryFile("w+") as log:
        try:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        except OSError as error:
            raise BenchmarkError(f"{sys.executable} cannot be started: {error.strerror}") from None
        try:
            _wait(process, http_port, log)
            yield Server(f"127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}", process.pid)
        finally:
            _stop(process)


def _wait(process: subprocess.Popen[bytes], port: int, log: IO[str]) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise BenchmarkError(f"ds-serve ended with {process.returncode}:\n{_tail(log)}")
        if _ready(port):
            return
        time.sleep(0.1)
    raise BenchmarkError(f"ds-serve was not ready after {START_SECONDS:.0f} s:\n{_tail(log)}")


def _ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _tail(log: IO[str]) -> str:
    log.seek(0)
    return log.read()[-2000:]


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
