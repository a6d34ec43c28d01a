"""Quantization with training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from digits import Dense, Net, accuracy, answers, apply, arrays, as_model, trained, training
from onnx import TensorProto, numpy_helper
from torch import nn

from ds_quantize.errors import MethodError

pytestmark = pytest.mark.slow


class Sums(nn.Module):
    """Has nothing that could be quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(10))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.sum((1, 2, 3))[:, None] * self.scale


def test_int8_runs_in_integers_and_is_as_right(tmp_path: Path) -> None:
    model = trained()
    made, measured = apply("qat-int8", model, tmp_path, epochs=2)
    assert measured["layers"] == ["stem", "block.first", "block.second", "last", "head"]
    assert measured["operators"] == {
        "integer": {"QGemm": 1, "QLinearAdd": 1, "QLinearConv": 4},
        "floating": {},
    }
    assert accuracy(made, tmp_path) > accuracy(model, tmp_path) - 0.01
    images = arrays()[0]
    for rows in (1, 5):
        assert answers(made.path, images[:rows])["logits"].shape == (rows, 10)
    stored = {
        each.data_type for each in onnx.load(made.path).graph.initializer if len(each.dims) > 1
    }
    assert stored == {TensorProto.INT8}


def test_int8_for_tensorrt(tmp_path: Path) -> None:
    """Zero points of 0, biases in floating point; a plan is built of it without a GPU."""
    model = trained()
    made, _ = apply("qat-int8", model, tmp_path, epochs=1, target="tensorrt")
    assert accuracy(made, tmp_path) > accuracy(model, tmp_path) - 0.01
    graph = onnx.load(made.path).graph
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    quantized = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantized) == 5
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = constants[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed")
    plan, _ = apply(
        "tensorrt", made, tmp_path / "plan", original=made, library="tensorrt_rtx", level=0
    )
    assert plan.path.stat().st_size > 10_000


def test_int8_leaves_layers_that_are_excluded(tmp_path: Path) -> None:
    _, measured = apply("qat-int8", trained(), tmp_path, epochs=0, exclude=("block.*", "head"))
    assert measured["layers"] == ["stem", "last"]
    assert measured["operators"]["integer"] == {"QLinearConv": 2}
    with pytest.raises(MethodError, match="Sums has no convolution or linear layer"):
        apply("qat-int8", as_model(Sums()), tmp_path, epochs=0)


def test_int4_is_stored_as_such_and_gives_what_training_saw(tmp_path: Path) -> None:
    model = trained(Dense, 64)
    made, measured = apply("qat-int4", model, tmp_path, epochs=3)
    assert measured["layers"] == ["first", "second", "head"]
    assert measured["operators"] == {"integer": {"MatMulNBits": 3}, "floating": {}}
    assert made.path.stat().st_size < 0.3 * 4 * (64 * 64 * 2 + 64 * 10)
    assert accuracy(made, tmp_path) > accuracy(model, tmp_path) - 0.02
    rows = training()
    found = answers(made.path, rows["image"])["logits"].argmax(1)
    judged = measured["validation_after"]["accuracy"]
    assert float((found == rows["labels"]).mean()) == pytest.approx(judged, abs=0.05)


def test_int4_in_standard_operators(tmp_path: Path) -> None:
    model = trained(Dense, 64)
    made, _ = apply("qat-int4", model, tmp_path, epochs=1, target="tensorrt", group=64)
    graph = onnx.load(made.path).graph
    types = {each.name: each.data_type for each in graph.initializer}
    products = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    assert [types[node.input[0]] for node in products] == [TensorProto.INT4] * 3
    assert not any(node.domain for node in graph.node)
    assert accuracy(made, tmp_path) > accuracy(model, tmp_path) - 0.02


def test_int4_without_a_layer_that_fits(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="no linear layer whose inputs are a multiple of"):
        apply("qat-int4", as_model(Net(4)), tmp_path, group=64, epochs=0)
