"""Clients see the `dims` of a configuration, models the shapes that its `reshape` says."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx_models
import pytest
import python_models
import tritonclient.grpc
import tritonclient.http
from serving import Server

Array = np.ndarray

# As Triton's densenet_onnx has it.
POOLED = """
platform: "onnxruntime_onnx"
max_batch_size : 0
input [ { name: "picture" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 3, 4, 4 ]
    reshape { shape: [ 1, 3, 4, 4 ] } } ]
output [ { name: "means" data_type: TYPE_FP32 dims: [ 3 ] reshape { shape: [ 1, 3, 1, 1 ] }
    label_filename: "colours" } ]
"""
SCALARS = """
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ 1 ] reshape { shape: [ ] } }
output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] reshape { shape: [ ] } }
dynamic_batching { preferred_batch_size: [ 4 ] max_queue_delay_microseconds: 2000000 }
model_warmup { name: "zeros" batch_size: 2
    inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 1 ] zero_data: true } } }
"""
VARYING = """
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ -1, 2, 3 ] reshape { shape: [ -1, 6 ] } }
output { name: "y" data_type: TYPE_FP32 dims: [ -1, 3, 2 ] reshape { shape: [ -1, 6 ] } }
"""
SHAPES = """
class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "X").as_numpy()
            shape = pb_utils.Tensor("SHAPE", np.array([x.shape], np.int64))
            y = x if x[0, 0, 0] else x[:, :1]
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("Y", y), shape]))
        return answers
"""
PYTHON = """
backend: "python"
max_batch_size: 4
input { name: "X" data_type: TYPE_FP32 dims: [ 6 ] reshape { shape: [ 2, 3 ] } }
output { name: "Y" data_type: TYPE_FP32 dims: [ 6 ] reshape { shape: [ 2, 3 ] } }
output { name: "SHAPE" data_type: TYPE_INT64 dims: [ 3 ] }
"""


# An ensemble with shapes of its own around a model that is reshaped as well.
WHOLE = """
platform: "ensemble"
max_batch_size: 8
input { name: "flat" data_type: TYPE_FP32 dims: [ -1 , 6 ] reshape { shape: [ -1, 2, 3 ] } }
output { name: "turned" data_type: TYPE_FP32 dims: [ -1, 1, 6 ] reshape { shape: [ -1, 3, 2 ] } }
ensemble_scheduling { step { model_name: "varying" model_version: -1
    input_map { key: "x" value: "flat" } output_map { key: "y" value: "turned" } } }
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models: Path = tmp_path_factory.mktemp("reshape")
    onnx_models.pooled(models / "pooled" / "1" / "model.onnx")
    onnx_models.doubled(models / "scalars" / "1" / "model.onnx", ["rows"])
    onnx_models.doubled(models / "varying" / "1" / "model.onnx", ["rows", "length", 6])
    for name, config in {"pooled": POOLED, "scalars": SCALARS, "varying": VARYING}.items():
        (models / name / "config.pbtxt").write_text(config)
    (models / "pooled" / "colours").write_text("red\ngreen\nblue\n")
    python_models.put(models, "python", SHAPES, PYTHON)
    (models / "whole").mkdir()
    (models / "whole" / "config.pbtxt").write_text(WHOLE)
    with Server("--model-repository", models) as server:
        yield server


def ask(server: Server, model: str, protocol: str, name: str, array: Array):
    module = tritonclient.http if protocol == "http" else tritonclient.grpc
    given = module.InferInput(name, array.shape, "FP32")
    given.set_data_from_numpy(array)
    address = server.http_address if protocol == "http" else server.grpc
    with module.InferenceServerClient(address) as client:
        return client.infer(model, [given])


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_picture_without_a_batch_axis(server: Server, protocol: str) -> None:
    picture = np.arange(48, dtype=np.float32).reshape(3, 4, 4)
    found = ask(server, "pooled", protocol, "picture", picture).as_numpy("means")
    assert found.tolist() == [7.5, 23.5, 39.5]


def test_classes_of_a_picture_without_a_batch_axis(server: Server) -> None:
    given = tritonclient.http.InferInput("picture", (3, 4, 4), "FP32")
    given.set_data_from_numpy(np.arange(48, dtype=np.float32).reshape(3, 4, 4))
    wanted = tritonclient.http.InferRequestedOutput("means", class_count=2)
    with tritonclient.http.InferenceServerClient(server.http_address) as client:
        found = client.infer("pooled", [given], outputs=[wanted]).as_numpy("means")
    assert [each.split(b":")[1:] for each in found] == [[b"2", b"blue"], [b"1", b"green"]]


def test_clients_are_told_the_shapes_that_they_see(server: Server) -> None:
    told = server.get("/v2/models/pooled").json()
    assert (told["inputs"][0]["shape"], told["outputs"][0]["shape"]) == ([3, 4, 4], [3])
    config = server.get("/v2/models/pooled/config").json()
    assert config["input"][0]["reshape"] == {"shape": [1, 3, 4, 4]}
    assert (config["output"][0]["dims"], config["max_batch_size"]) == ([3], 0)
    told = server.get("/v2/models/scalars").json()
    assert (told["inputs"][0]["shape"], told["outputs"][0]["shape"]) == ([-1, 1], [-1, 1])


def test_another_shape_is_refused_in_the_clients_terms(server: Server) -> None:
    body = {
        "inputs": [{"name": "picture", "datatype": "FP32", "shape": [1, 3, 4, 4], "data": [0] * 48}]
    }
    refused = server.client.post(f"{server.http}/v2/models/pooled/infer", json=body)
    assert refused.status_code == 400
    assert "has shape [3, 4, 4] (-1: any size), the request's is [1, 3, 4, 4]" in refused.text


def test_scalars_are_joined(server: Server) -> None:
    def one(number: int) -> list[list[float]]:
        array = np.full((1, 1), number, np.float32)
        return ask(server, "scalars", "http", "x", array).as_numpy("y").tolist()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(4))) == [[[0]], [[2]], [[4]], [[6]]]
    stats = server.get("/v2/models/scalars/stats").json()["model_stats"][0]
    assert (stats["inference_count"], stats["execution_count"]) == (4, 1)


def test_sizes_that_vary_stay(server: Server) -> None:
    given = np.arange(2 * 5 * 6, dtype=np.float32).reshape(2, 5, 2, 3)
    found = ask(server, "varying", "grpc", "x", given).as_numpy("y")
    assert np.array_equal(found, 2 * given.reshape(2, 5, 3, 2))


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_an_ensemble_has_shapes_of_its_own(server: Server, protocol: str) -> None:
    given = np.arange(2 * 5 * 6, dtype=np.float32).reshape(2, 5, 6)
    found = ask(server, "whole", protocol, "flat", given).as_numpy("turned")
    assert np.array_equal(found, 2 * given.reshape(2, 5, 1, 6))
    told = server.get("/v2/models/whole/config").json()
    assert told["input"][0]["reshape"] == {"shape": [-1, 2, 3]}


def test_a_python_model_gets_its_own_shape(server: Server) -> None:
    given = np.arange(1, 13, dtype=np.float32).reshape(2, 6)
    found = ask(server, "python", "http", "X", given)
    assert np.array_equal(found.as_numpy("Y"), given)
    assert found.as_numpy("SHAPE").tolist() == [[2, 2, 3]]


def test_a_python_model_that_gives_another_shape_is_told(server: Server) -> None:
    body = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 6], "data": [0] * 6}]}
    refused = server.client.post(f"{server.http}/v2/models/python/infer", json=body)
    assert refused.status_code == 500
    assert "gave output 'Y' the shape [1, 1, 3]; the reshape" in refused.text
