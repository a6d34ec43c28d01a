"""Ranges of activations: what each way of calibration makes of outliers, and of data that lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from quantize_models import Rows, constant, context, model

from ds_quantize.methods.onnx import Int8Static
from ds_quantize.onnx_methods.ranges import Ranges, measure


def relu(tmp_path: Path) -> tuple[onnx.ModelProto, Path]:
    nodes = [helper.make_node("Relu", ["x"], ["y"], "relu")]
    proto = model(nodes, [("x", ["n", 64])], [("y", ["n", 64])], [])
    onnx.save(proto, tmp_path / "relu.onnx")
    return proto, tmp_path / "relu.onnx"


def normal(rows: int = 200, outlier: float = 0.0) -> Rows:
    values = np.random.default_rng(0).normal(0, 1, (rows, 64)).astype(np.float32)
    if outlier:
        values[rows // 2, 3] = outlier
    return Rows({"x": values})


def ranges_of(rows: Rows, method: Int8Static, tmp_path: Path, symmetric: bool = False) -> Ranges:
    proto, path = relu(tmp_path)
    return measure(proto, ("x", "y"), method, context(tmp_path, path, rows), symmetric)


def test_min_max_takes_all(tmp_path: Path) -> None:
    rows = normal(outlier=100)
    found = ranges_of(rows, Int8Static(), tmp_path).found
    assert found["x"] == (float(rows.inputs["x"].min()), 100)
    assert found["y"] == (0, 100)


@pytest.mark.parametrize("calibration", ["percentile", "mse", "entropy"])
def test_the_others_leave_an_outlier_out(calibration: str, tmp_path: Path) -> None:
    method = Int8Static(calibration=calibration, samples=0, batch=1000)  # type: ignore[arg-type]
    found = ranges_of(normal(rows=10_000, outlier=25), method, tmp_path).found
    low, high = found["x"]
    assert -6 < low <= -2
    assert 2 < high < 15
    assert found["y"][0] == 0
    assert 2 < found["y"][1] < 20


@pytest.mark.parametrize("calibration", ["mse", "entropy"])
def test_without_outliers_nearly_all_is_kept(calibration: str, tmp_path: Path) -> None:
    method = Int8Static(calibration=calibration)  # type: ignore[arg-type]
    rows = Rows({"x": np.random.default_rng(1).uniform(-3, 5, (300, 64)).astype(np.float32)})
    low, high = ranges_of(rows, method, tmp_path).found["x"]
    assert low == pytest.approx(-3, abs=0.2)
    assert high == pytest.approx(5, abs=0.3)


def test_the_least_squared_error_is_less_than_that_of_the_extremes(tmp_path: Path) -> None:
    rows = normal(outlier=30)
    values = rows.inputs["x"]

    def error(extent: tuple[float, float]) -> float:
        low, high = extent
        step = (high - low) / 255
        rounded = np.round(np.clip(values, low, high) / step) * step
        return float(((values - rounded) ** 2).sum())

    best = ranges_of(rows, Int8Static(calibration="mse"), tmp_path).found["x"]
    whole = ranges_of(rows, Int8Static(), tmp_path).found["x"]
    assert error(best) < error(whole)


def test_symmetric_ranges_reach_as_far_on_both_sides(tmp_path: Path) -> None:
    method = Int8Static(calibration="mse")
    low, high = ranges_of(normal(), method, tmp_path, symmetric=True).found["x"]
    assert low == -high


def test_no_more_rows_are_read_than_asked_for(tmp_path: Path) -> None:
    rows = normal(rows=100)
    rows.inputs["x"][32:] *= 50
    low, high = ranges_of(rows, Int8Static(samples=32, batch=8), tmp_path).found["x"]
    assert max(-low, high) < 10


def test_what_has_no_bounds_is_told_apart(tmp_path: Path) -> None:
    rows = normal()
    rows.inputs["x"][5, 5] = -np.inf
    found = ranges_of(rows, Int8Static(), tmp_path)
    assert found.unbounded == {"x"}
    assert "x" not in found.found


def test_a_layer_next_to_a_mask_stays_as_it_is(tmp_path: Path) -> None:
    """Attention adds -inf where it must not look; such sums cannot be quantized."""
    rng = np.random.default_rng(0)
    constants = [
        constant("w", rng.normal(0, 1, (64, 8))),
        constant("mask", [[0, -np.inf] * 4]),
        constant("v", rng.normal(0, 1, (8, 4))),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scores"], "scores"),
        helper.make_node("Add", ["scores", "mask"], ["masked"], "mask"),
        helper.make_node("Softmax", ["masked"], ["p"], "softmax", axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["y"], "out"),
    ]
    path = tmp_path / "masked.onnx"
    onnx.save(model(nodes, [("x", ["n", 1, 64])], [("y", ["n", 1, 4])], constants), path)
    rows = Rows({"x": normal().inputs["x"][:, None]})
    method, own = Int8Static(operators=("MatMul", "Add")), context(tmp_path, path, rows)
    made = onnx.load(method.load()(own.original, method, own).path)  # type: ignore[union-attr]
    add = next(node for node in made.graph.node if node.name == "mask")
    assert list(add.input)[1] == "mask"
    assert own.measured["layers"] == {"quantized": 2, "kept": 0}
    assert "mask" in own.progress.said[0]  # type: ignore[attr-defined]
