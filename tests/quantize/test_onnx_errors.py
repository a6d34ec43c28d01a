"""What cannot be quantized is told with the layer or the file, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from quantize_models import Rows, constant, context, glyphs, model

from ds_quantize.errors import DataError, MethodError, QuantizeError, SourceError
from ds_quantize.forms import FolderModel, Model, OnnxModel
from ds_quantize.method import Method
from ds_quantize.methods.onnx import (
    Fold,
    Fp8,
    Fp16,
    Int4Weights,
    Int8Dynamic,
    Int8Static,
    MixedPrecision,
    SmoothQuant,
)

SHAPE: list[int | str | None] = ["n", 8]


def rows(values: float = 1.0, width: int = 8) -> Rows:
    data = np.random.default_rng(0).normal(0, values, (16, width)).astype(np.float32)
    return Rows({"x": data}, source="data.npz")


def saved(tmp_path: Path, *nodes: onnx.NodeProto, **constants: object) -> Path:
    values = [constant(name, np.asarray(value)) for name, value in constants.items()]
    path = tmp_path / "model.onnx"
    onnx.save(model(list(nodes), [("x", SHAPE)], [("y", SHAPE)], values), path)
    return path


def product(tmp_path: Path) -> Path:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "dense")
    return saved(tmp_path, node, w=np.random.default_rng(0).normal(0, 1, (8, 8)))


def failure(method: Method, path: Path, tmp_path: Path, data: Rows | None) -> QuantizeError:
    own = context(tmp_path, path, data)
    with pytest.raises(QuantizeError) as caught:
        method.load()(OnnxModel(path), method, own)
    assert list(own.folder.iterdir()) == []
    return caught.value


CALIBRATED = [
    Int8Static(),
    Fp8(),
    SmoothQuant(),
    MixedPrecision(),
    Int4Weights(algorithm="gptq"),
    Int4Weights(algorithm="awq"),
]


@pytest.mark.parametrize("method", CALIBRATED, ids=lambda method: method.name)
def test_calibration_data_are_missing(method: Method, tmp_path: Path) -> None:
    assert method.needs_calibration
    error = failure(method, product(tmp_path), tmp_path, None)
    assert isinstance(error, DataError)
    assert "--calibration" in str(error)
    assert method.name in str(error)


@pytest.mark.parametrize("method", [Fold(), Fp16(), Int8Dynamic(), Int4Weights()])
def test_some_methods_need_no_data(method: Method, tmp_path: Path) -> None:
    assert not method.needs_calibration
    path = product(tmp_path)
    method.load()(OnnxModel(path), method, context(tmp_path, path))


@pytest.mark.parametrize("method", CALIBRATED, ids=lambda method: method.name)
def test_rows_that_the_model_does_not_take(method: Method, tmp_path: Path) -> None:
    error = failure(method, product(tmp_path), tmp_path, rows(width=5))
    assert isinstance(error, MethodError)
    assert "'x'" in str(error) or ": x" in str(error)


@pytest.mark.parametrize("method", CALIBRATED, ids=lambda method: method.name)
def test_nan_is_traced_to_its_layer(method: Method, tmp_path: Path) -> None:
    path = saved(
        tmp_path,
        helper.make_node("Log", ["x"], ["logs"], "logs"),
        helper.make_node("MatMul", ["logs", "w"], ["y"], "dense"),
        w=np.eye(8),
    )
    error = failure(method, path, tmp_path, rows())
    assert isinstance(error, MethodError)
    assert "layer 'logs' (Log)" in str(error)


@pytest.mark.parametrize(
    "method", [Int8Static(), Int8Dynamic(), Int4Weights(), Fp8(), MixedPrecision()]
)
def test_a_model_without_layers_to_quantize(method: Method, tmp_path: Path) -> None:
    path = saved(tmp_path, helper.make_node("Relu", ["x"], ["y"], "relu"))
    error = failure(method, path, tmp_path, rows())
    assert "no layer to quantize" in str(error)
    assert "it has Relu" in str(error)


@pytest.mark.parametrize("method", [Int8Static(), Int8Dynamic(), Int4Weights(), Fp8()])
def test_weights_that_are_not_finite(method: Method, tmp_path: Path) -> None:
    weights = np.eye(8)
    weights[2, 3] = np.nan
    path = saved(tmp_path, helper.make_node("MatMul", ["x", "w"], ["y"], "dense"), w=weights)
    error = failure(method, path, tmp_path, rows())
    assert "layer 'dense' (MatMul) has weights that are not finite: 'w'" in str(error)


def test_all_layers_are_excluded(tmp_path: Path) -> None:
    method = Int8Static(exclude=("dense",))
    assert "no layer to quantize" in str(failure(method, product(tmp_path), tmp_path, rows()))


def test_a_layer_to_exclude_that_there_is_not(tmp_path: Path) -> None:
    error = failure(Int8Static(exclude=("conv9*",)), product(tmp_path), tmp_path, rows())
    assert "'conv9*'" in str(error)
    assert "'dense'" in str(error)


def test_smoothing_needs_products(tmp_path: Path) -> None:
    train = glyphs(8, 0)
    nodes = [helper.make_node("Conv", ["image", "w"], ["y"], "conv")]
    path = tmp_path / "conv.onnx"
    weights = [constant("w", np.ones((2, 1, 3, 3)))]
    onnx.save(model(nodes, [("image", ["n", 1, 12, 12])], [("y", ["n", 2, 10, 10])], weights), path)
    assert "nothing to smooth" in str(failure(SmoothQuant(), path, tmp_path, train))


def test_a_model_that_is_quantized_already(tmp_path: Path) -> None:
    path, method = product(tmp_path), Int8Static()
    once = method.load()(OnnxModel(path), method, context(tmp_path, path, rows()))
    assert isinstance(once, OnnxModel)
    assert "quantized already: layer" in str(failure(method, once.path, tmp_path, rows()))


def test_an_output_that_collapses_names_the_layer(tmp_path: Path) -> None:
    """Two weights of 1e6 leave the same 127 of 255 levels to all others: the rest becomes zero."""
    weights = np.random.default_rng(0).normal(0, 1, (8, 8))
    weights[:, 0] = 1e7
    last = np.eye(8)
    last[0, 0] = 0
    path = saved(
        tmp_path,
        helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
        helper.make_node("MatMul", ["h", "last"], ["y"], "second"),
        w=weights,
        last=last,
    )
    error = failure(Int8Static(per_channel=False), path, tmp_path, rows())
    assert isinstance(error, MethodError)
    assert "layer 'second' (MatMul) gives the same for every row" in str(error)


def test_what_half_precision_cannot_hold_stays_as_it_is(tmp_path: Path) -> None:
    path = saved(
        tmp_path,
        helper.make_node("Mul", ["x", "many"], ["big"], "up"),
        helper.make_node("Exp", ["big"], ["huge"], "blow"),
        helper.make_node("Log", ["huge"], ["small"], "back"),
        helper.make_node("MatMul", ["small", "w"], ["y"], "dense"),
        many=[10.0] * 8,
        w=np.eye(8),
    )
    own = context(tmp_path, path, Rows({"x": np.full((16, 8), 2, np.float32)}))
    Fp16().load()(OnnxModel(path), Fp16(), own)
    assert own.measured["kept"] == ["blow", "back"]


def test_int4_without_zero_points_for_tensorrt(tmp_path: Path) -> None:
    method = Int4Weights(target="tensorrt", symmetric=False)
    assert "symmetric" in str(failure(method, product(tmp_path), tmp_path, rows()))


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"this is not protobuf")
    error = failure(Fold(), path, tmp_path, None)
    assert isinstance(error, SourceError)
    assert "broken.onnx" in str(error)


def test_a_model_of_another_form(tmp_path: Path) -> None:
    folder: Model = FolderModel(tmp_path)
    with pytest.raises(SourceError, match="huggingface"):
        Fold().load()(folder, Fold(), context(tmp_path, tmp_path))


def test_a_model_of_an_old_opset_is_brought_up_to_date(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "dense")]
    proto = model(nodes, [("x", SHAPE)], [("y", SHAPE)], [constant("w", np.eye(8))], opset=11)
    proto.ir_version = 3
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [8, 8]))
    path = tmp_path / "old.onnx"
    onnx.save(proto, path)
    method = Int8Static()
    made = method.load()(OnnxModel(path), method, context(tmp_path, path, rows()))
    assert isinstance(made, OnnxModel)
    onnx.checker.check_model(onnx.load(made.path))
