"""Times of layers, from the engine itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_models
import pytest

from ds_engines import layers
from ds_engines.base import EngineOptions
from ds_engines.errors import LoadError, Unsupported
from ds_engines.spec import BatchPolicy, ModelSpec


def spec(path: Path, engine: str = "onnxruntime") -> ModelSpec:
    return ModelSpec("m", engine, path, batch=BatchPolicy(8))


def test_each_layer_of_an_onnx_model(tmp_path: Path) -> None:
    path = onnx_models.mlp(tmp_path / "mlp.onnx")
    batch = {"x": np.zeros((4, 64), np.float32)}
    found = layers.profile(spec(path), EngineOptions(), batch, 0.05)
    assert [layer.op for layer in found.layers] == ["MatMul", "Tanh", "MatMul"]
    assert found.engine == "onnxruntime"
    assert found.runs >= 5
    assert 0 < sum(layer.us for layer in found.layers) <= found.run_us


def test_each_layer_of_what_openvino_runs(tmp_path: Path) -> None:
    path = onnx_models.mlp(tmp_path / "mlp.onnx")
    batch = {"x": np.zeros((8, 64), np.float32)}
    found = layers.profile(spec(path, "openvino"), EngineOptions(), batch, 0.05)
    assert [layer.op for layer in found.layers].count("FullyConnected") == 2
    assert found.engine == "openvino"
    assert 0 < sum(layer.us for layer in found.layers) <= found.run_us


def test_layers_inside_of_others_count_once(tmp_path: Path) -> None:
    path = onnx_models.slow(tmp_path / "slow.onnx")
    batch = {"x": np.zeros((2, 4), np.float32), "steps": np.array([20])}
    found = layers.profile(spec(path), EngineOptions(), batch, 0.05)
    times = {layer.name: layer for layer in found.layers}
    (loop,) = [layer for layer in found.layers if layer.op == "Loop"]
    product = times[f"{loop.name}/MatMul_0"]
    assert product.us > loop.us
    assert sum(layer.us for layer in found.layers) <= found.run_us


def test_an_engine_without_a_profiler_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"openvino-genai gives no times of layers"):
        layers.profile(spec(tmp_path, "openvino-genai"), EngineOptions(), {}, 0.1)


def test_a_file_that_cannot_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"nothing")
    with pytest.raises(LoadError, match=r"broken\.onnx"):
        layers.profile(spec(path), EngineOptions(), {}, 0.1)
