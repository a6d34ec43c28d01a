"""A text worker as a real process, for tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import openai

MODEL = "smollm2-135m-instruct"


class TextWorker:
    """`python -m ds_serve.text` as a process, and a client on its socket."""

    def __init__(self, folder: Path, artifact: Path, *flags: str) -> None:
        self.uds = folder / "text.sock"
        self.failure_file = folder / "failure"
        self.log = folder / "log"
        command = [sys.executable, "-m", "ds_serve.text", "--uds", str(self.uds)]
        command += ["--model", MODEL, "--artifact", str(artifact), "--threads", "2", *flags]
        env = os.environ | {"DS_FAILURE_FILE": str(self.failure_file)}
        env.pop("PROMETHEUS_MULTIPROC_DIR", None)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stderr=log, env=env)
        transport = httpx2.HTTPTransport(uds=str(self.uds))
        self.http = httpx2.Client(transport=transport, base_url="http://worker", timeout=120)

    def wait_ready(self, seconds: float = 200) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            if self.health() == 200:
                return
            time.sleep(0.1)
        raise AssertionError(f"not ready: {self.log.read_text()}")

    def health(self) -> int:
        if not self.uds.exists():  # a connection refused would leak httpx2's socket
            return 0
        try:
            return self.http.get("/health").status_code
        except httpx2.TransportError:
            return 0

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(
            base_url="http://worker/v1", api_key="none", http_client=self.http, max_retries=0
        )

    def loop_pid(self) -> int:
        """The engine loop, which is the worker's only child."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        assert len(children) == 1
        return int(children[0])

    def gauge(self, name: str) -> float:
        for line in self.http.get("/metrics").text.splitlines():
            if line.startswith(name + "{"):
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"no metric {name}")

    def wait_gauge(self, name: str, wanted: Callable[[float], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not wanted(self.gauge(name)):
            assert time.monotonic() < deadline, f"{name} is still {self.gauge(name)}"
            time.sleep(0.02)

    def close(self) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
