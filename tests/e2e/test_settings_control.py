"""Log and trace settings that Triton's own clients change while the server runs."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import onnx_models
import pytest
import tritonclient.grpc
import tritonclient.http
from serving import Server, until
from tritonclient.utils import InferenceServerException


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traces") / "traces.json"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, traced: Path) -> Iterator[Server]:
    """Two gateways, and the models `one` and `two`."""
    folder = tmp_path_factory.mktemp("models")
    models = [onnx_models.mlp(folder / f"{name}.onnx") for name in ("one", "two")]
    flags = ["--trace-file", traced, "--trace-rate", "1000000", "--gateways", "2"]
    with Server("--model", models[0], "--model", models[1], *flags) as server:
        yield server


def clients(server: Server, protocol: str):
    if protocol == "http":
        return tritonclient.http.InferenceServerClient(server.http_address)
    return tritonclient.grpc.InferenceServerClient(server.grpc)


def plain(settings) -> dict[str, object]:
    """A client's answer as plain values, whichever protocol it came by."""
    if isinstance(settings, dict):
        return settings
    found = {}
    for name, value in settings.settings.items():
        kind = value.WhichOneof("parameter_choice") if value.DESCRIPTOR.oneofs else None
        found[name] = getattr(value, kind) if kind else list(value.value)
    return found


def ask(server: Server, model: str) -> None:
    """One request on a connection of its own, which may reach either gateway."""
    x = tritonclient.http.InferInput("x", [1, 64], "FP32")
    x.set_data_from_numpy(np.ones((1, 64), np.float32))
    with clients(server, "http") as triton:
        triton.infer(model, [x])


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_logs(server: Server, protocol: str) -> None:
    """The level changes in every process, and holds for those that start later."""

    def refused() -> int:
        for _ in range(10):
            httpx2.post(f"{server.http}/v2/models/none/infer", json={"inputs": []})
        return server.log().count("there is no model 'none'")

    with clients(server, protocol) as triton:
        before = refused()
        assert before > 0
        changed = plain(triton.update_log_settings({"log_info": False}))
        assert changed["log_info"] is False
        assert plain(triton.get_log_settings())["log_info"] is False
        assert refused() == before
        loaded = server.log().count("loaded in")
        os.kill(server.worker("one"), signal.SIGKILL)
        until(lambda: not server.ready(), "its death is not noticed")
        until(server.ready, "it did not come back")
        assert server.log().count("loaded in") == loaded
        triton.update_log_settings({"log_verbose_level": 1, "log_info": True})
        told = server.log().count("log settings")
        triton.update_log_settings({"log_format": "ISO8601"})
        until(lambda: server.log().count("log settings") >= told + 5, "not told to all")
        triton.update_log_settings({"log_verbose_level": 0, "log_format": "default"})
        assert refused() > before
        assert plain(triton.get_log_settings()) == {
            "log_file": "", "log_info": True, "log_warning": True, "log_error": True,
            "log_verbose_level": 0, "log_format": "default",
        }  # fmt: skip
        with pytest.raises(InferenceServerException, match="can not be updated"):
            triton.update_log_settings({"log_file": "/tmp/elsewhere"})


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_traces(server: Server, traced: Path, protocol: str) -> None:
    """Those of one model alone, whichever gateway answers."""

    def models() -> list[str]:
        entries = json.loads(traced.read_text())
        return [entry["model_name"] for entry in entries if "model_name" in entry]

    with clients(server, protocol) as triton:
        before = models()
        triton.update_trace_settings("two", {"trace_rate": "1"})
        assert plain(triton.get_trace_settings("two"))["trace_rate"] in ("1", ["1"])
        assert plain(triton.get_trace_settings("one"))["trace_rate"] in ("1000000", ["1000000"])
        for _ in range(5):
            ask(server, "one")
            ask(server, "two")
        until(lambda: len(models()) >= len(before) + 5, "no traces")
        assert models()[len(before) :] == ["two"] * 5
        triton.update_trace_settings("two", {"trace_rate": None})
        for _ in range(5):
            ask(server, "two")
        with pytest.raises(InferenceServerException, match="can not be updated"):
            triton.update_trace_settings(settings={"trace_file": "/tmp/elsewhere"})
        with pytest.raises(InferenceServerException, match="TENSORS"):
            triton.update_trace_settings(settings={"trace_level": ["TENSORS"]})
    assert len(models()) == len(before) + 5
