"""Bytes that mean nothing, or almost something: an answer to each, and the server goes on."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import wire
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import Server
from slow_requests import call

from ds_proto import grpc_service_pb2 as pb
from ds_proto.service import SERVICE

fuzzed = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(autouse=True)
def goes_on(tensors: Server):
    """The same processes answer afterwards, and none has logged a traceback."""
    before = tensors.gateways(), tensors.workers()
    yield
    x = {"name": "x", "datatype": "FP32", "shape": [1, 1, 1], "data": [2]}
    answer = tensors.client.post(f"{tensors.http}/v2/models/sequences/infer", json={"inputs": [x]})
    assert answer.json()["outputs"][0]["data"] == [4]
    assert (tensors.gateways(), tensors.workers()) == before
    assert "Traceback" not in tensors.log()


def right(array: Any) -> tuple[bytes, bytes]:
    """The JSON and the binary part of a request to `sequences`."""
    about = {"name": "x", "datatype": "FP32", "shape": array.shape}
    about["parameters"] = {"binary_data_size": array.nbytes}
    return json.dumps({"inputs": [about], "id": "f", "outputs": []}).encode(), array.tobytes()


arrays = st.sampled_from([(1, 1, 1), (2, 3, 4), (1, 0, 5)]).map(
    lambda shape: np.ones(shape, np.float32)
)


def post(server: Server, body: bytes, headers: dict[str, str]) -> None:
    answer = server.client.post(
        f"{server.http}/v2/models/sequences/infer", content=body, headers=headers
    )
    assert answer.status_code in (200, 400, 501), answer.text
    assert answer.status_code == 200 or answer.json()["error"]


@fuzzed
@given(data=st.data(), array=arrays)
def test_http_bodies_that_were_changed(tensors: Server, data: st.DataObject, array: Any) -> None:
    head, raw = right(array)
    body = data.draw(wire.mutated(head + raw))
    post(tensors, body, {"Inference-Header-Content-Length": str(len(head))})


@fuzzed
@given(body=st.binary(max_size=200), length=st.none() | st.integers(0, 300))
def test_http_bodies_of_any_bytes(tensors: Server, body: bytes, length: int | None) -> None:
    headers = {} if length is None else {"Inference-Header-Content-Length": str(length)}
    post(tensors, body, headers)


REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
}


def message(array: Any) -> Any:
    made = pb.ModelInferRequest(model_name="sequences", id="f")
    made.inputs.add(name="x", datatype="FP32", shape=array.shape)
    made.raw_input_contents.append(array.tobytes())
    return made


@pytest.fixture(scope="module")
def channel(tensors: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(tensors.grpc) as channel:
        yield channel


@fuzzed
@given(data=st.data(), array=arrays)
def test_grpc_messages_that_were_changed(
    channel: grpc.Channel, data: st.DataObject, array: Any
) -> None:
    changed = data.draw(wire.mutated(message(array).SerializeToString()))
    try:
        channel.unary_unary(f"/{SERVICE}/ModelInfer")(changed)
    except grpc.RpcError as error:
        assert error.code() in REFUSALS, error  # noqa: PT017


@pytest.mark.parametrize("port", ["http", "grpc"])
@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\0" * 100,
        b"GET",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v2/models/mlp/infer HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v2/models/mlp/infer HTTP/1.1\r\nContent-Length: 10\r\n\r\nab",
        b"POST /v2/models/mlp/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v2/models/mlp/infer HTTP/1.1\r\n" + b"X: " + b"a" * 100_000 + b"\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        np.random.default_rng(0).bytes(10_000),
    ],
    ids=lambda said: repr(said[:30]),
)
def test_what_is_no_request_at_all(tensors: Server, port: str, said: bytes) -> None:
    """On either port; the connection is closed by one end or the other, and that is all."""
    host, _, number = (tensors.http_address if port == "http" else tensors.grpc).rpartition(":")
    for _ in range(3):
        with (
            contextlib.suppress(ConnectionError, TimeoutError),
            socket.create_connection((host, int(number)), timeout=0.2) as connection,
        ):
            connection.sendall(said)
            connection.recv(1000)


def test_a_client_that_leaves_in_the_middle_of_a_stream(tensors: Server) -> None:
    for _ in range(5):
        channel = grpc.insecure_channel(tensors.grpc)
        stream = channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            pb.ModelInferRequest.SerializeToString,
            pb.ModelStreamInferResponse.FromString,
        )
        answers = stream(iter([message(np.ones((1, 2, 3), np.float32))] * 50))
        assert next(answers).infer_response.id == "f"
        channel.close()
    with grpc.insecure_channel(tensors.grpc) as channel:
        assert call(channel, "ServerReady")(pb.ServerReadyRequest()).ready
