"""Models on a Ray cluster of two nodes: answers, scale, a new version, a node that dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_models
import pytest
import python_models
import texts
import tritonclient.grpc
import tritonclient.http
from ray_nodes import replicas, servers
from serving import Server, until

Start = Callable[..., Server]
X = np.ones((1, 64), np.float32)
LONG = 400.0

SLOW = """\
class TritonPythonModel:
    def execute(self, requests):
        time.sleep(0.1)
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("OUT", pb_utils.get_input_tensor_by_name(
                request, "IN").as_numpy())])
            for request in requests
        ]
"""
SLOW_CONFIG = """
backend: "python"
input [ { name: "IN" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "OUT" data_type: TYPE_FP32 dims: [ 4 ] } ]
"""


class Load:
    """Clients that ask over HTTP, one request after another. `failures`: what was said."""

    def __init__(self, server: Server, model: str, name: str, x: Any) -> None:
        self.answers: Counter[bytes] = Counter()
        self.failures: list[tuple[float, str]] = []
        self.last = np.zeros(0)
        self._server, self._model, self._name, self._x = server, model, name, x
        self._on = True

    def ask(self) -> None:
        address = self._server.http_address
        with tritonclient.http.InferenceServerClient(address, network_timeout=120) as client:
            given = tritonclient.http.InferInput(self._name, list(self._x.shape), "FP32")
            given.set_data_from_numpy(self._x)
            while self._on:
                try:
                    answer = client.infer(self._model, [given])
                except Exception as error:
                    self.failures.append((time.monotonic(), str(error)))
                    time.sleep(0.05)
                    continue
                (output,) = answer.get_response()["outputs"]
                self.answers[answer.as_numpy(output["name"]).tobytes()] += 1

    def stop(self) -> None:
        self._on = False


@contextmanager
def load(server: Server, model: str, clients: int, name: str = "x", x: Any = X) -> Iterator[Load]:
    asking = Load(server, model, name, x)
    threads = [threading.Thread(target=asking.ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield asking
    finally:
        asking.stop()
        for thread in threads:
            thread.join(150)


RUNNING = """
import sys, ray
from ray import serve
ray.init(address=sys.argv[1], log_to_driver=False)
found = serve.status().applications["ds-serve-mlp"].deployments["mlp"]
print({str(getattr(k, "value", k)): n for k, n in found.replica_states.items()}.get("RUNNING", 0))
"""


def running(nodes: Any) -> int:
    """How many replicas of `mlp` have started, as Ray says."""
    asked = [sys.executable, "-c", RUNNING, nodes.address]
    done = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=LONG)
    return int(done.stdout.split()[-1])


def everywhere(nodes: Any) -> int:
    return sum(replicas(node) for node in nodes.list_all_nodes())


@pytest.fixture(scope="module")
def mlp(served: Start, tmp_path_factory: pytest.TempPathFactory) -> tuple[Server, Path]:
    """One model, with a replica on each node; a new file takes over within seconds."""
    file = onnx_models.mlp(tmp_path_factory.mktemp("models") / "mlp.onnx")
    return served(
        *("--model", file, "--cluster-replicas", "2:2", "--cluster-cpus", "1"),
        *("--model-control-mode", "poll", "--repository-poll-secs", "1"),
    ), file


def test_it_answers_over_http_and_grpc(mlp: tuple[Server, Path]) -> None:
    server, file = mlp
    expected = onnx_models_run(file)
    given: Any = tritonclient.http.InferInput("x", [1, 64], "FP32")
    given.set_data_from_numpy(X)
    with tritonclient.http.InferenceServerClient(server.http_address) as client:
        answer = client.infer("mlp", [given]).as_numpy("y")
    np.testing.assert_allclose(answer, expected, rtol=1e-4)
    given = tritonclient.grpc.InferInput("x", [1, 64], "FP32")
    given.set_data_from_numpy(X)
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        assert client.is_model_ready("mlp")
        answer = client.infer("mlp", [given]).as_numpy("y")
    np.testing.assert_allclose(answer, expected, rtol=1e-4)


def test_a_new_version_takes_over_without_a_failed_request(mlp: tuple[Server, Path]) -> None:
    server, file = mlp
    before = onnx_models_run(file)
    with load(server, "mlp", 4) as asking:
        until(lambda: asking.answers.total() > 20, "no answers", LONG, server.log)
        onnx_models.mlp(file.with_suffix(".new"), seed=1).replace(file)
        after = onnx_models_run(file)

        def replaced() -> bool:
            """All of the last answers are the new version's."""
            asking.answers.clear()
            time.sleep(1)
            seen = [np.frombuffer(each, np.float32) for each in list(asking.answers)]
            return bool(seen) and all(np.allclose(each, after, rtol=1e-3) for each in seen)

        until(replaced, "the old version still answers", LONG, server.log)
    assert not np.allclose(before, after, rtol=1e-3)
    assert asking.failures == []


def test_a_node_dies(mlp: tuple[Server, Path], nodes: Any, add_node: Callable[[], Any]) -> None:
    server, _ = mlp
    head, other = nodes.list_all_nodes()
    until(lambda: everywhere(nodes) == 2, "not two replicas", LONG, server.log)
    assert replicas(other) == 1, "Ray spreads them"
    clients = 4
    with load(server, "mlp", clients) as asking:
        until(lambda: asking.answers.total() > 20, "no answers", LONG, server.log)
        nodes.remove_node(other, allow_graceful=False)
        until(lambda: replicas(head) == 2, "Ray did not start another replica", LONG, server.log)
        asking.answers.clear()
        until(lambda: asking.answers.total() > 20, "no answers any more", LONG, server.log)
    print(f"failed: {len(asking.failures)} of {clients} clients' requests in flight")
    # No more than were on their way when it died: one for each client.
    assert len(asking.failures) <= clients, asking.failures
    add_node()


def test_ray_replaces_a_replica_whose_server_has_died(mlp: tuple[Server, Path], nodes: Any) -> None:
    server, _ = mlp
    until(lambda: running(nodes) == 2, "not two replicas", LONG, server.log)
    time.sleep(2)  # the gateways are told twice a second
    at, killed = next((node, pid) for node in nodes.list_all_nodes() for pid in servers(node))
    with load(server, "mlp", 2) as asking:
        until(lambda: asking.answers.total() > 20, "no answers", LONG, server.log)
        os.kill(killed, signal.SIGKILL)
        until(lambda: killed not in servers(at), "it is still there", 30)
        until(lambda: everywhere(nodes) == 2, "Ray did not start another", LONG, server.log)
        asking.answers.clear()
        until(lambda: asking.answers.total() > 20, "no answers any more", LONG, server.log)
    assert len(asking.failures) <= 2, asking.failures


def test_replicas_follow_the_load(served: Start, nodes: Any, tmp_path: Path) -> None:
    folder = python_models.put(tmp_path, "slow", SLOW, SLOW_CONFIG)
    before = everywhere(nodes)
    server = served(
        *("--model", folder, "--cluster-replicas", "1:4", "--cluster-cpus", "0.1"),
        *("--cluster-requests", "2", "--cluster-up-secs", "1", "--cluster-down-secs", "3"),
    )
    assert everywhere(nodes) == before + 1
    with load(server, "slow", 12, "IN", np.ones((4,), np.float32)) as asking:
        until(lambda: everywhere(nodes) == before + 4, "not four replicas", LONG, server.log)
        answered = asking.answers.total()
        until(lambda: asking.answers.total() > answered + 20, "no answers", LONG, server.log)
    until(lambda: everywhere(nodes) == before + 1, "more than one replica", LONG, server.log)
    assert asking.failures == []


def test_a_text_model(served: Start) -> None:
    server = served("--model", texts.TEXT, "--cluster-replicas", "1:1")
    answer = server.client.post(
        f"{server.http}/v1/chat/completions", json=texts.PARIS, timeout=LONG
    )
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]
    body = texts.PARIS | {"stream": True}
    answer = server.client.post(f"{server.http}/v1/chat/completions", json=body, timeout=LONG)
    assert answer.text.rstrip().endswith("data: [DONE]")
    text = tritonclient.grpc.InferInput("text_input", [1], "BYTES")
    text.set_data_from_numpy(np.array([b"The capital of France is"], dtype=object))
    how = tritonclient.grpc.InferInput("sampling_parameters", [1], "BYTES")
    how.set_data_from_numpy(np.array([b'{"temperature": 0, "max_tokens": 8}'], dtype=object))
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        found = client.infer(texts.TEXT, [text, how], client_timeout=LONG).as_numpy("text_output")
    assert b"Paris" in found.item()


def test_there_is_no_such_cluster(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    server = Server("--cluster", "127.0.0.1:1", "--model", onnx_models.mlp(tmp_path / "mlp.onnx"))
    try:
        assert server.start().process.wait(LONG) == 1
        assert "--cluster 127.0.0.1:1: there is no such cluster" in server.log()
        assert "Traceback" not in server.log()
    finally:
        server.close()


def onnx_models_run(file: Path) -> Any:
    """What ONNX Runtime itself answers."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X})[0]
