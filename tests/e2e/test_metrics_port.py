"""The metrics on a port of their own."""

from __future__ import annotations

import socket
from pathlib import Path

import onnx_models
import pytest
from serving import Server


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@pytest.mark.slow
def test_the_metrics_are_on_both_ports(tmp_path: Path, port: int) -> None:
    model = onnx_models.mlp(tmp_path / "mlp.onnx")
    flags = ["--metrics-port", str(port), "--gateways", "2"]
    with Server("--model", model, *flags) as server:
        alone = f"http://127.0.0.1:{port}"
        packed = {"Accept-Encoding": "gzip"}
        for url in (alone, server.http):
            answer = server.client.get(f"{url}/metrics", headers=packed)
            assert answer.headers["content-encoding"] == "gzip"
            assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
            assert "nv_inference_request_success" in answer.text
        assert server.client.get(f"{alone}/v2").status_code == 404
        assert server.stop() == 0


def test_a_metrics_port_in_use_is_noticed(tmp_path: Path) -> None:
    model = onnx_models.mlp(tmp_path / "mlp.onnx")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        server = Server("--model", model, "--metrics-port", str(number))
        try:
            assert server.start().process.wait(30) == 2
            assert f"port {number} on 127.0.0.1 is in use" in server.log()
            assert "--metrics-port" in server.log()
        finally:
            server.close()
