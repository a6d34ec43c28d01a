"""Loading, unloading and reloading models of a repository, by Triton's own clients."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_models
import pytest
import tritonclient.grpc
import tritonclient.http
from serving import Server, gone, until
from tritonclient.utils import InferenceServerException

ROW = np.ones((1, 64), np.float32)
CLIENTS = {"http": tritonclient.http, "grpc": tritonclient.grpc}
PROTOCOLS = ["http", pytest.param("grpc", marks=pytest.mark.slow)]
"""For what takes several workers."""


def client(server: Server, protocol: str = "http"):
    """An unmodified Triton client."""
    address = server.http_address if protocol == "http" else server.grpc
    return CLIENTS[protocol].InferenceServerClient(address)


def answer(server: Server, model: str, version: str = "", protocol: str = "http") -> np.ndarray:
    values = CLIENTS[protocol]
    given = values.InferInput("x", ROW.shape, "FP32")
    given.set_data_from_numpy(ROW)
    with client(server, protocol) as triton:
        return triton.infer(model, [given], model_version=version).as_numpy("y")


def differ(*answers: np.ndarray) -> bool:
    return len({array.tobytes() for array in answers}) == len(answers)


def put(repository: Path, name: str, *versions: int, config: str = "", seed: int = 0) -> Path:
    """A model of these versions, which all answer differently."""
    for version in versions:
        onnx_models.mlp(repository / name / str(version) / "model.onnx", seed + version)
    if config:
        (repository / name / "config.pbtxt").write_text(config)
    return repository / name


def index(server: Server, *, ready: bool = False) -> dict[tuple[str, str], tuple[str, str]]:
    """Name and version to state and reason."""
    answered = server.client.post(f"{server.http}/v2/repository/index", json={"ready": ready})
    return {
        (entry["name"], entry.get("version", "")): (entry.get("state", ""), entry.get("reason", ""))
        for entry in answered.json()
    }


def refusal(call, *arguments, **options) -> str:
    with pytest.raises(InferenceServerException) as refused:
        call(*arguments, **options)
    return refused.value.message()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    put(folder, "plain", 1)
    put(folder, "latest", 1, 2, 10)
    put(folder, "all", 1, 3, config="version_policy { all {} }")
    put(folder, "some", 1, 2, 3, config="version_policy { specific { versions: [1, 3] } }")
    put(folder, "misnamed", 1, config='name: "other"')
    (folder / "empty").mkdir()
    put(folder, "torn", 1)
    (folder / "torn/1/model.onnx").write_bytes(b"\x08")
    return folder


@pytest.fixture(scope="module")
def explicit(repository: Path) -> Iterator[Server]:
    """Two gateways, so that each call may be answered by another than the one before."""
    flags = [
        "--model-control-mode=explicit",
        "--open-control",
        "--load-model=latest",
        "--gateways",
        "2",
    ]
    with Server("--model-repository", repository, *flags) as server:
        yield server


@pytest.mark.slow
def test_the_layout_of_a_repository(repository: Path) -> None:
    """Versions by policy; what cannot be served is named, and takes nothing else down."""
    with Server("--model-repository", repository, "--strict-readiness=false") as server:
        states = index(server)
        ready = {key for key, (state, _) in states.items() if state == "READY"}
        assert ready == {
            ("plain", "1"), ("latest", "10"), ("all", "1"), ("all", "3"), ("some", "1"),
            ("some", "3"),
        }  # fmt: skip
        assert "'other'" in states["misnamed", ""][1]
        assert "'misnamed'" in states["misnamed", ""][1]
        assert "has no folder of a version" in states["empty", ""][1]
        assert "supported are ONNX, GGUF, OpenVINO" in states["torn", ""][1]
        assert set(index(server, ready=True)) == ready
        assert server.ready()
        oldest, newest = answer(server, "all", "1"), answer(server, "all", "3")
        assert differ(oldest, newest)
        assert np.array_equal(answer(server, "all"), newest)
        assert np.array_equal(answer(server, "all", protocol="grpc"), newest)
        with client(server) as triton:
            assert "no version '2'" in refusal(triton.get_model_metadata, "some", model_version="2")
            assert "not allowed" in refusal(triton.load_model, "plain")


@pytest.mark.slow
def test_a_repository_given_as_a_model(repository: Path) -> None:
    with Server("--model", repository, "--model", f"mine={repository / 'plain'}") as server:
        assert differ(answer(server, "latest"), answer(server, "mine"))
        assert not server.ready()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_loading_and_unloading(explicit: Server, protocol: str) -> None:
    with client(explicit, protocol) as triton:
        assert not triton.is_model_ready("plain")
        assert "failed to load" in refusal(triton.load_model, "wrong_model_name")
        triton.load_model("plain")
        assert triton.is_model_ready("plain")
        before = answer(explicit, "plain")
        assert np.array_equal(before, answer(explicit, "plain", protocol="grpc"))
        triton.unload_model("plain")
        assert not triton.is_model_ready("plain")
        assert "no model 'plain'" in refusal(triton.get_model_metadata, "plain")
        assert index(explicit)["plain", "1"] in (("UNAVAILABLE", "unloaded"), ("UNLOADING", ""))
        assert explicit.ready()


def test_what_is_not_there_is_not_loaded(explicit: Server) -> None:
    with client(explicit) as triton:
        for name in ("misnamed", "empty", "torn"):
            assert "failed to load" in refusal(triton.load_model, name)
        assert "cannot be a model's name" in refusal(triton.load_model, "..")
        assert "failed to unload" in refusal(triton.unload_model, "wrong_model_name")
    assert explicit.ready()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_configuration_in_place_of_the_models_own(explicit: Server, protocol: str) -> None:
    config = json.dumps({"name": "some", "versionPolicy": {"latest": {"numVersions": 2}}})
    with client(explicit, protocol) as triton:
        triton.load_model("some", config=config)
        assert {key for key in index(explicit, ready=True) if key[0] == "some"} == {
            ("some", "2"), ("some", "3"),
        }  # fmt: skip
        triton.load_model("some")
        assert {key for key in index(explicit, ready=True) if key[0] == "some"} == {
            ("some", "1"), ("some", "3"),
        }  # fmt: skip
        before = answer(explicit, "some")
        for wrong in ("{", '{"no_such_field": 1}', '{"name": "else"}', "[]"):
            assert "failed to load" in refusal(triton.load_model, "some", config=wrong)
        assert np.array_equal(answer(explicit, "some"), before)
        triton.unload_model("some")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_configuration_that_was_asked_for_and_changed(explicit: Server, protocol: str) -> None:
    options = {"as_json": True} if protocol == "grpc" else {}
    with client(explicit, protocol) as triton:
        triton.load_model("all")
        config = triton.get_model_config("all", **options)
        config = config.get("config", config)
        assert "all" in config["version_policy"]
        config["max_batch_size"] = 3
        triton.load_model("all", config=json.dumps(config))
        changed = triton.get_model_config("all", "1", **options)
        assert changed.get("config", changed) == config
        assert {key for key in index(explicit, ready=True) if key[0] == "all"} == {
            ("all", "1"), ("all", "3"),
        }  # fmt: skip
        triton.unload_model("all")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_files_that_a_client_sends(
    explicit: Server, repository: Path, tmp_path: Path, protocol: str
) -> None:
    """They are served, in versions of their own, and nothing is written to the repository."""
    model = onnx_models.mlp(tmp_path / "model.onnx", seed=77).read_bytes()
    before = sorted(repository.rglob("*"))
    with client(explicit, protocol) as triton:
        triton.load_model("sent", config="{}", files={"file:7/model.onnx": model})
        assert [key for key in index(explicit, ready=True) if key[0] == "sent"] == [("sent", "7")]
        sent = answer(explicit, "sent", "7")
        triton.load_model("plain")
        plain = answer(explicit, "plain")
        triton.load_model("plain", config="{}", files={"file:1/model.onnx": model})
        assert np.array_equal(answer(explicit, "plain"), sent)
        triton.load_model("plain")
        assert np.array_equal(answer(explicit, "plain"), plain)
        triton.unload_model("plain")
        triton.unload_model("sent")
        assert "no model repository has" in refusal(triton.load_model, "sent")
    assert sorted(repository.rglob("*")) == before


@pytest.mark.parametrize(
    "path",
    ["model.onnx", "1/../2/model.onnx", "/1/model.onnx", "1/a/b.onnx", "../1/x", "1/.hidden",
     "1/model.py", "1/model.PY", "1/x.py.onnx", "0/model.onnx", "one/model.onnx", "1/", "1/a b"],
)  # fmt: skip
def test_files_that_may_not_be_sent(explicit: Server, path: str) -> None:
    with client(explicit) as triton:
        said = refusal(triton.load_model, "sent", config="{}", files={f"file:{path}": b"x"})
    assert "failed to load" in said
    assert repr(path) in said


def test_a_reload_that_fails_changes_nothing(explicit: Server, repository: Path) -> None:
    folder = put(repository, "fragile", 1)
    with client(explicit) as triton:
        triton.load_model("fragile")
        before = answer(explicit, "fragile")
        worker = explicit.worker("fragile")
        (folder / "1/model.onnx").write_bytes(b"\x3a\x02\x0a\x00")  # a graph, and no good one
        assert "version 1: " in refusal(triton.load_model, "fragile")
        assert np.array_equal(answer(explicit, "fragile"), before)
        assert explicit.worker("fragile") == worker
        assert index(explicit)["fragile", "1"] == ("READY", "")
        triton.unload_model("fragile")
    assert explicit.ready()


def test_the_index_says_why_a_model_is_not_served(explicit: Server, repository: Path) -> None:
    folder = put(repository, "halved", 1)
    whole = (folder / "1/model.onnx").read_bytes()
    (folder / "1/model.onnx").write_bytes(whole[:1000])
    with client(explicit) as triton:
        for fault in ("no whole ONNX file", "has no field 'bogus'"):
            assert fault in refusal(triton.load_model, "halved")
            state, reason = index(explicit)["halved", ""]
            assert (state, fault in reason) == ("UNAVAILABLE", True)
            (folder / "config.pbtxt").write_text("bogus: 1")
        assert "no model repository has" in refusal(triton.load_model, "nowhere")
        assert "nowhere" not in {name for name, _ in index(explicit)}
        assert explicit.ready()
        (folder / "config.pbtxt").unlink()
        (folder / "1/model.onnx").write_bytes(whole)
        triton.load_model("halved")
        assert index(explicit)["halved", "1"] == ("READY", "")
        triton.unload_model("halved")


class Caller(threading.Thread):
    """Asks again and again, each time anew, and keeps the answers."""

    def __init__(self, server: Server, model: str) -> None:
        super().__init__()
        self._server, self._model = server, model
        self._ended = threading.Event()
        self.answers: list[bytes] = []
        self.failures: list[str] = []

    def run(self) -> None:
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 64], "data": [1.0] * 64}]}
        url = f"{self._server.http}/v2/models/{self._model}/infer"
        while not self._ended.is_set():
            got = self._server.client.post(url, json=body)
            if got.status_code == 200:
                self.answers.append(json.dumps(got.json()["outputs"]).encode())
            else:
                self.failures.append(got.text)

    def __enter__(self) -> Caller:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


def test_a_reload_loses_no_request(explicit: Server, repository: Path) -> None:
    """The old worker answers until the new one is ready, then it goes, and its memory with it."""
    folder = put(repository, "moving", 1)
    with client(explicit) as triton:
        triton.load_model("moving")
        old = explicit.worker("moving")
        callers = [Caller(explicit, "moving") for _ in range(3)]
        with contextlib.ExitStack() as calling:
            for caller in callers:
                calling.enter_context(caller)
            for seed in (100, 200):
                onnx_models.mlp(folder / "1/model.onnx", seed)
                triton.load_model("moving")
                time.sleep(0.3)
        assert [caller.failures for caller in callers] == [[], [], []]
        assert len({answer for caller in callers for answer in caller.answers}) == 3
        until(lambda: gone(old), "the old worker lives on")
        triton.unload_model("moving")
        until(lambda: "moving" not in explicit.workers(), "the worker lives on")


@pytest.mark.slow
def test_requests_in_flight_outlive_the_unloading(tmp_path: Path) -> None:
    onnx_models.slow(tmp_path / "slow/1/model.onnx")
    flags = ["--model-control-mode=explicit", "--open-control", "--load-model=*"]
    with Server("--model-repository", tmp_path, *flags) as server, client(server) as triton:
        x = tritonclient.http.InferInput("x", [1, 4], "FP32")
        x.set_data_from_numpy(np.ones((1, 4), np.float32))
        steps = tritonclient.http.InferInput("steps", [1], "INT64")
        steps.set_data_from_numpy(np.array([4000], np.int64))
        running = triton.async_infer("slow", [x, steps])
        until(lambda: server.metric("ds_load", model="slow") > 0, "it does not run")
        with client(server) as other:
            other.unload_model("slow")
        assert index(server)["slow", "1"] == ("UNLOADING", "")
        assert running.get_result().as_numpy("y").shape == (1, 4)
        until(lambda: index(server)["slow", "1"] == ("UNAVAILABLE", "unloaded"), "not unloaded")
        assert server.ready()


@pytest.mark.slow
def test_polling_follows_the_repository(tmp_path: Path) -> None:
    """New models, new versions, changed files and removed models, without a word to the server."""
    flags = ["--model-control-mode=poll", "--repository-poll-secs=1"]
    put(tmp_path, "first", 1)
    with Server("--model-repository", tmp_path, *flags) as server:
        one = answer(server, "first")
        with client(server) as triton:
            assert "not allowed if polling is enabled" in refusal(triton.load_model, "first")

        put(tmp_path, "second", 1)
        put(tmp_path, "first", 2)
        until(lambda: ("first", "2") in index(server, ready=True), "no new version", 20, server.log)
        until(lambda: ("second", "1") in index(server, ready=True), "no new model", 20, server.log)
        two = answer(server, "first")
        assert differ(one, two)

        (tmp_path / "first/3").mkdir()
        (tmp_path / "first/3/model.onnx").write_text("no model")
        until(lambda: "model first: failed to load" in server.log(), "unnoticed", 20)
        assert np.array_equal(answer(server, "first"), two)
        assert server.ready()

        onnx_models.mlp(tmp_path / "new.onnx", 33).replace(tmp_path / "first/3/model.onnx")
        until(lambda: ("first", "3") in index(server, ready=True), "not repaired", 20, server.log)
        assert differ(one, two, answer(server, "first"))

        shutil.rmtree(tmp_path / "second")
        until(lambda: "second" not in server.workers(), "it is served still", 20)
        assert server.ready()


@pytest.mark.slow
def test_a_repository_on_a_web_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is polled like one on this machine."""
    monkeypatch.setenv("DS_SERVE_CACHE", str(tmp_path / "cache"))
    put(tmp_path / "web", "m", 1)
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "web")
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        serving = threading.Thread(target=web.serve_forever)
        serving.start()
        address = f"http://127.0.0.1:{web.server_port}/"
        flags = ["--model-control-mode=poll", "--repository-poll-secs=1"]
        try:
            with Server("--model-repository", address, *flags) as server:
                one = answer(server, "m")
                put(tmp_path / "web", "m", 2)
                until(lambda: ("m", "2") in index(server, ready=True), "no new", 20, server.log)
                assert differ(one, answer(server, "m"))
                assert server.log().count("fetching 1 files from http://127.0.0.1") == 2
        finally:
            web.shutdown()
            serving.join()


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_at_the_start(repository: Path) -> None:
    with Server("--model-repository", repository) as server:
        body = server.get("/health/ready").json()
        assert {"misnamed", "empty", "torn"} <= set(body["models"])
    broken = Server("--model-repository", repository, "--exit-on-error=true")
    try:
        assert broken.start().process.wait(60) == 1
        assert "--exit-on-error" in broken.log()
    finally:
        broken.close()
