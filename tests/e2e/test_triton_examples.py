"""What Triton's own examples for clients do, against models like theirs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_models
import pytest
import tritonclient.grpc
import tritonclient.http
from onnx import TensorProto, helper
from serving import Server
from triton_clients import Client, connected
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.filterwarnings("ignore:Unclosed connection")

KINDS = ["http", "http-aio", "grpc", "grpc-aio"]
CONFIG = """max_batch_size: 8
input [ {name: "INPUT0" data_type: TYPE_%s dims: [16]}, {name: "INPUT1" data_type: TYPE_%s
    dims: [16]} ]
output [ {name: "OUTPUT0" data_type: TYPE_%s dims: [16]}, {name: "OUTPUT1" data_type: TYPE_%s
    dims: [16] label_filename: "labels.txt"} ]
"""


def sums(path: Path, kind: int) -> Path:
    """INPUT0 and INPUT1, [n, 16] each, to their sum OUTPUT0 and their difference OUTPUT1."""
    nodes = []
    for name in ("INPUT0", "INPUT1"):
        nodes.append(helper.make_node("Cast", [name], [f"_{name}"], to=TensorProto.INT32))
    for operator, name in (("Add", "OUTPUT0"), ("Sub", "OUTPUT1")):
        nodes.append(helper.make_node(operator, ["_INPUT0", "_INPUT1"], [f"_{name}"]))
        nodes.append(helper.make_node("Cast", [f"_{name}"], [name], to=kind))

    def values(*names: str) -> list[Any]:
        return [helper.make_tensor_value_info(name, kind, ["n", 16]) for name in names]

    return onnx_models.save(path, nodes, values("INPUT0", "INPUT1"), values("OUTPUT0", "OUTPUT1"))


def repository(folder: Path) -> Path:
    for name, kind, datatype in (
        ("simple", TensorProto.INT32, "INT32"),
        ("simple_int8", TensorProto.INT8, "INT8"),
        ("simple_string", TensorProto.STRING, "STRING"),
    ):
        sums(folder / name / "1" / "model.onnx", kind)
        (folder / name / "config.pbtxt").write_text(CONFIG.replace("%s", datatype))
        labels = "".join(f"label {index}\n" for index in range(16))
        (folder / name / "labels.txt").write_text(labels)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = repository(tmp_path_factory.mktemp("repository"))
    mode = ["--model-control-mode", "explicit", "--open-control", "--load-model", "*"]
    with Server("--model-repository", folder, *mode, "--id", "triton", "--gateways", "2") as server:
        yield server


@pytest.fixture(params=KINDS)
async def client(request: pytest.FixtureRequest, server: Server):
    async with connected(request.param, server) as client:
        yield client


A = np.arange(16).reshape(1, 16)
B = np.ones((1, 16), int)


@pytest.mark.parametrize(
    ("model", "dtype"), [("simple", np.int32), ("simple_int8", np.int8), ("simple_string", object)]
)
async def test_sums_and_differences(client: Client, model: str, dtype: type) -> None:
    def cast(array: np.ndarray) -> np.ndarray:
        return np.vectorize(lambda x: str(x).encode(), otypes=[object])(array)

    inputs = {
        name: cast(array) if dtype is object else array.astype(dtype)
        for name, array in (("INPUT0", A), ("INPUT1", B))
    }
    result = await client.infer(model, inputs, ["OUTPUT0", "OUTPUT1"], request_id="1")
    for name, expected in (("OUTPUT0", A + B), ("OUTPUT1", A - B)):
        assert result.as_numpy(name).astype(int).tolist() == expected.tolist()


async def test_classes_have_labels(client: Client) -> None:
    inputs = {"INPUT0": A.astype(np.int32), "INPUT1": B.astype(np.int32)}
    result = await client.infer("simple", inputs, [client.output("OUTPUT1", class_count=2)])
    assert result.as_numpy("OUTPUT1").tolist() == [[b"14:15:label 15", b"13:14:label 14"]]


async def test_health_and_metadata(client: Client) -> None:
    assert await client.call("is_server_live")
    assert await client.call("is_server_ready")
    assert await client.call("is_model_ready", "simple")
    about = await client.call("get_server_metadata")
    assert about["name"] == "triton"
    assert {"classification", "sequence", "trace", "logging"} <= set(about["extensions"])
    assert (await client.call("get_model_metadata", "simple"))["name"] == "simple"
    with pytest.raises(InferenceServerException, match="Request for unknown model"):
        await client.call("get_model_metadata", "wrong_model_name")


async def test_requests_over_several_connections_in_parallel(server: Server) -> None:
    client = tritonclient.http.InferenceServerClient(server.http_address, concurrency=4)
    inputs = []
    for name, array in (("INPUT0", A), ("INPUT1", B)):
        inputs.append(tritonclient.http.InferInput(name, [1, 16], "INT32"))
        inputs[-1].set_data_from_numpy(array.astype(np.int32))
    asked = [client.async_infer("simple", inputs) for _ in range(20)]
    for each in asked:
        assert each.get_result().as_numpy("OUTPUT0").tolist() == (A + B).tolist()
    client.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["http", "grpc"])
async def test_models_are_controlled(kind: str, tmp_path: Path) -> None:
    folder = repository(tmp_path)
    flags = [
        "--model-repository",
        folder,
        "--model-control-mode",
        "explicit",
        "--open-control",
        "--gateways",
        "2",
    ]
    with Server(*flags) as server:
        async with connected(kind, server) as client:
            index = await client.call("get_model_repository_index")
            assert len(index if kind == "http" else index["models"]) == 3
            await client.call("load_model", "simple")
            assert await client.call("is_model_ready", "simple")
            with pytest.raises(InferenceServerException, match="failed to load"):
                await client.call("load_model", "simple", config="no JSON")
            await client.call("load_model", "simple", config='{"max_batch_size": "16"}')
            config = await client.call("get_model_config", "simple")
            assert int(config.get("config", config)["max_batch_size"]) == 16
            await client.call("unload_model", "simple")
            assert not await client.call("is_model_ready", "simple")
            with pytest.raises(InferenceServerException, match="failed to load"):
                await client.call("load_model", "wrong_model_name")


@pytest.mark.parametrize("kind", ["http", "grpc"])
async def test_traces_and_logs_are_set(kind: str, server: Server) -> None:
    async with connected(kind, server) as client:
        await client.call("update_trace_settings", settings={"trace_rate": "7"})
        assert "7" in str(await client.call("get_trace_settings", "simple"))
        await client.call("update_log_settings", {"log_verbose_level": 1})
        found = await client.call("get_log_settings")
        assert "1" in str(found.get("settings", found)["log_verbose_level"])
        await client.call("update_log_settings", {"log_verbose_level": 0})
