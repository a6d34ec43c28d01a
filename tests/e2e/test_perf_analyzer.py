"""NVIDIA's load generator in each of its ways to send."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx_models
import pytest
from serving import Server

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from loadtests import perf_analyzer

pytestmark = pytest.mark.slow

SHARED = ("--shared-memory", "system", "--output-shared-memory-size", "4096")
SUMS = """max_batch_size: 4
sequence_batching {
    control_input { name: "start" control {
        kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] } }
    control_input { name: "end" control { kind: CONTROL_SEQUENCE_END fp32_false_true: [0, 1] } }
    control_input { name: "ready" control {
        kind: CONTROL_SEQUENCE_READY bool_false_true: [false, true] } }
    control_input { name: "id" control {
        kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } }
    state { input_name: "state" output_name: "next" data_type: TYPE_FP32 dims: [1] }
}
"""


@pytest.fixture(scope="module")
def tool() -> perf_analyzer.Tool:
    try:
        return perf_analyzer.find()
    except perf_analyzer.BenchmarkError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def server(tool: perf_analyzer.Tool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("analyzed")
    mlp = onnx_models.mlp(folder / "mlp.onnx")
    onnx_models.told_sums(folder / "sums" / "model.onnx")
    (folder / "sums" / "config.pbtxt").write_text(SUMS)
    with Server("--model", mlp, "--model", folder / "sums") as running:
        yield running


@pytest.mark.parametrize(
    ("protocol", "model", "flags"),
    [
        ("http", "mlp", ()),
        ("http", "mlp", ("-a",)),
        ("http", "mlp", SHARED),
        ("http", "mlp", ("--input-tensor-format", "json", "--output-tensor-format", "json")),
        ("grpc", "mlp", ()),
        ("grpc", "mlp", ("-a",)),
        ("grpc", "mlp", ("-a", "--streaming")),
        ("grpc", "mlp", SHARED),
        ("grpc", "mlp", ("--grpc-compression-algorithm", "gzip")),
        ("http", "sums", ()),
        ("http", "sums", ("-a",)),
        ("grpc", "sums", ("-a",)),
        ("grpc", "sums", ("-a", "--streaming")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_it_measures(
    tool: perf_analyzer.Tool, server: Server, protocol: str, model: str, flags: tuple[str, ...]
) -> None:
    address = server.http_address if protocol == "http" else server.grpc
    before = failures(server, model)
    command = [tool.path, "-i", protocol, "-u", address, "-m", model, "-x", "1", *flags]
    command += ["--concurrency-range", "4", "-p", "300", "-r", "3", "-s", "999"]
    libraries = f"{perf_analyzer.CACHE}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    environment = os.environ | {"LD_LIBRARY_PATH": libraries}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"Throughput: ([\d.]+) infer/sec", done.stdout)
    assert found, done.stdout
    assert float(found[1]) > 0
    if model == "mlp":  # it leaves within sequences when its time is over
        assert failures(server, model) == before


def failures(server: Server, model: str) -> int:
    (found,) = server.get(f"/v2/models/{model}/stats").json()["model_stats"]
    return found["inference_stats"]["fail"]["count"]
