"""`ds-models` beside a running server: promotions and the way back, while requests come in."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import httpx2
import onnx_models
import pytest
from serving import Server, until

PROGRAM = Path(sys.executable).with_name("ds-models")
BODY = {
    "inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [1.0] * 64}],
}
CLIENTS = 2

pytestmark = pytest.mark.slow


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, *words], capture_output=True, text=True, check=False, timeout=120
    )


def done(*words: str | Path) -> str:
    ended = run(*words)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


class Load:
    """Clients that ask one model without a break, in a `with` block; what they were answered."""

    def __init__(self, server: Server, model: str) -> None:
        self._url = f"{server.http}/v2/models/{model}/infer"
        self._stop = threading.Event()
        self.versions: Counter[str] = Counter()
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        with httpx2.Client(timeout=60) as client:
            while not self._stop.is_set():
                answer = client.post(self._url, json=BODY)
                if answer.status_code == 200:
                    self.versions[answer.json()["model_version"]] += 1
                else:
                    self.failures.append(answer.text)

    def answers(self, version: int) -> None:
        """Wait for some answers of a version, and for no others after them."""
        before = self.versions[str(version)]
        until(lambda: self.versions[str(version)] > before + 5, f"version {version} is not asked")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    for seed in (1, 2):
        file = onnx_models.mlp(folder.parent / f"source-{seed}" / "model.onnx", seed=seed)
        done("pull", file, "--to", folder / "net")
    done("promote", folder / "net", "1")
    return folder


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    flags = ["--model-control-mode=explicit", "--open-control", "--load-model=*"]
    with Server("--model-repository", repository, *flags) as running:
        yield running


def served(server: Server, model: str) -> set[str]:
    entries = server.client.post(f"{server.http}/v2/repository/index", json={"ready": True}).json()
    return {entry["version"] for entry in entries if entry["name"] == model}


def test_no_request_fails_while_a_version_is_promoted_and_taken_back(
    server: Server, repository: Path
) -> None:
    net = repository / "net"
    with Load(server, "net") as load:
        load.answers(1)
        done("promote", net, "2", "--server", server.http)
        load.answers(2)
        done("rollback", net, "--server", server.http)
        load.answers(1)
        new = repository.parent / "source-2" / "model.onnx"
        done("pull", new, "--to", net, "--promote", "--server", server.http)
        load.answers(3)
    assert load.failures == []
    assert set(load.versions) == {"1", "2", "3"}
    assert served(server, "net") == {"3"}


def test_what_the_server_cannot_load_is_not_promoted(server: Server, repository: Path) -> None:
    other = repository / "other"
    done("pull", repository.parent / "source-1" / "model.onnx", "--to", other, "--promote")
    done("promote", other, "1", "--server", server.http)
    (repository.parent / "broken.onnx").write_bytes(b"no model at all")
    done("pull", repository.parent / "broken.onnx", "--to", other)
    before = (other / "config.pbtxt").read_text()
    ended = run("promote", other, "2", "--server", server.http)
    assert ended.returncode == 1
    assert "error: " in ended.stderr
    assert "broken.onnx" in ended.stderr
    assert (other / "config.pbtxt").read_text() == before
    assert served(server, "other") == {"1"}
    nobody = run("promote", other, "2", "--server", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 does not answer: Connection refused" in nobody.stderr


def test_a_server_that_follows_its_repository(repository: Path, tmp_path: Path) -> None:
    net = tmp_path / "models" / "net"
    for seed in (1, 2):
        done("pull", repository.parent / f"source-{seed}" / "model.onnx", "--to", net)
    done("promote", net, "1")
    flags = ["--model-control-mode=poll", "--repository-poll-secs=1"]
    with Server("--model-repository", net.parent, *flags) as polling, Load(polling, "net") as load:
        load.answers(1)
        done("promote", net, "2", "--server", polling.http)
        load.answers(2)
        done("rollback", net)
        until(lambda: served(polling, "net") == {"1"}, "version 1 does not come back")
        load.answers(1)
    assert load.failures == []


def test_pulled_and_served_in_one(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is served is not removed from the cache meanwhile."""
    monkeypatch.setenv("DS_SERVE_CACHE", str(tmp_path))
    source = repository.parent / "source-1" / "model.onnx"
    command = [PROGRAM, "serve", f"net={source}", "--", "--http-port=0", "--grpc-port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as serving:
        assert serving.stdout is not None
        try:
            address = next(line for line in serving.stdout if "is ready: HTTP" in line).split()[4]
            answer = httpx2.post(f"{address}/v2/models/net/infer", json=BODY, timeout=60)
            assert answer.status_code == 200
            done("prune", "--limit", "0")
            assert "is in use" in run("remove", "source-1").stderr
            assert [row["name"] for row in json.loads(done("list", "--json"))] == ["source-1"]
        finally:
            serving.terminate()
            serving.wait(30)
    done("remove", "source-1")
    assert json.loads(done("list", "--json")) == []
