"""Streams are the same whatever carries them."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx_models
import pytest
from serving import Server, until

from ds_proto import grpc_service_pb2 as pb
from ds_proto.service import METHODS

CARRIERS = [
    "native",
    pytest.param("grpcio", marks=pytest.mark.slow),
    pytest.param(
        "pyvoy",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(not find_spec("pyvoy"), reason="pyvoy is not installed"),
        ],
    ),
]
HOLD_SECONDS = 2.0
"""How long the model `held` waits for a batch of 64."""


@pytest.fixture(scope="module", params=CARRIERS)
def server(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("carried")
    model = onnx_models.mlp(folder / "mlp.onnx")
    flags = ["--grpc-server", request.param, "--max-request-bytes", "1000000"]
    delay = str(round(HOLD_SECONDS * 1e6))
    with Server("--model", f"held={model}", "--batch-delay-us", delay, *flags) as running:
        yield running


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc) as made:
        yield made


def message(number: int = 0, rows: int = 64) -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(model_name="held", id=str(number))
    made.inputs.add(name="x", datatype="FP32", shape=[rows, 64])
    made.raw_input_contents.append(np.zeros((rows, 64), np.float32).tobytes())
    return made


def stream(channel: grpc.Channel) -> Any:
    method = METHODS["ModelStreamInfer"]
    return channel.stream_stream(
        method.path, method.request.SerializeToString, method.response.FromString
    )


def counted(server: Server) -> dict[str, int]:
    (found,) = server.client.get(f"{server.http}/v2/models/held/stats").json()["model_stats"]
    return {name: found["inference_stats"][name]["count"] for name in ("success", "fail")}


def test_more_requests_than_a_stream_may_hold(channel: grpc.Channel) -> None:
    answers = list(stream(channel)(message(number) for number in range(3000)))
    assert {answer.error_message for answer in answers} == {""}
    assert {int(answer.infer_response.id) for answer in answers} == set(range(3000))


def test_compressed_requests(channel: grpc.Channel) -> None:
    (answer,) = stream(channel)(iter([message()]), compression=grpc.Compression.Gzip)
    assert answer.infer_response.outputs[0].shape == [64, 8]


def unary(channel: grpc.Channel) -> Any:
    method = METHODS["ModelInfer"]
    return channel.unary_unary(
        method.path, method.request.SerializeToString, method.response.FromString
    )


def test_compressed_calls(server: Server, channel: grpc.Channel) -> None:
    answer = unary(channel)(message(), compression=grpc.Compression.Gzip)
    assert answer.outputs[0].shape == [64, 8]
    if carrier(server) == "grpcio":
        answer = unary(channel)(message(), compression=grpc.Compression.Deflate)
        assert answer.outputs[0].shape == [64, 8]
    else:
        with pytest.raises(grpc.RpcError, match="deflate") as refused:
            unary(channel)(message(), compression=grpc.Compression.Deflate)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_what_is_beyond_the_limit_is_refused(server: Server, channel: grpc.Channel) -> None:
    """grpcio has words of its own."""
    with pytest.raises(grpc.RpcError) as refused:
        unary(channel)(message(rows=4000))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    if carrier(server) != "grpcio":
        assert "the limit is 1,000,000 (--max-request-bytes)" in refused.value.details()


def test_what_unpacks_beyond_the_limit_is_refused(server: Server, channel: grpc.Channel) -> None:
    """pygrpc-native has unpacked it by then; grpcio has not."""
    bomb = message()
    bomb.raw_input_contents[0] = bytes(400_000_000 if carrier(server) == "grpcio" else 50_000_000)
    with pytest.raises(grpc.RpcError) as refused:
        unary(channel)(bomb, compression=grpc.Compression.Gzip)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    if carrier(server) == "grpcio":
        assert max(most_memory(pid) for pid in server.gateways()) < 400_000_000


@pytest.mark.slow
def test_answers_leave_compressed_if_wanted(tmp_path: Path) -> None:
    flags = ["--grpc-server", "grpcio", "--grpc-infer-response-compression-level", "high"]
    with Server("--model", onnx_models.mlp(tmp_path / "held.onnx"), *flags) as server:
        with grpc.insecure_channel(server.grpc) as channel:
            assert unary(channel)(message()).outputs[0].shape == [64, 8]
        # 64 equal rows, 2,048 bytes: what grpcio says tells whether they came so.
        options = [("grpc.max_receive_message_length", 1000)]
        with (
            grpc.insecure_channel(server.grpc, options=options) as small,
            pytest.raises(grpc.RpcError, match="Decompressed message larger than max"),
        ):
            unary(small)(message())


def carrier(server: Server) -> str:
    return server.arguments[server.arguments.index("--grpc-server") + 1]


def most_memory(pid: int) -> int:
    """Bytes that a process has had at the most."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def test_a_message_beyond_the_limit_ends_the_stream(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as error:
        list(stream(channel)(iter([message(rows=5000)])))
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_stream_past_its_deadline_ends(channel: grpc.Channel) -> None:
    done = threading.Event()

    def requests() -> Iterator[pb.ModelInferRequest]:
        yield message()
        done.wait(20)

    with pytest.raises(grpc.RpcError) as error:
        for _ in stream(channel)(requests(), timeout=0.5):
            pass
    done.set()
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("half_closed", [False, True])
def test_what_a_client_cancels_is_not_run(
    server: Server, channel: grpc.Channel, half_closed: bool
) -> None:
    before = counted(server)
    cancelled = threading.Event()

    def requests() -> Iterator[pb.ModelInferRequest]:
        yield message(rows=1)
        if not half_closed:
            cancelled.wait(20)

    call = stream(channel)(requests())
    time.sleep(HOLD_SECONDS / 10)
    call.cancel()
    cancelled.set()
    until(lambda: counted(server) != before, "the request is neither answered nor dropped", 20)
    assert counted(server)["success"] == before["success"]


@pytest.mark.slow
def test_a_stream_is_drained(server: Server, tmp_path: Any) -> None:
    """What is in flight when the server is told to stop is answered."""
    carrier = server.arguments[server.arguments.index("--grpc-server") + 1]
    model = onnx_models.mlp(tmp_path / "mlp.onnx")
    flags = ["--batch-delay-us", "2000000", "--grpc-server", carrier]
    with (
        Server("--model", f"held={model}", *flags) as draining,
        grpc.insecure_channel(draining.grpc) as channel,
    ):
        call = stream(channel)(iter([message(number, rows=1) for number in range(5)]))
        time.sleep(0.5)
        os.kill(draining.process.pid, signal.SIGTERM)
        assert {answer.error_message for answer in call} == {""}
        assert draining.process.wait(30) == 0


@pytest.mark.slow
def test_an_idle_stream_does_not_hold_the_server_up(server: Server, tmp_path: Any) -> None:
    carrier = server.arguments[server.arguments.index("--grpc-server") + 1]
    flags = ["--drain-timeout", "200", "--grpc-server", carrier]
    closed = threading.Event()

    def requests() -> Iterator[pb.ModelInferRequest]:
        yield message(1, rows=1)
        closed.wait(200)

    with (
        Server("--model", f"held={onnx_models.mlp(tmp_path / 'mlp.onnx')}", *flags) as ending,
        grpc.insecure_channel(ending.grpc) as channel,
    ):
        call = stream(channel)(requests())
        assert next(call).error_message == ""
        os.kill(ending.process.pid, signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as error:
            list(call)
        closed.set()
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert ending.process.wait(100) == 0
