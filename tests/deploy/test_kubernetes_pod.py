"""The chart's pod, run as a kubelet would: its arguments, its probes in turn, its end."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import charts
import httpx2
import onnx_models
import pytest
from serving import Server, until

pytestmark = pytest.mark.slow

STEPS = 500
"""Of the slow model: about a second."""


class Pod(NamedTuple):
    server: Server
    spec: charts.Json
    slow: Path

    @property
    def container(self) -> charts.Json:
        (found,) = self.spec["containers"]
        return dict(found)

    def probe(self, name: str) -> int:
        """A probe's status; 0 where nothing answers."""
        (port,) = (
            each["containerPort"] for each in self.container["ports"] if each["name"] == "http"
        )
        path = self.container[name]["httpGet"]["path"]
        try:
            return self.server.client.get(f"http://127.0.0.1:{port}{path}").status_code
        except httpx2.TransportError:
            return 0


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in taken]


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    slow = onnx_models.slow(tmp_path / "slow.onnx")
    ports = dict(zip(("http", "grpc", "metrics"), free_ports(3), strict=True))
    sets = [f"ports.{name}={port}" for name, port in ports.items()]
    objects = charts.rendered("spot", *sets, f'models=["slow={slow}"]', "pull.sources=[]")
    spec = charts.one(objects, "Deployment")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    # On the loopback interface alone; and the server's own class sets the ports.
    words = [
        word
        for word in container["args"]
        if not word.startswith(("--host", "--http-port", "--grpc-port"))
    ]
    server = Server(*words, "--http-port", str(ports["http"]), "--grpc-port", str(ports["grpc"]))
    yield Pod(server, spec, slow)
    server.close()


def test_probes_tell_starting_failing_and_stopping_apart(pod: Pod) -> None:
    server = pod.server.start()
    until(lambda: pod.probe("startupProbe") == 200, "never started", 60, server.log)
    until(lambda: pod.probe("readinessProbe") == 200, "never ready", 60, server.log)
    server.wait_ready()
    os.kill(server.worker("slow"), signal.SIGKILL)
    until(lambda: pod.probe("readinessProbe") == 503, "always ready", 30, server.log)
    assert pod.probe("livenessProbe") == 200, "the server heals itself"
    until(lambda: pod.probe("readinessProbe") == 200, "not ready again", 30, server.log)
    answers: list[int] = []
    request = threading.Thread(target=lambda: answers.append(infer(server)))
    request.start()
    until(lambda: server.metric("ds_gateway_in_flight_requests") > 0, "it never ran")
    began = time.monotonic()
    # The hook's seconds are for what is outside the pod; the signal follows them.
    assert server.stop() == 0
    took = time.monotonic() - began
    request.join()
    assert answers == [200], "what is in flight is answered"
    hook = pod.container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert hook + took <= pod.spec["terminationGracePeriodSeconds"] <= 15
    assert pod.probe("livenessProbe") == 0


def infer(server: Server) -> int:
    tensors: list[dict[str, Any]] = [
        {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]},
        {"name": "steps", "datatype": "INT64", "shape": [1], "data": [STEPS]},
    ]
    url = f"{server.http}/v2/models/slow/infer"
    return httpx2.post(url, json={"inputs": tensors}, timeout=60).status_code
