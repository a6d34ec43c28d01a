"""The OpenVINO engine: networks made here, in OpenVINO's own format."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from ds_engines.base import BatchEngine, EngineOptions, load
from ds_engines.errors import EngineFailure, LoadError, Unsupported
from ds_engines.spec import BatchPolicy, ModelSpec

WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3)


def network(file: Path, shape: tuple[int, ...] = (-1, 4), kind: str = "f32") -> Path:
    """y = x @ WEIGHTS, z = x + x."""
    x = ops.parameter(ov.PartialShape(list(shape)), getattr(ov.Type, kind), name="x")
    floats = ops.convert(x, "f32")
    y = ops.matmul(floats, ops.constant(WEIGHTS), transpose_a=False, transpose_b=False)
    results = [ops.result(y), ops.result(ops.add(x, x))]
    for result, name in zip(results, "yz", strict=True):
        result.output(0).set_names({name})
    x.output(0).set_names({"x"})
    ov.save_model(ov.Model(results, [x], "net"), file, compress_to_fp16=False)
    return file


def engine_of(artifact: Path, **options: Any) -> BatchEngine:
    spec = ModelSpec("m", "openvino", artifact, batch=BatchPolicy(max_batch_size=8))
    return load(spec, EngineOptions(**options))


def test_the_file_completes_the_spec_and_rows_join(tmp_path: Path) -> None:
    engine = engine_of(network(tmp_path / "net.xml"))
    assert [(t.name, t.datatype, t.shape, t.batch_axis) for t in engine.spec.inputs] == [
        ("x", "FP32", (-1, 4), 0)
    ]
    assert [(t.name, t.shape, t.batch_axis) for t in engine.spec.outputs] == [
        ("y", (-1, 3), 0),
        ("z", (-1, 4), 0),
    ]
    assert (engine.spec.platform, engine.spec.batch.max_batch_size) == ("openvino", 8)
    x = np.random.default_rng(0).random((5, 4), np.float32)
    answer = engine.run({"x": x})
    np.testing.assert_allclose(answer["y"], x @ WEIGHTS, rtol=1e-5)
    assert list(engine.run({"x": x}, ("z",))) == ["z"]
    engine.close()


def test_an_answer_outlives_the_next_run(tmp_path: Path) -> None:
    engine = engine_of(network(tmp_path / "net.xml"))
    first = engine.run({"x": np.ones((2, 4), np.float32)})["z"]
    engine.run({"x": np.zeros((2, 4), np.float32)})
    assert (first == 2).all()


def test_many_threads_run_one_engine(tmp_path: Path) -> None:
    engine = engine_of(network(tmp_path / "net.xml"), threads=2)

    def ask(value: int) -> float:
        return float(engine.run({"x": np.full((1, 4), value, np.float32)}, ("z",))["z"][0, 0])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(200))) == [2.0 * value for value in range(200)]


def test_a_fixed_size_is_served_one_request_at_a_time(tmp_path: Path) -> None:
    engine = engine_of(network(tmp_path / "net.xml", (1, 4)))
    assert engine.spec.batch.max_batch_size == 0


@pytest.mark.parametrize(
    ("kind", "datatype"), [("f16", "FP16"), ("bf16", "FP32"), ("i64", "INT64")]
)
def test_datatypes(tmp_path: Path, kind: str, datatype: str) -> None:
    engine = engine_of(network(tmp_path / "net.xml", kind=kind))
    assert engine.spec.inputs[0].datatype == datatype
    dtype = {"FP16": np.float16, "FP32": np.float32, "INT64": np.int64}[datatype]
    answer = engine.run({"x": np.ones((1, 4), dtype)})
    assert answer["z"].dtype == dtype
    assert answer["z"].tolist() == [[2, 2, 2, 2]]


def test_a_wrong_shape_fails_that_run_alone(tmp_path: Path) -> None:
    engine = engine_of(network(tmp_path / "net.xml"))
    with pytest.raises(EngineFailure, match="OpenVINO failed"):
        engine.run({"x": np.ones((1, 5), np.float32)})
    assert engine.run({"x": np.ones((1, 4), np.float32)})["z"].shape == (1, 4)


def test_what_is_no_model_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "net.xml").write_text('<?xml version="1.0"?><net name="n" version="11"></net>')
    with pytest.raises(LoadError, match=r"net\.xml"):
        engine_of(tmp_path / "net.xml")
    (tmp_path / "net.tflite").write_bytes(b"\x1c\0\0\0TFL3" + b"\0" * 100)
    with pytest.raises(LoadError, match="no subgraphs"):
        engine_of(tmp_path / "net.tflite")


@pytest.mark.parametrize("options", [{"device": "cuda:0"}, {"quantization": "int8"}])
def test_options_that_it_cannot_honour(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(Unsupported, match="OpenVINO engine"):
        engine_of(network(tmp_path / "net.xml"), **options)
