"""Traces of a running server, over each protocol."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_models
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from serving import Server, until

from ds_client import AsyncClient

IN_ORDER = [
    "REQUEST_START",
    "QUEUE_START",
    "COMPUTE_START",
    "COMPUTE_INPUT_END",
    "COMPUTE_OUTPUT_START",
    "COMPUTE_END",
    "REQUEST_END",
]
ROWS = np.zeros((2, 64), np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traces")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    model = onnx_models.mlp(folder / "mlp.onnx")
    flags = ["--trace-file", folder / "trace.json", "--trace-rate", "1", "--gateways", "2"]
    with Server("--model", model, *flags) as server:
        yield server


def traces(path: Path) -> dict[str, dict[str, int]]:
    """The request's own id to its timestamps by name, in the file's order."""
    found: dict[int, dict[str, int]] = {}
    names: dict[int, str] = {}
    for record in json.loads(path.read_text()):
        if "model_name" in record:
            assert (record["model_name"], record["model_version"]) == ("mlp", 1)
            names[record["id"]] = record.get("request_id", "")
        else:
            assert record["id"] not in found
            found[record["id"]] = {mark["name"]: mark["ns"] for mark in record["timestamps"]}
    assert list(names) == list(found) == list(range(1, len(found) + 1))
    return {names[number]: times for number, times in found.items()}


def trace_of(folder: Path, request_id: str) -> dict[str, int]:
    path = folder / "trace.json"
    until(lambda: request_id in traces(path), "the trace is not written", 10)
    return traces(path)[request_id]


def check(times: dict[str, int], names: list[str], begun: int, ended: int) -> None:
    assert list(times) == names
    values = list(times.values())
    assert values == sorted(values)
    assert begun <= values[0] <= values[-1] <= ended


def test_over_http(server: Server, folder: Path) -> None:
    tensor = triton_http.InferInput("x", ROWS.shape, "FP32")
    tensor.set_data_from_numpy(ROWS)
    with triton_http.InferenceServerClient(server.http_address) as client:
        begun = time.monotonic_ns()
        client.infer("mlp", [tensor], request_id="over-http")
        ended = time.monotonic_ns()
    names = ["HTTP_RECV_START", "HTTP_RECV_END", *IN_ORDER, "HTTP_SEND_START", "HTTP_SEND_END"]
    # The client may have its answer before the server has noted that it is sent.
    check(trace_of(folder, "over-http"), names, begun, ended + 1_000_000_000)


GRPC = [
    "GRPC_WAITREAD_START", "GRPC_WAITREAD_END", *IN_ORDER, "GRPC_SEND_START", "GRPC_SEND_END"
]  # fmt: skip


def test_over_grpc(server: Server, folder: Path) -> None:
    tensor = triton_grpc.InferInput("x", ROWS.shape, "FP32")
    tensor.set_data_from_numpy(ROWS)
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        begun = time.monotonic_ns()
        client.infer("mlp", [tensor], request_id="over-grpc")
        ended = time.monotonic_ns()
    check(trace_of(folder, "over-grpc"), GRPC, begun, ended)


async def test_over_a_stream(server: Server, folder: Path) -> None:
    async with AsyncClient(server.grpc) as client:
        begun = time.monotonic_ns()
        replies = [reply async for reply in client.stream("mlp", [{"x": ROWS}] * 3)]
    assert len(replies) == 3
    for index in ("0", "1", "2"):
        times = await asyncio.to_thread(trace_of, folder, index)
        check(times, GRPC, begun, time.monotonic_ns())


def test_refused_requests_leave_no_trace(server: Server, folder: Path) -> None:
    body: dict[str, Any] = {"id": "refused", "inputs": []}
    answer = server.client.post(f"{server.http}/v2/models/mlp/infer", json=body)
    assert answer.status_code == 400
    data = {"name": "x", "datatype": "FP32", "shape": [1, 64], "data": [0.0] * 64}
    body = {"id": "after", "inputs": [data]}
    answer = server.client.post(f"{server.http}/v2/models/mlp/infer", json=body)
    assert answer.status_code == 200
    trace_of(folder, "after")
    assert "refused" not in traces(folder / "trace.json")


@pytest.mark.slow
def test_what_was_traced_last_is_written_at_the_end(tmp_path: Path) -> None:
    model = onnx_models.mlp(tmp_path / "mlp.onnx")
    flags = ["--trace-file", tmp_path / "trace.json", "--trace-rate", "2"]
    with Server("--model", model, *flags) as server:
        data = {"name": "x", "datatype": "FP32", "shape": [1, 64], "data": [0.0] * 64}
        for number in range(4):
            body = {"id": str(number), "inputs": [data]}
            server.client.post(f"{server.http}/v2/models/mlp/infer", json=body)
        assert server.stop() == 0
    assert list(traces(tmp_path / "trace.json")) == ["1", "3"]


@pytest.mark.slow
def test_a_trace_file_that_cannot_be_written_ends_the_start(tmp_path: Path) -> None:
    model = onnx_models.mlp(tmp_path / "mlp.onnx")
    server = Server("--model", model, "--trace-file", tmp_path / "no" / "t.json").start()
    try:
        assert server.process.wait(30) == 2
        assert "t.json cannot be written: No such file or directory" in server.log()
    finally:
        server.close()
