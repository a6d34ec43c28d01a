"""The protocols by hand: JSON as people write it, curl, typed contents, two stubs in a process."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx2
import numpy as np
import onnx_models
import pytest
import tritonclient.grpc
from serving import Server
from slow_requests import call
from tritonclient.grpc import service_pb2

from ds_engines import datatypes
from ds_proto import grpc_service_pb2 as pb
from ds_serve.gateway.grpc.codec import CONTENTS


def curl(*arguments: str | Path) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body."""
    command = ["curl", "-sS", "-D", "/dev/stderr", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    lines = [line for line in done.stderr.decode().splitlines() if line]
    last = max(index for index, line in enumerate(lines) if line.startswith("HTTP/"))
    headers = dict(line.lower().split(": ", 1) for line in lines[last + 1 :])
    return int(lines[last].split()[1]), headers, done.stdout


def post(server: Server, model: str, body: dict[str, Any]) -> httpx2.Response:
    return server.client.post(f"{server.http}/v2/models/{model}/infer", json=body)


def test_curl_posts_json(tensors: Server) -> None:
    x = {"name": "x", "shape": [1, 2, 2], "datatype": "FP32", "data": [[[1, 2.5], [3, 4]]]}
    body = json.dumps({"id": "a1", "inputs": [x], "outputs": [{"name": "total"}]})
    for path in ("/v2/models/sequences/infer", "/v2/models/sequences/versions/1/infer"):
        status, headers, answer = curl(
            tensors.http + path, "-d", body, "-H", "Content-Type: application/json"
        )
        assert status == 200
        assert headers["content-type"] == "application/json"
        assert json.loads(answer) == {
            "model_name": "sequences",
            "model_version": "1",
            "id": "a1",
            "outputs": [{"name": "total", "datatype": "FP32", "shape": [1, 1, 1], "data": [10.5]}],
        }


def test_curl_posts_binary_tensors(tensors: Server, tmp_path: Path) -> None:
    values = struct.pack("<6f", 1, 2, 3, 4, 5, 6)
    x = {"name": "x", "shape": [1, 2, 3], "datatype": "FP32"}
    x["parameters"] = {"binary_data_size": len(values)}
    head = json.dumps({"inputs": [x], "parameters": {"binary_data_output": True}}).encode()
    file = tmp_path / "body"
    file.write_bytes(head + values)
    status, headers, answer = curl(
        f"{tensors.http}/v2/models/sequences/infer",
        "--data-binary",
        f"@{file}",
        "-H",
        f"Inference-Header-Content-Length: {len(head)}",
    )
    assert status == 200
    size = int(headers["inference-header-content-length"])
    double, total = json.loads(answer[:size])["outputs"]
    assert (double["shape"], double["parameters"]) == ([1, 2, 3], {"binary_data_size": 24})
    assert struct.unpack("<6f", answer[size : size + 24]) == (2, 4, 6, 8, 10, 12)
    assert total["parameters"] == {"binary_data_size": 4}
    assert struct.unpack("<f", answer[size + 24 :]) == (21,)


def test_curl_sends_in_chunks(tensors: Server) -> None:
    x = {"name": "x", "shape": [1, 1, 1], "datatype": "FP32", "data": [4]}
    status, _, answer = curl(
        f"{tensors.http}/v2/models/sequences/infer",
        "-d",
        json.dumps({"inputs": [x]}),
        "-H",
        "Transfer-Encoding: chunked",
    )
    assert status == 200
    assert json.loads(answer)["outputs"][0]["data"] == [8]


def test_curl_asks_what_there_is(tensors: Server) -> None:
    for path, found in [
        ("/v2", "ds-serve"),
        ("/v2/models/mlp", "onnxruntime_onnx"),
        ("/v2/models/mlp/versions/1", "FP32"),
        ("/v2/models/mlp/config", "TYPE_FP32"),
        ("/v2/models/mlp/stats", "inference_stats"),
        ("/v2/models/stats", "halves"),
    ]:
        status, headers, answer = curl(tensors.http + path)
        assert (status, headers["content-type"]) == (200, "application/json")
        assert found in json.dumps(json.loads(answer))


def test_forms_of_an_output_can_differ(tensors: Server) -> None:
    x = {"name": "x", "shape": [1, 1, 2], "datatype": "FP32", "data": [1, 2]}
    wanted = [{"name": "double", "parameters": {"binary_data": True}}, {"name": "total"}]
    answer = post(tensors, "sequences", {"inputs": [x], "outputs": wanted})
    size = int(answer.headers["inference-header-content-length"])
    double, total = json.loads(answer.content[:size])["outputs"]
    assert "data" not in double
    assert answer.content[size:] == struct.pack("<2f", 2, 4)
    assert total["data"] == [3]


JSON_VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False, True],
    "UINT8": [0, 255],
    "UINT16": [0, 2**16 - 1],
    "UINT32": [0, 2**32 - 1],
    "UINT64": [0, 2**64 - 1],
    "INT8": [-128, 127],
    "INT16": [-(2**15), 2**15 - 1],
    "INT32": [-(2**31), 2**31 - 1],
    "INT64": [-(2**63), 2**63 - 1],
    "FP16": [0.5, -65504.0],
    "BF16": [1.5, -3.0, 3.3895313892515355e38],
    "FP32": [0.1, 3.4028234663852886e38],
    "FP64": [0.1, 5e-324, 1.7976931348623157e308],
    "BYTES": ["", "plain", '\N{GREEK SMALL LETTER ALPHA}\n"\\', "\N{PILE OF POO}"],
}


def test_json_holds_every_datatype(tensors: Server) -> None:
    for model, names in (("plain", onnx_models.PLAIN), ("halves", onnx_models.HALVES)):
        inputs = [
            {
                "name": f"in_{name}",
                "datatype": name,
                "shape": [1, len(JSON_VALUES[name])],
                "data": JSON_VALUES[name],
            }
            for name in names
        ]
        answer = post(tensors, model, {"inputs": inputs})
        assert answer.status_code == 200, answer.text
        found = {output["datatype"]: output["data"] for output in answer.json()["outputs"]}
        for name in names:
            expected = JSON_VALUES[name]
            if name in ("FP32", "BF16"):  # in the fewest digits that tell a float32
                found[name] = [float(np.float32(value)) for value in found[name]]
                expected = [float(np.float32(value)) for value in expected]
            assert found[name] == expected, name


# gRPC, by stubs of our own.


@pytest.fixture
def channel(tensors: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(tensors.grpc) as channel:
        yield channel


def test_typed_contents_hold_every_datatype_but_the_halves(channel: grpc.Channel) -> None:
    message = pb.ModelInferRequest(model_name="plain", id="typed")
    for name in onnx_models.PLAIN:
        values = [v.encode() if isinstance(v, str) else v for v in JSON_VALUES[name]]
        given = message.inputs.add(name=f"in_{name}", datatype=name, shape=[1, len(values)])
        getattr(given.contents, CONTENTS[name]).extend(values)
    answer = call(channel, "ModelInfer")(message)
    assert answer.id == "typed"
    for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        found = datatypes.to_array(output.datatype, output.shape, raw)
        values = [v.encode() if isinstance(v, str) else v for v in JSON_VALUES[output.datatype]]
        assert found.tolist() == np.array([values], found.dtype).tolist(), output.datatype


def test_outputs_asked_for_over_grpc_come_alone(channel: grpc.Channel) -> None:
    message = pb.ModelInferRequest(model_name="sequences")
    message.inputs.add(name="x", datatype="FP32", shape=[1, 1, 2])
    message.raw_input_contents.append(struct.pack("<2f", 1, 2))
    message.outputs.add(name="total")
    answer = call(channel, "ModelInfer")(message)
    assert [output.name for output in answer.outputs] == ["total"]
    assert list(answer.raw_output_contents) == [struct.pack("<f", 3)]


def test_two_sets_of_stubs_live_in_one_process(tensors: Server) -> None:
    """tritonclient's and ours have the same names, and understand each other's bytes."""
    assert service_pb2.ModelInferRequest is not pb.ModelInferRequest
    full_name = "inference.ModelInferRequest"
    assert service_pb2.ModelInferRequest.DESCRIPTOR.full_name == full_name
    assert pb.ModelInferRequest.DESCRIPTOR.full_name == full_name
    theirs = service_pb2.ModelInferRequest(model_name="mlp", id="both")
    theirs.inputs.add(name="x", datatype="FP32", shape=[1, 64])
    theirs.parameters["mood"].string_param = "good"
    ours = pb.ModelInferRequest.FromString(theirs.SerializeToString())
    assert ours.parameters["mood"].string_param == "good"
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(
        deterministic=True
    )
    with (
        tritonclient.grpc.InferenceServerClient(tensors.grpc) as client,
        grpc.insecure_channel(tensors.grpc) as channel,
    ):
        one = client.get_model_config("mlp").SerializeToString(deterministic=True)
        other = call(channel, "ModelConfig")(pb.ModelConfigRequest(name="mlp"))
        assert other.SerializeToString(deterministic=True) == one
