"""Calls about the repository, traces, logs and CUDA memory: the same over both protocols."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from ds_engines.errors import NotFound, Unsupported
from ds_proto import grpc_service_pb2 as pb
from ds_serve.gateway.budget import Budget
from ds_serve.gateway.config import Limits
from ds_serve.gateway.control import Control, IndexEntry
from ds_serve.gateway.gateway import Gateway
from ds_serve.gateway.grpc.management import Management
from ds_serve.gateway.http import rest
from ds_serve.transport.messages import Registry

LIMIT = 10_000
TRACE = {"trace_level": ["TIMESTAMPS", "TENSORS"], "trace_rate": ["10"]}
LOG = {"log_info": True, "log_verbose_level": 2, "log_format": "default"}


class Recorder(Control):
    """Answers from what stands above, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    async def index(self, ready: bool = False) -> list[IndexEntry]:
        self.asked.append(("index", ready))
        return [IndexEntry("mlp", "1", "READY"), IndexEntry("old", "", "UNAVAILABLE", "unloaded")]

    async def load(self, name, config=None, files=None) -> None:
        self.asked.append(("load", name, config, dict(files or {})))

    async def unload(self, name, dependents=False) -> None:
        self.asked.append(("unload", name, dependents))

    async def trace(self, model="", changes=None):
        self.asked.append(("trace", model, dict(changes or {})))
        return TRACE

    async def log(self, changes=None):
        self.asked.append(("log", dict(changes or {})))
        return LOG


@pytest.fixture
async def gateway(tmp_path: Path) -> Gateway:
    made = Gateway(Limits(), folder=tmp_path)
    await made.update(Registry([]))
    made.control = Recorder()
    return made


@pytest.fixture
async def http(gateway: Gateway) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(rest.build(gateway, Budget(LIMIT, LIMIT)))
    async with httpx2.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client


async def test_the_page_of_all_routes_needs_nothing_from_elsewhere(
    http: httpx2.AsyncClient,
) -> None:
    answer = await http.get("/docs")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    for path in (await http.get("/openapi.json")).json()["paths"]:
        assert f"<code>{path}</code>" in answer.text
    assert "<script" not in answer.text
    assert re.findall(r'(?:src|href)="([^"]*)"', answer.text) == ["/openapi.json"]
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert (await http.get("/redoc")).status_code == 404


async def test_the_index(gateway: Gateway, http: httpx2.AsyncClient) -> None:
    answer = await http.post("/v2/repository/index", json={"ready": True})
    assert answer.json() == [
        {"name": "mlp", "version": "1", "state": "READY", "reason": ""},
        {"name": "old", "version": "", "state": "UNAVAILABLE", "reason": "unloaded"},
    ]
    assert (await http.post("/v2/repository/index")).status_code == 200
    found = await Management(gateway).RepositoryIndex(pb.RepositoryIndexRequest(ready=True))
    assert [(each.name, each.state) for each in found.models] == [
        ("mlp", "READY"),
        ("old", "UNAVAILABLE"),
    ]
    assert gateway.control.asked == [("index", True), ("index", False), ("index", True)]


async def test_a_load_with_files(gateway: Gateway, http: httpx2.AsyncClient) -> None:
    content = bytes(range(256))
    parameters = {"config": "{}", "file:1/model.onnx": base64.b64encode(content).decode()}
    answer = await http.post("/v2/repository/models/mlp/load", json={"parameters": parameters})
    assert (answer.status_code, answer.content) == (200, b"")
    request = pb.RepositoryModelLoadRequest(model_name="mlp")
    request.parameters["config"].string_param = "{}"
    request.parameters["file:1/model.onnx"].bytes_param = content
    await Management(gateway).RepositoryModelLoad(request)
    assert gateway.control.asked == [("load", "mlp", "{}", {"1/model.onnx": content})] * 2


async def test_an_unload(gateway: Gateway, http: httpx2.AsyncClient) -> None:
    body = {"parameters": {"unload_dependents": True}}
    assert (await http.post("/v2/repository/models/mlp/unload", json=body)).status_code == 200
    assert (await http.post("/v2/repository/models/mlp/unload")).status_code == 200
    request = pb.RepositoryModelUnloadRequest(model_name="mlp")
    await Management(gateway).RepositoryModelUnload(request)
    assert gateway.control.asked == [("unload", "mlp", wanted) for wanted in (True, False, False)]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"parameters": {"speed": "1"}}, 400, "'speed'"),
        ({"parameters": {"file:1/model.onnx": "%"}}, 400, "'file:1/model.onnx' is not base64"),
        ({"parameters": {"config": {}}}, 400, "Expected `str`"),
        (["x"], 400, "load"),
        ({"parameters": {"config": "x" * LIMIT}}, 413, "limit"),
    ],
)
async def test_loads_that_make_no_sense(
    http: httpx2.AsyncClient, body: Any, status: int, said: str
) -> None:
    answer = await http.post("/v2/repository/models/mlp/load", json=body)
    assert answer.status_code == status
    assert said in answer.json()["error"]


async def test_a_repository_cannot_be_named(gateway: Gateway, http: httpx2.AsyncClient) -> None:
    for path in ("index", "models/mlp/load", "models/mlp/unload"):
        answer = await http.post(f"/v2/repository/mine/{path}")
        assert answer.status_code == 501
        assert "'mine'" in answer.json()["error"]
    with pytest.raises(Unsupported, match="'mine'"):
        await Management(gateway).RepositoryModelLoad(
            pb.RepositoryModelLoadRequest(repository_name="mine", model_name="mlp")
        )
    assert gateway.control.asked == []


async def test_trace_settings(gateway: Gateway, http: httpx2.AsyncClient) -> None:
    changes = {"trace_level": ["TIMESTAMPS"], "trace_rate": "10", "trace_count": None}
    answer = await http.post("/v2/trace/setting", json=changes)
    assert answer.json() == {"trace_level": ["TIMESTAMPS", "TENSORS"], "trace_rate": "10"}
    request = pb.TraceSettingRequest()
    request.settings["trace_level"].value.append("TIMESTAMPS")
    request.settings["trace_rate"].value.append("10")
    request.settings["trace_count"].SetInParent()
    found = await Management(gateway).TraceSetting(request)
    assert {name: list(each.value) for name, each in found.settings.items()} == TRACE
    wanted = {"trace_level": ["TIMESTAMPS"], "trace_rate": ["10"], "trace_count": None}
    assert gateway.control.asked == [("trace", "", wanted)] * 2


async def test_trace_settings_of_an_unknown_model(http: httpx2.AsyncClient) -> None:
    for path in ("models/nobody", "models/nobody/versions/1"):
        answer = await http.get(f"/v2/{path}/trace/setting")
        assert answer.status_code == 404
        assert "'nobody'" in answer.json()["error"]


async def test_log_settings(gateway: Gateway, http: httpx2.AsyncClient) -> None:
    changes = {"log_info": True, "log_verbose_level": 2, "log_format": "default"}
    assert (await http.post("/v2/logging", json=changes)).json() == LOG
    assert (await http.get("/v2/logging")).json() == LOG
    request = pb.LogSettingsRequest()
    request.settings["log_info"].bool_param = True
    request.settings["log_verbose_level"].uint32_param = 2
    request.settings["log_format"].string_param = "default"
    found = await Management(gateway).LogSettings(request)
    assert found.settings["log_info"].bool_param is True
    assert found.settings["log_verbose_level"].uint32_param == 2
    assert found.settings["log_format"].string_param == "default"
    assert gateway.control.asked == [("log", changes), ("log", {}), ("log", changes)]


async def test_cuda_memory_says_that_there_is_none(
    gateway: Gateway, http: httpx2.AsyncClient
) -> None:
    assert (await http.get("/v2/cudasharedmemory/status")).json() == []
    assert (await http.get("/v2/cudasharedmemory/region/r/status")).status_code == 404
    body = {"raw_handle": {"b64": "AA=="}, "device_id": 0, "byte_size": 4}
    answer = await http.post("/v2/cudasharedmemory/region/r/register", json=body)
    assert answer.status_code == 501
    assert "unavailable" in answer.json()["error"]
    for path in ("unregister", "region/r/unregister"):
        assert (await http.post(f"/v2/cudasharedmemory/{path}")).status_code == 200
    management = Management(gateway)
    status = await management.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest())
    assert not status.regions
    with pytest.raises(NotFound, match="'r'"):
        await management.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest(name="r"))
    with pytest.raises(Unsupported, match=r"'r'.*unavailable"):
        await management.CudaSharedMemoryRegister(pb.CudaSharedMemoryRegisterRequest(name="r"))
    await management.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest(name="r"))


def test_the_description_names_every_part_of_a_path_and_nothing_else() -> None:
    app = rest.build(Gateway(Limits()), Budget(1, 1))
    for path, methods in app.openapi()["paths"].items():
        for about in methods.values():
            named = [(each["name"], each["in"]) for each in about.get("parameters", [])]
            assert named == [(name, "path") for name in re.findall(r"{(\w+)}", path)], path
