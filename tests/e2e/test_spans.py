"""OpenTelemetry's spans of a running server, as a collector gets them."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import onnx_models
import pytest
import tritonclient.grpc as triton_grpc
from collecting import Collector, attributes
from serving import PROGRAM, Server, until
from tritonclient.utils import InferenceServerException

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNTRACED = "00-1bf7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
STAGES = ["compute_infer", "compute_input", "compute_output", "queue"]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = onnx_models.mlp(tmp_path_factory.mktemp("spans") / "mlp.onnx")
    # Only callers that trace, and one of a million others.
    flags = ["--otlp-endpoint", collector.address, "--trace-rate", "1000000"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        with Server("--model", model, *flags) as server:
            yield server


def ask(server: Server, parent: str, request_id: str, rows: int = 1) -> httpx2.Response:
    data = [[0.5] * 64] * rows
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 64], "data": data}
    return httpx2.post(
        f"{server.http}/v2/models/mlp/infer",
        json={"id": request_id, "inputs": [tensor]},
        headers={"traceparent": parent},
    )


def test_a_traced_callers_request_is_a_span_below_the_callers(
    server: Server, collector: Collector
) -> None:
    assert ask(server, PARENT, "traced").status_code == 200
    until(lambda: bool(collector.roots(id="traced")), "no span came")
    (root,) = collector.roots(id="traced")
    assert root.trace_id.hex() == PARENT.split("-")[1]
    assert root.parent_span_id.hex() == PARENT.split("-")[2]
    assert attributes(root) == {"model_name": "mlp", "model_version": "1", "id": "traced"}
    below = sorted(collector.below(root), key=lambda span: str(span.name))
    assert [span.name for span in below] == STAGES
    for span in below:
        assert root.start_time_unix_nano <= span.start_time_unix_nano
        assert span.start_time_unix_nano <= span.end_time_unix_nano <= root.end_time_unix_nano
    assert collector.services == {"ds-serve"}


def test_a_request_that_fails_is_a_span_with_its_error(
    server: Server, collector: Collector
) -> None:
    assert ask(server, PARENT, "", rows=2).status_code == 400
    until(lambda: any(span.status.code == 2 for span in collector.roots()), "no span came")
    (root,) = (span for span in collector.roots() if span.status.code == 2)
    assert "tensor 'x'" in root.status.message
    assert collector.below(root) == []


def test_a_caller_that_does_not_trace_is_not_traced(server: Server, collector: Collector) -> None:
    assert ask(server, UNTRACED, "untraced").status_code == 200
    assert ask(server, "nonsense", "nonsense").status_code == 200
    assert ask(server, PARENT, "after").status_code == 200
    until(lambda: bool(collector.roots(id="after")), "no span came")
    assert collector.roots(id="untraced") == collector.roots(id="nonsense") == []


def test_the_mode_is_told(server: Server) -> None:
    settings = httpx2.get(f"{server.http}/v2/trace/setting").json()
    assert settings["trace_mode"] == "opentelemetry"
    assert not any("endpoint" in name for name in settings)
    assert json.dumps(settings)


@pytest.mark.parametrize("streamed", [False, True])
def test_callers_over_grpc(server: Server, collector: Collector, streamed: bool) -> None:
    tensor = triton_grpc.InferInput("x", [1, 64], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 64), np.float32))
    name, headers = f"grpc-{streamed}", {"traceparent": PARENT}
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        if streamed:
            answered = threading.Event()
            client.start_stream(lambda result, error: answered.set(), headers=headers)
            client.async_stream_infer("mlp", [tensor], request_id=name)
            assert answered.wait(30)
            client.stop_stream()
        else:
            client.infer("mlp", [tensor], request_id=name, headers=headers)
    until(lambda: bool(collector.roots(id=name)), "no span came")
    (root,) = collector.roots(id=name)
    assert root.trace_id.hex() == PARENT.split("-")[1]
    assert sorted(span.name for span in collector.below(root)) == STAGES


def test_a_call_that_fails_over_grpc(server: Server, collector: Collector) -> None:
    tensor = triton_grpc.InferInput("x", [1, 3], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 3), np.float32))
    with (
        triton_grpc.InferenceServerClient(server.grpc) as client,
        pytest.raises(InferenceServerException),
    ):
        client.infer("mlp", [tensor], headers={"traceparent": PARENT})
    until(
        lambda: any("[1, 3]" in span.status.message for span in collector.roots()),
        "no span came",
    )


def test_an_address_that_is_none(tmp_path: Path) -> None:
    model = onnx_models.mlp(tmp_path / "mlp.onnx")
    command = [str(PROGRAM), "--model", str(model), "--otlp-endpoint", "localhost:4318"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "--otlp-endpoint localhost:4318: it must be an address" in done.stderr


@pytest.mark.slow
def test_a_server_of_grpcios_and_a_stream_that_is_older_than_the_tracing(
    collector: Collector, tmp_path: Path
) -> None:
    """Without tracing nobody looks whose span a call belongs to; a stream's is known later too."""
    model = onnx_models.mlp(tmp_path / "mlp.onnx")
    flags = ["--otlp-endpoint", collector.address, "--grpc-server", "grpcio"]
    tensor = triton_grpc.InferInput("x", [1, 64], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 64), np.float32))
    headers = {"traceparent": PARENT}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        server = Server("--model", model, *flags, "--trace-rate", "1000000")
        with server, triton_grpc.InferenceServerClient(server.grpc) as client:
            answered = threading.Semaphore(0)
            client.update_trace_settings(settings={"trace_level": ["OFF"]})
            client.start_stream(lambda result, error: answered.release(), headers=headers)
            client.infer("mlp", [tensor], request_id="before", headers=headers)
            client.async_stream_infer("mlp", [tensor], request_id="stream-before")
            assert answered.acquire(timeout=30)
            client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]})
            client.infer("mlp", [tensor], request_id="later", headers=headers)
            client.async_stream_infer("mlp", [tensor], request_id="stream-later")
            assert answered.acquire(timeout=30)
            client.stop_stream()
            for name in ("later", "stream-later"):
                until(lambda name=name: bool(collector.roots(id=name)), "no span came", 10)
                (root,) = collector.roots(id=name)
                assert root.parent_span_id.hex() == PARENT.split("-")[2]
    for name in ("before", "stream-before"):
        assert collector.roots(id=name) == []
