"""One start: ds-serve with one model, or the engine's library in a bare Python process."""

from __future__ import annotations

import http.client
import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ds_client import Client, ClientError
from loadtests.peers import processes
from loadtests.peers.base import Launch
from loadtests.peers.processes import Running
from loadtests.perf_analyzer import BenchmarkError
from loadtests.server import free_ports
from loadtests.start_up.subjects import ONNX, PROMPT, Subject

ALONE = Path(__file__).with_name("alone.py")
START_SECONDS = 120.0
LOOK_SECONDS = 0.01
SETTLE_SECONDS = 1.0
GATEWAY, ENGINE, REST = "gateway", "engine", "rest"
ROLES = (("ds_serve.gateway", GATEWAY), ("ds_serve.worker", ENGINE), ("ds_serve.text", ENGINE))
CACHE_GB = 1
"""Of the KV cache, as ds-serve has it by default."""

LOADED = "nv_model_load_duration_secs"


@dataclass(frozen=True)
class Start:
    """Seconds from the start of the process; bytes by role after the first answer (PSS).

    `load` is the part of `ready` in which the engine was loaded, its library's import included.
    """

    ready: float
    answered: float
    load: float
    memory: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.memory.values())


def threads() -> int:
    return len(os.sched_getaffinity(0))


def served(subject: Subject, folder: Path) -> Start:
    """ds-serve as it comes. Raises BenchmarkError where it does not start or answer."""
    http_port, grpc_port = free_ports(2)
    command = [str(Path(sys.executable).parent / "ds-serve"), "--log-format", "json"]
    command += ["--model", f"{subject.name}={subject.file}"]
    command += ["--http-port", str(http_port), "--grpc-port", str(grpc_port)]
    begun = time.monotonic()
    with processes.running(Launch(command), folder, None) as running:
        _until(running, lambda: _get(http_port, "/health/ready")[0] == 200)
        ready = time.monotonic()
        _ask(subject, http_port, grpc_port)
        answered = time.monotonic()
        time.sleep(SETTLE_SECONDS)
        load = _load_seconds(subject, running, http_port)
        return Start(ready - begun, answered - begun, load, _memory(running))


def alone(subject: Subject, folder: Path) -> Start:
    """The library called directly. Raises BenchmarkError where that fails."""
    setup = folder / "setup.json"
    setup.write_text(json.dumps(_setup(subject, folder)))
    command = [sys.executable, str(ALONE), str(setup)]
    begun = time.monotonic()
    with processes.running(Launch(command), folder, None) as running:
        _until(running, lambda: bool(_times(running)))
        times = _times(running)
        time.sleep(SETTLE_SECONDS)
        load = times["ready"] - times["begun"]
        memory = {ENGINE: running.memory()}
        return Start(times["ready"] - begun, times["answered"] - begun, load, memory)


def _setup(subject: Subject, folder: Path) -> dict[str, object]:
    setup: dict[str, object] = {"engine": subject.engine, "file": str(subject.file)}
    setup["threads"] = threads()
    if subject.engine == ONNX:
        request = folder / "request.npz"
        np.savez(request, **subject.request)  # type: ignore[arg-type]
        return setup | {"request": str(request)}
    return setup | {"prompt": PROMPT, "cache_gb": CACHE_GB}


def _times(running: Running) -> dict[str, float]:
    """What alone.py has printed, once it has; libraries may print before it."""
    lines = [line for line in running.printed().splitlines() if line.startswith('{"begun"')]
    found: dict[str, float] = json.loads(lines[-1]) if lines else {}
    return found


def _until(running: Running, reached: Callable[[], bool]) -> None:
    until = time.monotonic() + START_SECONDS
    while not reached():
        running.check()
        if time.monotonic() > until:
            raise BenchmarkError(f"not ready after {START_SECONDS:.0f} s:\n{running.printed()}")
        time.sleep(LOOK_SECONDS)


def _get(port: int, path: str, body: bytes | None = None) -> tuple[int, str]:
    """Status, 0 where nobody listens, and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        headers = {"Content-Type": "application/json"} if body else {}
        connection.request("POST" if body else "GET", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error)
    finally:
        connection.close()


def _ask(subject: Subject, http_port: int, grpc_port: int) -> None:
    if subject.engine != ONNX:
        messages = [{"role": "user", "content": PROMPT}]
        body = json.dumps({"model": subject.name, "messages": messages, "max_tokens": 1})
        status, text = _get(http_port, "/v1/chat/completions", body.encode())
        if status != 200:
            raise BenchmarkError(f"{subject.name}: status {status}: {text[:500]}")
        return
    try:
        with Client(f"127.0.0.1:{grpc_port}") as client:
            client.infer(subject.name, subject.request)
    except ClientError as error:
        raise BenchmarkError(f"{subject.name}: {error}") from None


def _load_seconds(subject: Subject, running: Running, port: int) -> float:
    """From the metrics, or from the log of a text worker, which loads in a process of its own."""
    if subject.engine == ONNX:
        found = re.search(rf"^{LOADED}{{.*}} (\S+)$", _get(port, "/metrics")[1], re.MULTILINE)
    else:
        found = re.search(r'"load_seconds":([\d.]+)', running.log.read_text(errors="replace"))
    if found is None:
        raise BenchmarkError(f"{subject.name}: the server does not say how long loading took")
    return float(found[1])


def _memory(running: Running) -> dict[str, int]:
    sizes = {ENGINE: 0, GATEWAY: 0, REST: 0}
    for pid, _ in running.members():
        sizes[_role(pid)] += processes.pss(pid)
    return sizes


def _role(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return REST
    module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
    return next((role for name, role in ROLES if module.startswith(name)), REST)
