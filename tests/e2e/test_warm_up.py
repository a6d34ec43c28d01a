"""Warm-ups: run before a model is ready, counted nowhere, and a reason where they fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx_models import lookup, mlp, told_sums
from serving import Server

ROWS = 'inputs { key: "%s" value { data_type: %s dims: [%d] %s } }'
LOOKUP = """model_warmup {{ name: "three" batch_size: 3 count: 2 {} }}
model_warmup {{ name: "table" batch_size: 1 {} }}""".format(
    ROWS % ("index", "TYPE_INT64", 1, "random_data: true"),
    ROWS % ("index", "TYPE_INT64", 1, 'input_data_file: "index"'),
)
SUMS = """max_batch_size: 4
sequence_batching {
    control_input { name: "start" control {
        kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] } }
    control_input { name: "end" control { kind: CONTROL_SEQUENCE_END fp32_false_true: [0, 1] } }
    control_input { name: "ready" control {
        kind: CONTROL_SEQUENCE_READY bool_false_true: [false, true] } }
    control_input { name: "id" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } }
    state { input_name: "state" output_name: "next" data_type: TYPE_FP32 dims: [1] }
}
model_warmup { name: "zero" batch_size: 4 %s }""" % (
    ROWS % ("x", "TYPE_FP32", 1, "zero_data: true")
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`good` reads entry 15 of its table, `bad` entry 16, which there is not."""
    folder = tmp_path_factory.mktemp("warm")
    for name, index in {"good": 15, "bad": 16}.items():
        lookup(folder / name / "model.onnx")
        (folder / name / "config.pbtxt").write_text(LOOKUP)
        (folder / name / "warmup").mkdir()
        (folder / name / "warmup" / "index").write_bytes(np.int64(index).tobytes())
    told_sums(folder / "sums" / "model.onnx")
    (folder / "sums" / "config.pbtxt").write_text(SUMS)
    mlp(folder / "plain.onnx")
    return folder


def test_models_are_warm_before_they_are_ready(folder: Path) -> None:
    with Server("--model", folder / "good", "--model", folder / "sums") as server:
        log = server.log()
        assert log.index("warm-up three: 3 rows, 2 times") < log.index("warm-up table: 1 rows")
        assert "warm-up zero: 4 rows, 1 times" in log
        found = server.get("/v2/models/good/stats").json()["model_stats"][0]
        assert (found["inference_count"], found["execution_count"]) == (0, 0)
        told = server.get("/v2/models/good/config").json()["model_warmup"]
        assert [each["name"] for each in told] == ["three", "table"]


@pytest.mark.slow
def test_a_warm_up_that_fails_fails_its_model(folder: Path) -> None:
    with Server("--model", folder / "plain.onnx", "--model", folder / "bad") as server:
        assert server.get("/v2/models/plain/ready").status_code == 200
        refused = server.client.post(f"{server.http}/v2/models/bad/infer", json={})
        assert refused.status_code == 503
        assert "warm-up 'table' failed: ONNX Runtime failed" in refused.json()["error"]
        assert "starting it again" not in server.log()
