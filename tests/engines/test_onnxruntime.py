"""The ONNX Runtime engine: real files, real runs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_models
import onnxruntime
import pytest

from ds_engines.base import BatchEngine, EngineOptions, load
from ds_engines.errors import (
    ConfigError,
    EngineFailure,
    InvalidRequest,
    LoadError,
    Unsupported,
)
from ds_engines.spec import BatchPolicy, ModelSpec

POLICY = BatchPolicy(max_batch_size=8)


def engine_of(artifact: Path, **options: Any) -> BatchEngine:
    spec = ModelSpec("m", "onnxruntime", artifact, batch=POLICY)
    return load(spec, EngineOptions(**options))


@pytest.fixture
def mlp(tmp_path: Path) -> Iterator[BatchEngine]:
    engine = engine_of(onnx_models.mlp(tmp_path / "mlp.onnx"))
    yield engine
    engine.close()


def test_what_the_file_says_completes_the_spec(mlp: BatchEngine) -> None:
    assert [(t.name, t.datatype, t.shape) for t in mlp.spec.inputs] == [("x", "FP32", (-1, 64))]
    assert [(t.name, t.datatype, t.shape) for t in mlp.spec.outputs] == [("y", "FP32", (-1, 8))]
    assert mlp.spec.platform == "onnxruntime_onnx"


def test_results_are_those_of_onnx_runtime(mlp: BatchEngine) -> None:
    x = np.random.default_rng(1).standard_normal((5, 64), np.float32)
    direct = onnxruntime.InferenceSession(mlp.spec.artifact).run(None, {"x": x})[0]
    np.testing.assert_array_equal(mlp.run({"x": x})["y"], direct)


def test_only_the_outputs_named_are_computed(tmp_path: Path) -> None:
    engine = engine_of(onnx_models.sequences(tmp_path / "s.onnx"))
    x = {"x": np.ones((2, 3, 1), np.float32)}
    assert list(engine.run(x, ("total",))) == ["total"]
    assert set(engine.run(x)) == {"double", "total"}


def test_many_threads_run_one_engine(mlp: BatchEngine) -> None:
    random = np.random.default_rng(2)
    batches = [random.standard_normal((rows, 64), np.float32) for rows in range(1, 33)]
    alone = [mlp.run({"x": x})["y"] for x in batches]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda x: mlp.run({"x": x})["y"], batches * 4))
    for one, other in zip(alone * 4, together, strict=True):
        np.testing.assert_array_equal(one, other)


SAMPLES: dict[str, Any] = {
    "BOOL": np.array([[True, False, True]]),
    "UINT64": np.array([[0, 1, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, 0, 127]], np.int8),
    "FP64": np.array([[1e300, -0.0, np.nan]]),
    "BYTES": np.array([[b"", "\N{SNOWMAN}".encode(), b"a\x00b"]], object),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_datatypes_pass_unchanged(tmp_path: Path, name: str) -> None:
    engine = engine_of(onnx_models.identities(tmp_path / "i.onnx", [name]))
    result = engine.run({f"in_{name}": SAMPLES[name]})[f"out_{name}"]
    if name == "BYTES":
        assert [str(item).encode() for item in result.flat] == list(SAMPLES[name].flat)
    else:
        np.testing.assert_array_equal(result, SAMPLES[name])
        assert result.dtype == SAMPLES[name].dtype


def test_bf16_travels_as_bit_patterns(tmp_path: Path) -> None:
    engine = engine_of(onnx_models.identities(tmp_path / "i.onnx", onnx_models.HALVES))
    values = np.array([[1.5, -0.0, np.inf, 3e38]], ml_dtypes.bfloat16)
    batch = {"in_BF16": values.view(np.uint16), "in_FP16": np.array([[0.5]], np.float16)}
    results = engine.run(batch)
    assert results["out_BF16"].dtype == np.uint16
    np.testing.assert_array_equal(results["out_BF16"], values.view(np.uint16))
    np.testing.assert_array_equal(results["out_FP16"], batch["in_FP16"])
    empty = engine.run({"in_BF16": np.zeros((1, 0), np.uint16), "in_FP16": batch["in_FP16"]})
    assert empty["out_BF16"].shape == (1, 0)


def test_bf16_and_strings_together_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="'in_BYTES'"):
        engine_of(onnx_models.identities(tmp_path / "i.onnx", ["BF16", "BYTES"]))


def test_strings_that_are_not_text_are_refused_by_name(tmp_path: Path) -> None:
    engine = engine_of(onnx_models.identities(tmp_path / "i.onnx", ["BYTES"]))
    with pytest.raises(InvalidRequest, match="'in_BYTES' must be UTF-8"):
        engine.run({"in_BYTES": np.array([[b"\xff"]], object)})


def test_a_failing_run_says_what_failed_and_the_next_is_well(tmp_path: Path) -> None:
    engine = engine_of(onnx_models.lookup(tmp_path / "l.onnx"))
    with pytest.raises(EngineFailure, match="out of data bounds") as failed:
        engine.run({"index": np.array([[99]])})
    assert "\n" not in str(failed.value)
    assert engine.run({"index": np.array([[3]])})["value"].tolist() == [[30.0]]


def test_a_file_that_is_no_model_is_refused_by_name(tmp_path: Path) -> None:
    artifact = tmp_path / "bad.onnx"
    artifact.write_bytes(b"\x08\x08\x3a\x03\x12\x01g")
    with pytest.raises(LoadError, match=r"bad\.onnx") as refused:
        engine_of(artifact)
    assert "\n" not in str(refused.value)
    with pytest.raises(LoadError, match=r"none\.onnx"):
        engine_of(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"device": "cuda:0"}, "--device cuda:0"),
        ({"quantization": "int8"}, "--quantization int8"),
        ({"dtype": "fp16"}, "--dtype fp16: .*--engine openvino"),
        ({"dtype": "bf16"}, "--dtype bf16: .*--engine openvino"),
    ],
)
def test_what_the_engine_cannot_do_is_refused_by_name(
    tmp_path: Path, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(Unsupported, match=named):
        engine_of(onnx_models.mlp(tmp_path / "m.onnx"), **options)


def test_an_unknown_engine_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'tensorflow'.*onnxruntime"):
        load(ModelSpec("m", "tensorflow", tmp_path), EngineOptions())
