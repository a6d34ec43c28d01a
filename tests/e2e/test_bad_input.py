"""Whatever a client sends: a clear error that names what is wrong, and the server goes on."""

from __future__ import annotations

import re
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import orjson
import pytest
from onnx_models import lookup, mlp
from serving import Server
from slow_requests import call, statistics

from ds_proto import grpc_service_pb2 as pb

LIMIT = 1_000_000
TWO_GB = 2 * 1024**3


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """`mlp` takes x FP32[-1, 64] and at most 8 rows; `lookup` waits up to 0.3 s for a batch."""
    folder = tmp_path_factory.mktemp("bad-input")
    mlp(folder / "mlp" / "model.onnx")
    (folder / "mlp" / "config.pbtxt").write_text("max_batch_size: 8")
    lookup(folder / "lookup" / "model.onnx")
    (folder / "lookup" / "config.pbtxt").write_text(
        "max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 300000 }"
    )
    models = ["--model", folder / "mlp", "--model", folder / "lookup"]
    with Server(*models, "--max-request-bytes", str(LIMIT)) as server:
        yield server


@pytest.fixture(autouse=True)
def goes_on(server):
    """The server answers after whatever the test did, and has logged no traceback."""
    yield
    answer = _post(server, _body())
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["shape"] == [1, 8]
    assert server.ready()
    assert "Traceback" not in server.log()


def _body(**changes):
    """A right request to `mlp`, but for the changes to its input."""
    x = {"name": "x", "datatype": "FP32", "shape": [1, 64], "data": [0.5] * 64}
    return {"inputs": [x | changes]}


def _post(server, body, path="/v2/models/mlp/infer", headers=()):
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    return server.client.post(server.http + path, content=content, headers=dict(headers))


def _check(answer, status, says):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert re.search(says, error), error
    assert "Traceback" not in error
    assert 'File "' not in error


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/v2/models/nobody/infer", "'nobody'.*mlp"),
        ("/v2/models/mlp/versions/7/infer", "'mlp'.*'7'.*'1'"),
        ("/v2/models/mlp/nowhere", "/v2/models/mlp/nowhere"),
    ],
)
def test_path_that_leads_nowhere(server, path, says):
    _check(_post(server, _body(), path), 404, says)


@pytest.mark.parametrize("path", ["", "/ready", "/config", "/stats", "/versions/1"])
def test_unknown_model_is_unknown_to_every_route(server, path):
    _check(server.get(f"/v2/models/nobody{path}"), 404, "'nobody'")
    assert server.get(f"/v2/models/mlp{path}").status_code == 200


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"datatype": "INT32", "data": [1] * 64}, "'x'.*FP32.*INT32"),
        ({"datatype": "FLOAT"}, "'x'.*FLOAT"),
        ({"shape": [1, 63], "data": [0.5] * 63}, r"'x'.*\[-1, 64\].*\[1, 63\]"),
        ({"shape": [64]}, r"'x'.*\[-1, 64\].*\[64\]"),
        ({"shape": [-1, 64]}, r"'x'.*-1"),
        ({"shape": [0, 64], "data": []}, "0 rows.*1 to 8"),
        ({"shape": [9, 64], "data": [0.5] * 576}, "9 rows.*1 to 8"),
        ({"shape": [2**62, 64]}, "'x'"),
        ({"data": [0.5] * 63}, "'x'.*63"),
        ({"data": ["much"] * 64}, "'x'"),
        ({"data": None}, "'x'.*data"),
        ({"name": "z"}, "no input 'z'.*: x"),
        ({"parameters": {"binary_data_size": 256}}, "'x'.*both"),
        ({"parameters": {"shared_memory_region": "r"}, "data": None}, "shared_memory_byte_size"),
    ],
)
def test_input_that_does_not_fit_the_model(server, changes, says):
    _check(_post(server, _body(**changes)), 400, says)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"[1, 2]", "JSON"),
        (b'{"inputs": [{"name": "x"}]}', "datatype"),
        (b'{"inputs": "x"}', "inputs"),
        (b'\xff{"inputs": []}', "JSON"),
        (b"[" * 100_000, "JSON"),
        ({}, "'x'.*missing"),
        ({"inputs": _body()["inputs"] * 2}, "'x' is there twice"),
        (_body() | {"outputs": [{"name": "z"}]}, "no output 'z'.*: y"),
        (_body() | {"outputs": [{"name": "y"}] * 2}, "output.*twice"),
    ],
)
def test_request_that_is_none(server, body, says):
    _check(_post(server, body), 400, says)


def _binary(size=256, raw=bytes(256), header=None):
    """A binary request: its head says `size` bytes, `raw` follows."""
    body = _body(parameters={"binary_data_size": size})
    del body["inputs"][0]["data"]
    head = orjson.dumps(body)
    length = len(head) if header is None else header
    return head + raw, {"Inference-Header-Content-Length": str(length)}


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (_binary(raw=bytes(255)), "'x'.*256.*255"),
        (_binary(raw=bytes(257)), "1 bytes follow"),
        (_binary(size=252, raw=bytes(252)), "'x'.*25[26]"),
        (_binary(size=-4), "'x'.*binary_data_size is -4"),
        (_binary(size="many"), "'x'.*'many'"),
        (_binary(header=20), "JSON"),
        (_binary(header=100_000), "Inference-Header-Content-Length.*100000"),
        (_binary(header=-1), "Inference-Header-Content-Length.*-1"),
        (_binary(header="ten"), "Inference-Header-Content-Length.*ten"),
        (_binary(header=10**30), "Inference-Header-Content-Length"),
    ],
)
def test_binary_body_that_does_not_add_up(server, request_, says):
    body, headers = request_
    _check(_post(server, body, headers=headers), 400, says)


def test_binary_body_that_does_add_up(server):
    body, headers = _binary()
    assert _post(server, body, headers=headers).status_code == 200


def _memory(pid, field="VmHWM"):
    """Bytes of the process, at most so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) * 1024


@pytest.mark.parametrize(
    "flags",
    [
        ["-T", "FILE"],
        ["-T", "FILE", "-H", "Expect:"],
        ["-T", "-", "-H", "Expect:"],
        ["-T", "-", "-H", "Transfer-Encoding: chunked"],
    ],
    ids=["announced", "announced and sent at once", "in chunks", "in chunks, asking first"],
)
def test_body_of_two_gigabytes(server, tmp_path, flags):
    """It is refused without being kept in memory."""
    sparse = tmp_path / "large"
    with sparse.open("wb") as file:
        file.truncate(TWO_GB)
    (gateway,) = server.gateways()
    before = _memory(gateway)
    url = f"{server.http}/v2/models/mlp/infer"
    flags = [str(sparse) if flag == "FILE" else flag for flag in flags]
    with sparse.open("rb") as stdin:
        done = subprocess.run(
            ["curl", "-sS", "-X", "POST", *flags, "-w", "\n%{http_code}", url],
            stdin=stdin,
            capture_output=True,
            timeout=60,
            check=False,
        )
    answer, _, status = done.stdout.decode().rpartition("\n")
    assert status == "413", done
    assert "1,000,000 (--max-request-bytes)" in orjson.loads(answer)["error"]
    assert _memory(gateway) - before < 100 * 1024**2


def test_body_just_above_the_limit(server):
    answer = _post(server, bytes(LIMIT + 1))
    _check(answer, 413, "1,000,001.*1,000,000")
    assert "retry-after" not in answer.headers
    _check(_post(server, bytes(LIMIT)), 400, "JSON")


# gRPC: the same checks stand behind it, so one of each kind is enough.


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.grpc) as channel:
        yield channel


def _message(model="mlp", version="", shape=(1, 64), raw=bytes(256), **changes):
    made = pb.ModelInferRequest(model_name=model, model_version=version)
    x = {"name": "x", "datatype": "FP32"} | changes
    made.inputs.add(shape=shape, **x)
    made.raw_input_contents.append(raw)
    return made


def _with_output(name):
    made = _message()
    made.outputs.add(name=name)
    return made


def _without_raw():
    made = _message()
    made.inputs.add(name="z", datatype="FP32", shape=[1])
    return made


WRONG = grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("message", "code", "says"),
    [
        (_message("nobody"), grpc.StatusCode.NOT_FOUND, "'nobody'.*mlp"),
        (_message(version="7"), grpc.StatusCode.NOT_FOUND, "'mlp'.*'7'.*'1'"),
        (_message(datatype="INT32"), WRONG, "'x'.*FP32.*INT32"),
        (_message(shape=(1, 63), raw=bytes(252)), WRONG, r"'x'.*\[-1, 64\].*\[1, 63\]"),
        (_message(shape=(9, 64), raw=bytes(9 * 256)), WRONG, "9 rows.*1 to 8"),
        (_message(raw=bytes(255)), WRONG, "'x'.*25[56]"),
        (_message(name="z"), WRONG, "no input 'z'.*: x"),
        (_with_output("z"), WRONG, "no output 'z'.*: y"),
        (_without_raw(), WRONG, "2 inputs and 1 raw_input_contents"),
        (pb.ModelInferRequest(model_name="mlp"), WRONG, "'x'.*missing"),
        (_message(raw=bytes(LIMIT)), grpc.StatusCode.RESOURCE_EXHAUSTED, "1,?000,?000"),
    ],
)
def test_grpc_request_that_does_not_fit(channel, message, code, says):
    with pytest.raises(grpc.RpcError) as error:
        call(channel, "ModelInfer")(message)
    assert error.value.code() is code
    assert re.search(says, error.value.details()), error.value.details()


def test_grpc_bytes_that_are_no_message(channel):
    infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    with pytest.raises(grpc.RpcError) as error:
        infer(b"\xff" * 50)
    assert error.value.code() is WRONG
    assert error.value.details() == "the request's bytes are no inference.ModelInferRequest"


def test_grpc_bytes_that_are_no_message_on_a_stream(channel):
    """What came before them on the stream is answered."""
    infer = channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )
    answers = infer(iter([_message().SerializeToString(), b"\xff" * 50]))
    assert next(answers).infer_response.outputs[0].shape == [1, 8]
    with pytest.raises(grpc.RpcError) as error:
        next(answers)
    assert error.value.code() is WRONG
    assert "no inference.ModelInferRequest" in error.value.details()


def test_grpc_method_that_is_not_offered(channel):
    for path in ("inference.GRPCInferenceService/ModelDance", "inference.Other/ModelInfer"):
        with pytest.raises(grpc.RpcError) as error:
            channel.unary_unary(f"/{path}")(b"")
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_models_are_not_loaded_where_the_server_does_not_allow_it(channel):
    with pytest.raises(grpc.RpcError) as error:
        call(channel, "RepositoryModelLoad")(pb.RepositoryModelLoadRequest(model_name="mlp"))
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "--model-control-mode=none" in error.value.details()


# A request that fits, and fails in the engine.


def _look_up(server, index):
    x = {"name": "index", "datatype": "INT64", "shape": [1, 1], "data": [index]}
    return _post(server, {"inputs": [x]}, "/v2/models/lookup/infer")


def test_batch_mates_of_a_failing_request_are_unharmed(server):
    with ThreadPoolExecutor(8) as pool:
        good = list(pool.map(lambda index: _look_up(server, index), range(8)))
        assert [answer.json()["outputs"][0]["data"] for answer in good] == [
            [10.0 * index] for index in range(8)
        ]
        assert statistics(server, "lookup")["execution_count"] == 1, "they were one batch"
        mixed = list(pool.map(lambda index: _look_up(server, index), [0, 1, 2, 99, 4, 5, 6, 7]))
    bad = mixed.pop(3)
    _check(bad, 500, "99")
    assert [answer.json()["outputs"][0]["data"] for answer in mixed] == [
        [10.0 * index] for index in (0, 1, 2, 4, 5, 6, 7)
    ]
    assert statistics(server, "lookup")["inference_stats"]["fail"]["count"] == 1


def test_numbers_arrive_as_they_were_sent(server):
    """The right request, so that the tests above are about what they change in it."""
    row = np.arange(64, dtype=np.float32)
    binary, headers = _binary(raw=struct.pack("<64f", *row))
    assert (
        _post(server, binary, headers=headers).json()["outputs"]
        == _post(server, _body(data=row.tolist())).json()["outputs"]
    )
