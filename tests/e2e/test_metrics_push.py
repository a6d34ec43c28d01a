"""Metrics that a device sends to a Prometheus, which is not there at first."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import deploy_tools
import httpx2
import numpy as np
import onnx_models
import pytest
from serving import Server, until

pytestmark = pytest.mark.slow

COUNTER = "nv_inference_request_success"


class Prometheus:
    def __init__(self, address: str, client: httpx2.Client) -> None:
        self._address, self._client = address, client

    def ask(self, path: str, **parameters: Any) -> list[Any]:
        answer = self._client.get(f"{self._address}/api/v1/{path}", params=parameters)
        if answer.status_code != 200:
            return []
        found: list[Any] = answer.json()["data"]["result"]
        return found

    def value(self, query: str) -> float:
        try:
            found = self.ask("query", query=query)
        except httpx2.TransportError:
            return 0.0
        return float(found[0]["value"][1]) if found else 0.0


@contextmanager
def running(folder: Path, name: str, command: list[str]) -> Iterator[None]:
    with (
        (folder / f"{name}.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)


@contextmanager
def prometheus(folder: Path, port: int) -> Iterator[Prometheus]:
    """One that takes what is written to it alone, late samples too; before it, at the port, an
    agent that takes OpenTelemetry's protocol.
    """
    folder.mkdir()
    (folder / "prometheus.yml").write_text("storage: {tsdb: {out_of_order_time_window: 1h}}")
    own = free_port()
    server = [
        deploy_tools.prometheus(), f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{own}",
        "--web.enable-remote-write-receiver",
    ]  # fmt: skip
    agent = [
        deploy_tools.vmagent(), f"-httpListenAddr=127.0.0.1:{port}",
        f"-remoteWrite.url=http://127.0.0.1:{own}/api/v1/write",
        f"-remoteWrite.tmpDataPath={folder / 'agent'}", "-opentelemetry.usePrometheusNaming",
    ]  # fmt: skip
    with (
        running(folder, "prometheus", server),
        running(folder, "agent", agent),
        httpx2.Client(timeout=30) as client,
    ):
        yield Prometheus(f"http://127.0.0.1:{own}", client)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def ask(server: Server, times: int) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 64], "data": np.ones(64).tolist()}
    for _ in range(times):
        url = f"{server.http}/v2/models/mlp/infer"
        assert server.client.post(url, json={"inputs": [tensor]}).status_code == 200


def test_what_was_counted_without_a_link_is_there_with_its_own_times(tmp_path: Path) -> None:
    deploy_tools.vmagent()  # skips where there is none
    port, waiting = free_port(), tmp_path / "waiting"
    model = onnx_models.mlp(tmp_path / "mlp.onnx")
    flags = ["--metrics-push", f"http://127.0.0.1:{port}/opentelemetry/v1/metrics"]
    flags += ["--metrics-push-secs", "0.5", "--metrics-push-folder", str(waiting)]

    def kept() -> int:
        return len(list(waiting.glob("*.gz")))

    with Server("--model", model, *flags) as server:
        for _ in range(3):
            ask(server, 4)
            until(partial(lambda had: kept() > had, kept() + 1), "nothing is kept", 30)
        begun = time.time()
        with prometheus(tmp_path / "prometheus", port) as there:
            counted = f'{COUNTER}_total{{model="mlp"}}'
            until(lambda: there.value(counted) == 12, "the count does not arrive", 60, server.log)
            ask(server, 5)
            until(lambda: there.value(counted) == 17, "the count does not go on", 60, server.log)
            timed = 'ds_request_seconds_count{model="mlp"}'
            until(lambda: there.value(timed) == 17, "no histogram", 60, server.log)
            (series,) = there.ask("query", query=f"{counted}[10m]")
        assert "metrics that were kept have been sent" in server.log()
    before = [float(value) for when, value in series["values"] if float(when) < begun]
    assert len(before) >= 6, "snapshots of before keep their times"
    assert before == sorted(before)
    assert {4, 8, 12} <= set(before), "and what was counted by then"
    assert series["metric"]["service_name"] == "ds-serve"
