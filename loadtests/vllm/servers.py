"""ds-serve, and vLLM alone, as processes for the length of a measurement."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from loadtests.perf_analyzer import BenchmarkError
from loadtests.server import free_ports

STOP_SECONDS = 40.0
LOG_TAIL = 2500
PROC = Path("/proc")


@dataclass(frozen=True)
class Place:
    """Where all is: `out` for logs and results, `python` runs vLLM, `device` is cuda or cpu.
    `flags`: vLLM's, for every server.

    `until`: the monotonic time by which all must be over.
    """

    out: Path
    until: float
    python: str = sys.executable
    device: str = "cuda"
    gateways: int = 2
    flags: tuple[str, ...] = ()

    @property
    def left(self) -> float:
        return self.until - time.monotonic()

    @property
    def engine(self) -> list[str]:
        """vLLM's flags that this device needs."""
        needed = [] if self.device == "cuda" else ["--enforce-eager", "--dtype", "bfloat16"]
        return [*needed, *self.flags]


@dataclass
class Running:
    """A server that answers. `started`: how many seconds it took."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    grpc: int = 0
    started: float = 0.0
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def printed(self) -> str:
        return self.log.read_text(errors="replace")

    def check(self) -> None:
        if (status := self.process.poll()) is not None:
            raise BenchmarkError(f"{self.name} ended with {status}:\n{self.printed()[-LOG_TAIL:]}")


@contextlib.contextmanager
def bare(place: Place, name: str, model: Path, flags: Sequence[str] = ()) -> Iterator[Running]:
    """vLLM alone, on a port. Raises BenchmarkError where it does not become ready in time."""
    (port,) = free_ports(1)
    # Its own command line is not in the build for processors.
    serve = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    if place.device == "cuda":
        serve = ["-m", "vllm.entrypoints.cli.main", "serve", str(model)]
    command = [place.python, *serve, "--served-model-name", name, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--disable-uvicorn-access-log", *place.engine, *flags]
    with _started(place, "vllm", command, port, "/health") as server:
        yield server


@contextlib.contextmanager
def ds_serve(
    place: Place,
    name: str,
    model: Path,
    flags: Sequence[str] = (),
    engine_flags: Sequence[str] = (),
) -> Iterator[Running]:
    """The same model behind ds-serve; `engine_flags` go to vLLM as they are."""
    http_port, grpc_port = free_ports(2)
    command = [sys.executable, "-m", "ds_serve.cli", "--engine", "vllm", "--model"]
    command += [f"{name}={model}", "--vllm-python", place.python]
    command += ["--http-port", str(http_port), "--grpc-port", str(grpc_port)]
    command += ["--gateways", str(place.gateways), "--log-level", "debug", *flags]
    command += ["--", *place.engine, *engine_flags]
    with _started(place, "ds-serve", command, http_port, "/health/ready") as server:
        server.grpc = grpc_port
        yield server


@contextlib.contextmanager
def _started(
    place: Place, name: str, command: list[str], port: int, path: str
) -> Iterator[Running]:
    log = place.out / "logs" / f"{name}-{port}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if k != "PROMETHEUS_MULTIPROC_DIR"}
    environment |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    if place.device == "cpu":
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    began = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    server = Running(name, port, process, log)
    try:
        _wait(place, server, path)
        server.started = time.monotonic() - began
        yield server
    finally:
        _stop(process)


def _wait(place: Place, server: Running, path: str) -> None:
    while place.left > 0:
        server.check()
        if _status(server.port, path) == 200:
            return
        time.sleep(0.2)
    raise BenchmarkError(
        f"{server.name} was not ready when the time was over:\n{server.printed()[-LOG_TAIL:]}"
    )


def _status(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        # vLLM that is killed leaves its engine behind.
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def family(pid: int) -> dict[int, str]:
    """All processes that descend from one, and their command lines."""
    parents: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, ValueError):
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if state not in "ZX":
                    parents.setdefault(int(parent), []).append(int(entry.name))
    found: dict[int, str] = {}
    due = [pid]
    while due:
        for child in parents.get(due.pop(), []):
            with contextlib.suppress(OSError):
                words = (PROC / str(child) / "cmdline").read_bytes().split(b"\0")
                found[child] = b" ".join(words).decode(errors="replace").strip()
            due.append(child)
    return found


def gpus() -> int:
    """How many NVIDIA GPUs this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return len([each for each in named.split(",") if each.strip()])
    try:
        nvml = import_module("pynvml")
        nvml.nvmlInit()
        return int(nvml.nvmlDeviceGetCount())
    except Exception:
        return 0
