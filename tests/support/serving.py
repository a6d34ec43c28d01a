"""The real `ds-serve` as a process, for tests."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import httpx2

READY = re.compile(r"^ds-serve is ready: HTTP (\S+) \(docs at \S+\), gRPC (\S+)$", re.MULTILINE)
PROGRAM = Path(sys.executable).with_name("ds-serve")
START_SECONDS = 200.0
STOP_SECONDS = 45.0


class Server:
    """`ds-serve` on free ports, in a `with` block that leaves none of its processes behind.

    Entering waits until the server is ready; without the block call `start`, `wait_ready` and
    `close`. `arguments` are the command line's, the ports apart; there is one gateway where they
    do not say otherwise, as that starts sooner. `http` is an URL such as
    http://127.0.0.1:1234, `grpc` is host:port; both are there once the server is ready.
    """

    def __init__(self, *arguments: str | Path) -> None:
        self.arguments = [str(argument) for argument in arguments]
        if "--gateways" not in self.arguments:
            self.arguments += ["--gateways", "1"]
        self.http = self.grpc = ""
        self._folder = tempfile.TemporaryDirectory(prefix="test-serving-")
        self.log_file = Path(self._folder.name, "log")
        self.output_file = Path(self._folder.name, "output")
        self._family: dict[int, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self.client = httpx2.Client(timeout=60)

    def __enter__(self) -> Self:
        try:
            return self.start().wait_ready()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> Self:
        """Start the process and return at once."""
        command = [str(PROGRAM), "--http-port", "0", "--grpc-port", "0", *self.arguments]
        environment = {k: v for k, v in os.environ.items() if k != "PROMETHEUS_MULTIPROC_DIR"}
        with self.log_file.open("wb") as log, self.output_file.open("wb") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=log, env=environment)
        return self

    def wait_ready(self, seconds: float = START_SECONDS) -> Self:
        """Wait for the line that says where the server listens."""
        until(self._read_addresses, "the server is not ready", seconds, self.log)
        return self

    def _read_addresses(self) -> bool:
        found = READY.search(self.output())
        if found is None:
            assert self.process.poll() is None, f"ended early: {self.output()}{self.log()}"
            return False
        self.http, self.grpc = found.groups()
        return True

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "not started"
        return self._process

    @property
    def http_address(self) -> str:
        """host:port"""
        return self.http.removeprefix("http://")

    def log(self) -> str:
        """What it wrote to stderr so far."""
        return self.log_file.read_text(errors="replace")

    def output(self) -> str:
        """What it wrote to stdout so far."""
        return self.output_file.read_text(errors="replace")

    def gateways(self) -> list[int]:
        """The gateways' process ids."""
        return [pid for pid in children(self.process.pid) if "ds_serve.gateway" in _command(pid)]

    def workers(self) -> dict[str, int]:
        """The process id of each model's worker that runs now; a text model's HTTP half."""
        found = {_model(pid): pid for pid in children(self.process.pid)}
        return {name: pid for name, pid in found.items() if name}

    def worker(self, model: str) -> int:
        """The process id of a model's worker."""
        return self.workers()[model]

    def engine_loop(self, model: str) -> int:
        """The process id of a text model's engine loop, the only child of its HTTP half."""
        (pid,) = children(self.worker(model))
        return pid

    def get(self, path: str) -> httpx2.Response:
        """GET a path of the HTTP port."""
        return self.client.get(self.http + path)

    def ready(self) -> bool:
        """Whether /health/ready says so."""
        return self.get("/health/ready").status_code == 200

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over all series that have these labels; 0 without any."""
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        total = 0.0
        for line in self.get("/metrics").text.splitlines():
            series, _, value = line.rpartition(" ")
            found = re.fullmatch(re.escape(name) + r"(?:\{(.*)\})?", series)
            if found and wanted <= set((found[1] or "").split(",")):
                total += float(value)
        return total

    def stop(self, seconds: float = STOP_SECONDS) -> int:
        """SIGTERM, then the exit status."""
        self._remember()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def kill(self) -> None:
        """SIGKILL to the supervisor."""
        self._remember()
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """End whatever still runs."""
        self.client.close()
        if self._process is not None:
            self._remember()
            if self._process.poll() is None:
                self._process.terminate()
                try:
                    self._process.wait(5)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait()
            for pid, born in self._family.items():
                if not gone(pid) and _born(pid) == born:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        self._folder.cleanup()

    def _remember(self) -> None:
        """Note the children while the supervisor still has them."""
        for pid in children(self.process.pid):
            self._family |= {one: _born(one) for one in (pid, *children(pid))}


def until(
    condition: Callable[[], bool],
    complaint: str,
    seconds: float = 60.0,
    details: Callable[[], str] = str,
) -> None:
    """Wait until the condition holds; fail with the complaint and the details otherwise."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{complaint} after {seconds:g} s\n{details()}"
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    """The children of a process; none where it is gone."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in found.split()]


def gone(pid: int) -> bool:
    """Dead, or dead and waiting to be reaped."""
    return _stat(pid)[0] in ("Z", "")


def _born(pid: int) -> str:
    """When a process was started, by which it is told from a later one of the same number."""
    return _stat(pid)[-1]


def _stat(pid: int) -> tuple[str, str]:
    """State and start time of a process; empty where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def _model(pid: int) -> str:
    """The model that a worker process serves; "" for any other process."""
    command = _command(pid)
    if "ds_serve.text" in command:
        return command[command.index("--model") + 1]
    if "ds_serve.worker" in command:
        config = Path(command[command.index("ds_serve.worker") + 1])
        name: str = json.loads(config.read_bytes())["spec"]["name"]
        return name
    return ""
