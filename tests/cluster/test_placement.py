"""What Ray is asked to reserve, on a node that says it has four GPUs: it counts, and has none."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx_models
import pretended
import pytest
import python_models
from ray_nodes import replicas
from serving import READY, Server, until

Start = Callable[..., Server]
LONG = 400.0
KIND = "accelerator_type:FAKE"
EXECUTOR = "--distributed-executor-backend"
GPUS = {"num_gpus": 4, "env_vars": {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, "resources": {KIND: 1}}

SEES = """\
class TritonPythonModel:
    def execute(self, requests):
        time.sleep(0.1)
        seen = np.array([os.environ.get("CUDA_VISIBLE_DEVICES", "all").encode()], dtype=object)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("SEEN", seen)]) for _ in requests]
"""
CONFIG = python_models.tensors("IN FP32 1", outputs="SEEN STRING 1")

RECORD = """\
#!{python}
import json, os, sys
words = sys.argv[1:]
if "api_server" in " ".join(words):
    import ray
    ray.init()
    node = ray.get_runtime_context().get_node_id()
    about = {{"node": node, "words": words, "sees": os.environ["CUDA_VISIBLE_DEVICES"],
             "ip": os.environ["VLLM_HOST_IP"]}}
    ray.shutdown()
    with open({file!r}, "w") as out:
        json.dump(about, out)
    for flag in ("--tensor-parallel-size", "--pipeline-parallel-size", {executor!r}):
        at = words.index(flag)
        del words[at : at + 2]
os.execv({inner!r}, [{inner!r}, *words])
"""
"""An interpreter that first does what vLLM's Ray executor begins with, and writes what it found.
The server under vLLM's name knows none of those flags.
"""

PROGRAM = """\
from ds_serve import InferenceServer

if __name__ == "__main__":
    server = InferenceServer(
        {model!r}, cluster={cluster!r}, cluster_replicas="1:1", cluster_cpus=0.1,
        cluster_resources=["{kind}=0.001"], gateways=1,
    )
    server.run(port=0, grpc_port=0)
    print("run has returned")
"""


@pytest.fixture(scope="module")
def gpus(nodes: Any, add_node: Callable[..., Any]) -> Iterator[Any]:
    """A third node."""
    added = add_node(**GPUS)
    yield added
    nodes.remove_node(added, allow_graceful=False)


def sees(server: Server, model: str) -> str:
    """Which GPUs the replica that answers was shown."""
    tensor = {"name": "IN", "shape": [1], "datatype": "FP32", "data": [1]}
    url = f"{server.http}/v2/models/{model}/infer"
    answer = server.client.post(url, json={"inputs": [tensor]}, timeout=LONG)
    (found,) = answer.json()["outputs"][0]["data"]
    return str(found)


def test_each_replica_has_gpus_of_its_own(
    served: Start, gpus: Any, add_node: Callable[..., Any], tmp_path: Path
) -> None:
    two = python_models.put(tmp_path, "two", SEES, CONFIG)
    flags = ["--cluster-cpus", "0.1", "--cluster-replicas", "2:2"]
    server = served("--model", two, "--cluster-resources", "GPU=2", *flags)

    def seen() -> set[str]:
        """By several at once: a replica that has nothing to do is asked first."""
        with ThreadPoolExecutor(6) as pool:
            return set(pool.map(lambda _: sees(server, "two"), range(6)))

    until(lambda: len(seen()) == 2, "one answers", LONG, server.log)
    # Which two, and in which order, is Ray's to say.
    shown = sorted(gpu for each in seen() for gpu in each.split(","))
    assert shown == ["0", "1", "2", "3"]
    assert replicas(gpus) == 2


def test_a_replica_without_gpus_sees_none_and_goes_where_it_is_told(
    served: Start, gpus: Any, tmp_path: Path
) -> None:
    before = replicas(gpus)
    none = python_models.put(tmp_path, "none", SEES, CONFIG)
    flags = ["--cluster-cpus", "0.1", "--cluster-replicas", "1:1"]
    server = served("--model", none, "--cluster-resources", f"{KIND}=0.001", *flags)
    assert sees(server, "none") == ""
    assert replicas(gpus) == before + 1


def test_a_model_without_room_waits_for_a_node(
    nodes: Any, gpus: Any, add_node: Callable[..., Any], tmp_path: Path
) -> None:
    """All four GPUs are taken by the first test's."""
    late = python_models.put(tmp_path, "late", SEES, CONFIG)
    server = Server(
        *("--cluster", nodes.address, "--model", late, "--cluster-resources", "GPU=1"),
        *("--cluster-replicas", "1:1", "--cluster-cpus", "0.1"),
    ).start()
    try:
        until(lambda: "Ray is asked for: late" in server.log(), "not asked", LONG, server.log)
        added = add_node(num_gpus=1, env_vars={"CUDA_VISIBLE_DEVICES": "7"})
        server.wait_ready(LONG)
        assert sees(server, "late") == "7"
        nodes.remove_node(added, allow_graceful=False)
    finally:
        server.close()


def test_vllm_s_own_ray_executor_finds_the_cluster(
    served: Start, nodes: Any, gpus: Any, tmp_path: Path
) -> None:
    """The server under vLLM's name is a tiny one. It reserves no GPU, so all are to be seen."""
    before = replicas(gpus)
    inner, file = pretended.interpreter(tmp_path, "vllm-0.0.1"), tmp_path / "about.json"
    python = tmp_path / "recording"
    python.write_text(
        RECORD.format(python=sys.executable, inner=str(inner), file=str(file), executor=EXECUTOR)
    )
    python.chmod(0o755)
    server = served(
        *("--model", pretended.model(tmp_path / "big"), "--engine", "vllm", "--device", "cuda"),
        *("--vllm-python", python, "--tensor-parallel", "8", "--pipeline-parallel", "2"),
        *("--cluster-resources", f"{KIND}=0.001", "--cluster-replicas", "1:1"),
        *("--cluster-cpus", "0.1", "--gateways", "1"),
        *("--", EXECUTOR, "ray"),
    )
    body = {"model": "big", "prompt": "hello"}
    answer = server.client.post(f"{server.http}/v1/completions", json=body, timeout=LONG)
    assert answer.status_code == 200, answer.text
    about = json.loads(file.read_text())
    assert replicas(gpus) == before + 1
    # Its node is the machine's, which all nodes share here: only that it is this cluster shows.
    assert about["node"] in {node.node_id for node in nodes.list_all_nodes()}
    assert (about["sees"], about["ip"]) == ("0,1,2,3", gpus.node_ip_address)
    words = " ".join(about["words"])
    for flags in ("--tensor-parallel-size 8", "--pipeline-parallel-size 2", f"{EXECUTOR} ray"):
        assert flags in words


def test_why_a_model_cannot_start_is_said(nodes: Any, tmp_path: Path) -> None:
    wrong = python_models.put(tmp_path, "wrong", "raise ValueError('no such weights')", CONFIG)
    server = Server(
        *("--cluster", nodes.address, "--model", wrong, "--cluster-replicas", "1:1"),
        *("--cluster-cpus", "0.1"),
    ).start()
    try:
        assert server.process.wait(LONG) == 1
        assert "model wrong has failed: " in server.log()
        assert "no such weights" in server.log()
        assert "Traceback" not in server.log()
    finally:
        server.close()


def test_from_python(nodes: Any, gpus: Any, tmp_path: Path) -> None:
    program, said = tmp_path / "program.py", tmp_path / "said"
    model = str(onnx_models.mlp(tmp_path / "perceptron.onnx"))
    program.write_text(PROGRAM.format(model=model, cluster=nodes.address, kind=KIND))
    with said.open("wb") as output:
        process = subprocess.Popen([sys.executable, program], stdout=output)
    try:
        until(lambda: READY.search(said.read_text()), "it is not ready", LONG)
        (address,) = (found[1] for found in READY.finditer(said.read_text()))
        import httpx2

        tensor = {"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [1.0] * 64}
        answer = httpx2.post(
            f"{address}/v2/models/perceptron/infer", json={"inputs": [tensor]}, timeout=LONG
        )
        assert np.isfinite(answer.json()["outputs"][0]["data"]).all()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert "run has returned" in said.read_text()
    finally:
        process.kill()
        process.wait()
