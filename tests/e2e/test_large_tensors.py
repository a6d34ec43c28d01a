"""Tensors of hundreds of kilobytes: they lie in memory that gateway and worker share."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_models
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from onnx import TensorProto, helper
from serving import Server, until

SIZE = 150_000
Array = np.ndarray[Any, np.dtype[np.float32]]


def means(path: Path) -> Path:
    """x FP32[batch, 150000] to y FP32[batch, 2]: its mean, and its last element."""
    return onnx_models.save(
        path,
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1], keepdims=1),
            helper.make_node("Slice", ["x", "start", "stop", "axis"], ["last"]),
            helper.make_node("Concat", ["mean", "last"], ["y"], axis=1),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [
            onnx.numpy_helper.from_array(np.array([value]), name)
            for name, value in (("start", SIZE - 1), ("stop", SIZE), ("axis", 1))
        ],
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server("--model", means(tmp_path_factory.mktemp("large") / "means.onnx")) as server:
        yield server


def by_http(server: Server, row: Array) -> Array:
    with triton_http.InferenceServerClient(server.http_address, network_timeout=60) as client:
        tensor = triton_http.InferInput("x", list(row.shape), "FP32")
        tensor.set_data_from_numpy(row, binary_data=True)
        return client.infer("means", [tensor]).as_numpy("y")


def by_json(server: Server, row: Array) -> Array:
    with triton_http.InferenceServerClient(server.http_address, network_timeout=60) as client:
        tensor = triton_http.InferInput("x", list(row.shape), "FP32")
        tensor.set_data_from_numpy(row, binary_data=False)
        return client.infer("means", [tensor]).as_numpy("y")


def by_grpc(server: Server, row: Array) -> Array:
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        tensor = triton_grpc.InferInput("x", list(row.shape), "FP32")
        tensor.set_data_from_numpy(row)
        return client.infer("means", [tensor]).as_numpy("y")


def rows(seed: int) -> Array:
    random = np.random.default_rng(seed)
    return random.random((1 + seed % 3, SIZE), np.float32)


def is_right(given: Array, answer: Array) -> bool:
    wanted = np.stack([given.mean(axis=1), given[:, -1]], axis=1)
    return bool(np.allclose(answer, wanted, rtol=1e-4))


@pytest.mark.parametrize("ask", [by_http, by_grpc, pytest.param(by_json, marks=pytest.mark.slow)])
def test_many_at_once_are_each_answered_right(server: Server, ask: Any) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda seed: is_right(rows(seed), ask(server, rows(seed))), range(40))
        assert all(answers)


def shared(pid: int) -> int:
    """Kilobytes of the memory that gateways and workers share which this process has touched."""
    text = Path(f"/proc/{pid}/smaps").read_text()
    found = re.findall(r"memfd:ds-serve.*?Rss:\s+(\d+) kB", text, re.DOTALL)
    return sum(map(int, found))


@pytest.mark.parametrize("ask", [by_http, by_grpc])
def test_the_worker_reads_them_where_they_lie(server: Server, ask: Any) -> None:
    assert is_right(rows(3), ask(server, rows(3)))
    assert shared(server.gateways()[0]) >= SIZE * 4 // 1024
    assert shared(server.worker("means")) >= SIZE * 4 // 1024


def begin(server: Server, sent: int) -> socket.socket:
    """A request of which the last byte never comes."""
    host, _, port = server.http_address.rpartition(":")
    made = socket.create_connection((host, int(port)), timeout=30)
    head = (
        "POST /v2/models/means/infer HTTP/1.1\r\nHost: x\r\n"
        f"Inference-Header-Content-Length: 100\r\nContent-Length: {sent + 1}\r\n\r\n"
    )
    made.sendall(head.encode() + bytes(sent))
    return made


def test_clients_that_leave_give_their_memory_back(server: Server) -> None:
    """Were it kept, 40 bodies of 8 MB would not fit, and all that came later would not either."""
    before = shared(server.gateways()[0])
    for _ in range(40):
        with contextlib.closing(begin(server, 8_000_000)):
            pass
    until(lambda: server.metric("ds_gateway_in_flight_requests") == 0, "they are still counted")
    assert is_right(rows(1), by_http(server, rows(1)))
    assert shared(server.gateways()[0]) <= before + 3 * 8_000


def test_a_bad_request_gives_its_memory_back(server: Server) -> None:
    for _ in range(200):
        with triton_http.InferenceServerClient(server.http_address) as client:
            tensor = triton_http.InferInput("x", [1, SIZE + 1], "FP32")
            tensor.set_data_from_numpy(np.zeros((1, SIZE + 1), np.float32))
            with pytest.raises(Exception, match="has shape"):
                client.infer("means", [tensor])
    assert shared(server.gateways()[0]) < 100_000


def test_a_new_worker_reads_them_too(server: Server) -> None:
    worker = server.worker("means")
    os.kill(worker, signal.SIGKILL)
    until(
        lambda: server.ready() and server.workers().get("means", worker) != worker,
        "it did not come back",
    )
    assert is_right(rows(2), by_http(server, rows(2)))
    assert shared(server.worker("means")) >= 2 * SIZE * 4 // 1024
