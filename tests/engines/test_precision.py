"""`--dtype` and `--memory-efficient` of engines on the CPU: other numbers, the same answers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_models
import onnxruntime
import pytest

from ds_engines.base import BatchEngine, EngineOptions, load
from ds_engines.errors import ConfigError
from ds_engines.onnx_halves import halved
from ds_engines.precision import canonical
from ds_engines.spec import BatchPolicy, ModelSpec

X = np.random.default_rng(1).standard_normal((5, 64), np.float32)


def answers(engine: str, folder: Path, **options: Any) -> np.ndarray:
    model = of(engine, folder, **options)
    found = model.run({"x": X})["y"]
    assert model.spec.batch.max_batch_size == 8
    assert model.spec.outputs[0].datatype == "FP32"
    model.close()
    return found


def of(engine: str, folder: Path, **options: Any) -> BatchEngine:
    path = onnx_models.mlp(folder / "mlp.onnx")
    return load(
        ModelSpec("m", engine, path, batch=BatchPolicy(max_batch_size=8)), EngineOptions(**options)
    )


@pytest.mark.parametrize(
    ("given", "name"),
    [("fp16", "fp16"), ("float16", "fp16"), ("half", "fp16"), ("bfloat16", "bf16"),
     ("float32", "fp32"), ("auto", "auto")],
)  # fmt: skip
def test_names_of_numbers(given: str, name: str) -> None:
    assert canonical(given) == name


def test_another_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"--dtype is 'fp8'; it must be auto, fp32"):
        canonical("fp8")


@pytest.mark.parametrize(("dtype", "error"), [("fp32", 1e-6), ("fp16", 0.05), ("bf16", 0.05)])
def test_openvino_computes_in_what_is_asked_as_far_as_the_processor_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, dtype: str, error: float
) -> None:
    whole = answers("openvino", tmp_path)
    with caplog.at_level(logging.INFO, logger="ds_engines.openvino"):
        found = answers("openvino", tmp_path, dtype=dtype)
    np.testing.assert_allclose(found, whole, atol=error * np.abs(whole).max())
    said = caplog.messages
    assert len(said) == 1
    if said == [f"model m: computed in {dtype}"]:
        assert np.array_equal(found, whole) == (dtype == "fp32")
    else:
        assert said[0].startswith(f"model m: --dtype {dtype}: this processor does not compute in")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_answers_are_the_same_in_less_memory(tmp_path: Path, engine: str) -> None:
    found = answers(engine, tmp_path, memory_efficient=True)
    np.testing.assert_allclose(found, answers(engine, tmp_path), rtol=1e-4, atol=1e-5)


def test_onnx_runtime_computes_fp32_as_it_does_anyway(tmp_path: Path) -> None:
    found = answers("onnxruntime", tmp_path, dtype="fp32")
    np.testing.assert_array_equal(found, answers("onnxruntime", tmp_path))


@pytest.mark.filterwarnings("ignore::UserWarning")  # of numbers that FP16 has not
def test_what_a_gpu_gets_for_fp16_has_the_same_inputs_and_answers(tmp_path: Path) -> None:
    path = onnx_models.mlp(tmp_path / "mlp.onnx")
    made = halved(path)
    kinds = {one.data_type for one in onnx.load_from_string(made).graph.initializer}
    assert kinds == {onnx.TensorProto.FLOAT16}
    whole, half = onnxruntime.InferenceSession(path), onnxruntime.InferenceSession(made)
    assert [(i.name, i.type) for i in half.get_inputs()] == [("x", "tensor(float)")]
    wanted = whole.run(None, {"x": X})[0]
    np.testing.assert_allclose(half.run(None, {"x": X})[0], wanted, atol=0.01)
