"""Inputs that a request may leave out: the model file has a value for them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import onnx_models
import pytest
from serving import Server

SCALED = """
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ 3 ] }
input { name: "factor" data_type: TYPE_FP32 dims: [ 1 ] optional: true }
input { name: "shift" data_type: TYPE_FP32 dims: [ 1 ] optional: true }
dynamic_batching { max_queue_delay_microseconds: 300000 }
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models: Path = tmp_path_factory.mktemp("optional")
    for name in ("scaled", "plain"):
        onnx_models.scaled(models / name / "1" / "model.onnx")
    (models / "scaled" / "config.pbtxt").write_text(SCALED)
    with Server("--model-repository", models) as server:
        yield server


def post(server: Server, model: str, **given: list[list[float]] | list[float]) -> httpx2.Response:
    inputs = []
    for name, data in given.items():
        shape = [len(data), len(data[0])] if isinstance(data[0], list) else [len(data)]
        inputs.append({"name": name, "datatype": "FP32", "shape": shape, "data": data})
    return server.client.post(f"{server.http}/v2/models/{model}/infer", json={"inputs": inputs})


def answer(server: Server, **given: list[list[float]] | list[float]) -> list[float]:
    found = post(server, "scaled", **given)
    assert found.status_code == 200, found.text
    return found.json()["outputs"][0]["data"]


def test_what_is_left_out_is_the_models_own(server: Server) -> None:
    assert answer(server, x=[[1, 2, 3]]) == [2, 4, 6]
    assert answer(server, x=[[1, 2, 3]], factor=[5]) == [5, 10, 15]
    assert answer(server, x=[[1, 2, 3], [4, 5, 6]], shift=[[10], [20]]) == [12, 14, 16, 28, 30, 32]


def test_requests_with_other_inputs_are_not_joined(server: Server) -> None:
    asked = [
        {"x": [[1, 1, 1]]},
        {"x": [[1, 1, 1]], "factor": [3]},
        {"x": [[1, 1, 1]], "factor": [4]},
        {"x": [[1, 1, 1]], "shift": [[1]]},
        {"x": [[1, 1, 1]], "shift": [[2]]},
    ]
    with ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(lambda given: answer(server, **given), asked))
    assert found == [[2] * 3, [3] * 3, [4] * 3, [3] * 3, [4] * 3]


def test_clients_are_told_what_may_be_left_out(server: Server) -> None:
    config = server.get("/v2/models/scaled/config").json()
    assert {each["name"]: each.get("optional", False) for each in config["input"]} == {
        "x": False,
        "factor": True,
        "shift": True,
    }
    missing = post(server, "scaled", factor=[1])
    assert (missing.status_code, "input 'x' of model 'scaled' is missing" in missing.text) == (
        400,
        True,
    )


def test_what_no_configuration_names_is_the_models_own_affair(server: Server) -> None:
    assert [each["name"] for each in server.get("/v2/models/plain").json()["inputs"]] == ["x"]
    refused = post(server, "plain", x=[[1, 2, 3]], factor=[1])
    assert (refused.status_code, "has no input 'factor'" in refused.text) == (400, True)
