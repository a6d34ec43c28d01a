"""What a manifest keeps from being served, in every way in which models are loaded."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_models
import pytest
import tritonclient.http
from manifests import WHY, judge, tamper
from serving import PROGRAM, Server, until
from tritonclient.utils import InferenceServerException

from ds_engines.manifest import MANIFEST

ROW = np.ones((1, 64), np.float32)


def put(repository: Path, name: str, version: int, *, passed: bool | None = True) -> Path:
    """A version that appears whole, without a manifest where `passed` is None."""
    building = repository / name / f".{version}.partial"
    onnx_models.mlp(building / "model.onnx", seed=version)
    if passed is not None:
        judge(building, passed=passed)
    return building.rename(repository / name / str(version))


def spoil(version: Path, text: str) -> None:
    (version / MANIFEST).write_text(text)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models whose names say what is wrong with them."""
    folder = tmp_path_factory.mktemp("repository")
    put(folder, "plain", 1, passed=None)
    put(folder, "good", 1)
    put(folder, "failed", 1, passed=False)
    tamper(put(folder, "changed", 1))
    spoil(put(folder, "text", 1), "not JSON")
    spoil(put(folder, "newer", 1), '{"format": 99}')
    put(folder, "fallback", 1)
    put(folder, "fallback", 2)
    tamper(put(folder, "fallback", 3))
    put(folder, "fallback", 4, passed=False)
    return folder


REASONS = {
    ("failed", "1"): WHY,
    ("changed", "1"): "model.onnx has changed since it was judged",
    ("text", "1"): "manifest.json is not a manifest of a quantized model",
    ("newer", "1"): "manifest.json is of format 99, and this ds-serve reads 1",
    ("fallback", "3"): "model.onnx has changed since it was judged",
    ("fallback", "4"): WHY,
}
SERVED = {("plain", "1"), ("good", "1"), ("fallback", "2")}


def index(server: Server) -> dict[tuple[str, str], tuple[str, str]]:
    """Name and version to state and reason."""
    answered = server.client.post(f"{server.http}/v2/repository/index", json={})
    return {
        (entry["name"], entry.get("version", "")): (entry.get("state", ""), entry.get("reason", ""))
        for entry in answered.json()
    }


def answers(server: Server, model: str) -> int:
    """The version that answers: a model's weights are made of its version's number."""
    inputs = tritonclient.http.InferInput("x", ROW.shape, "FP32")
    inputs.set_data_from_numpy(ROW)
    with tritonclient.http.InferenceServerClient(server.http_address) as client:
        return int(client.infer(model, [inputs]).get_response()["model_version"])


@pytest.mark.slow
def test_what_is_refused_says_why_and_takes_nothing_else_down(repository: Path) -> None:
    with Server("--model-repository", repository) as server:
        states = index(server)
        assert {key for key, (state, _) in states.items() if state == "READY"} == SERVED
        for key, why in REASONS.items():
            assert states[key][0] == "UNAVAILABLE"
            assert why in states[key][1]
            assert why in server.log()
        health = server.get("/health/ready")
        assert health.status_code == 503
        # An older version of `fallback` is as good as was asked for.
        alone = {name for name, _ in REASONS} - {"fallback"}
        assert set(health.json()["models"]) == alone
        assert WHY in health.json()["models"]["failed"]
        assert [answers(server, name) for name in ("plain", "good", "fallback")] == [1, 1, 2]


@pytest.mark.slow
def test_an_older_version_at_the_start_makes_the_server_ready(tmp_path: Path) -> None:
    put(tmp_path, "m", 1)
    put(tmp_path, "m", 2, passed=False)
    (tmp_path / "m/config.pbtxt").write_text("max_batch_size: 8")
    with Server("--model", tmp_path / "m", "--exit-on-error") as server:
        assert server.ready()
        assert answers(server, "m") == 1
        assert index(server)["m", "2"][0] == "UNAVAILABLE"


@pytest.mark.slow
def test_all_is_served_where_the_operator_says_so(repository: Path) -> None:
    with Server("--model-repository", repository, "--allow-unverified") as server:
        assert server.ready()
        assert answers(server, "fallback") == 4
        warnings = [
            line for line in server.log().splitlines() if "--allow-unverified, though" in line
        ]
        names = {line.partition("model ")[2].partition(" ")[0] for line in warnings}
        assert names == {name for name, _ in REASONS}
        assert all("WARNING" in line for line in warnings)


@pytest.mark.parametrize("inside", [".", "1", "1/model.onnx"])
def test_a_model_given_by_its_path(tmp_path: Path, inside: str) -> None:
    put(tmp_path, "m", 1, passed=False)
    done = subprocess.run(
        [PROGRAM, "--model", tmp_path / "m" / inside, "--http-port=0", "--grpc-port=0"],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert f"did not pass its gate: {WHY}" in done.stderr
    assert "no model is left" in done.stderr
    assert "is ready" not in done.stdout


@pytest.fixture(scope="module")
def explicit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    repository = tmp_path_factory.mktemp("explicit")
    flags = ["--model-control-mode=explicit", "--open-control"]
    with Server("--model-repository", repository, *flags) as server:
        yield server, repository


def refusal(server: Server, name: str, **sent: object) -> str:
    with (
        tritonclient.http.InferenceServerClient(server.http_address) as client,
        pytest.raises(InferenceServerException) as refused,
    ):
        client.load_model(name, **sent)
    return refused.value.message()


def load(server: Server, name: str, **sent: object) -> None:
    with tritonclient.http.InferenceServerClient(server.http_address) as client:
        client.load_model(name, **sent)


def test_a_client_that_loads_is_told(explicit: tuple[Server, Path]) -> None:
    server, repository = explicit
    put(repository, "asked", 1)
    load(server, "asked")
    put(repository, "asked", 2, passed=False)
    said = refusal(server, "asked")
    assert "failed to load 'asked': version 2: " in said
    assert f"{WHY} (--allow-unverified would serve it all the same); served is version 1" in said
    assert answers(server, "asked") == 1
    assert WHY in index(server)["asked", "2"][1]
    assert server.ready()
    put(repository, "asked", 3)
    load(server, "asked")
    assert answers(server, "asked") == 3


def test_what_is_refused_and_was_never_served(explicit: tuple[Server, Path]) -> None:
    server, repository = explicit
    for version in (1, 2):
        put(repository, "never", version, passed=False)
    assert "served is no version" in refusal(server, "never")
    assert index(server)["never", "1"][0] == index(server)["never", "2"][0] == "UNAVAILABLE"
    assert server.ready(), "nobody waits for what a client has asked for"


def test_what_clients_send_is_verified_as_well(
    explicit: tuple[Server, Path], tmp_path: Path
) -> None:
    server, _ = explicit
    version = put(tmp_path, "m", 1)

    def files() -> dict[str, bytes]:
        return {f"file:1/{path.name}": path.read_bytes() for path in version.iterdir()}

    load(server, "sent", config="{}", files=files())
    assert answers(server, "sent") == 1
    tamper(version)
    said = refusal(server, "sent", config="{}", files=files())
    assert "1/model.onnx has changed since it was judged" in said
    judge(version, passed=False)
    assert WHY in refusal(server, "sent", config="{}", files=files())
    assert answers(server, "sent") == 1
    (version / MANIFEST).unlink()
    load(server, "sent", config="{}", files=files())


@pytest.mark.slow
def test_a_repository_that_is_followed(tmp_path: Path) -> None:
    put(tmp_path, "m", 1)
    put(tmp_path, "other", 1, passed=None)
    flags = ["--model-control-mode=poll", "--repository-poll-secs=1"]
    with Server("--model-repository", tmp_path, *flags) as server:
        workers = server.workers()
        put(tmp_path, "m", 2, passed=False)
        until(lambda: ("m", "2") in index(server), "version 2 is not noticed")
        assert WHY in index(server)["m", "2"][1]
        assert server.ready()
        assert answers(server, "m") == 1

        tamper(put(tmp_path, "m", 3))
        until(lambda: ("m", "3") in index(server), "version 3 is not noticed")
        assert "has changed since it was judged" in index(server)["m", "3"][1]
        assert server.workers() == workers, "nobody has a new worker"

        put(tmp_path, "m", 4)
        until(lambda: answers(server, "m") == 4, "version 4 is not served")
        assert "2" not in {version for name, version in index(server) if name == "m"}

        tamper(tmp_path / "m" / "4")
        until(lambda: "it goes on as it was" in server.log(), "the change is not noticed")
        assert answers(server, "m") == 4
        shutil.rmtree(tmp_path / "m" / "4")
        until(lambda: answers(server, "m") == 1, "version 1 is not served again")
        assert server.workers()["other"] == workers["other"]
        assert server.ready()


@pytest.mark.slow
def test_a_worker_that_is_started_again_reads_what_was_judged(tmp_path: Path) -> None:
    """A file that has changed under a running server is not loaded later."""
    version = put(tmp_path, "m", 1)
    with Server("--model", tmp_path / "m", "--model", put(tmp_path, "n", 1)) as server:
        tamper(version)
        os.kill(server.worker("m"), signal.SIGKILL)
        until(lambda: index(server)["m", "1"][0] == "UNAVAILABLE", "it was loaded")
        assert "has changed since it was judged" in index(server)["m", "1"][1]
        assert answers(server, "n") == 1
