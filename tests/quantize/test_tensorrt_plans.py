"""Plans by TensorRT for RTX, which needs no GPU to build them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import tensorrt_rtx_bindings as trt
from onnx import helper
from quantize_models import Rows, classifier, constant, context, glyphs, model, tokens, transformer

from ds_quantize import recipe
from ds_quantize.errors import MethodError
from ds_quantize.forms import Model, OnnxModel, PlanModel
from ds_quantize.method import Method
from ds_quantize.methods.onnx import Int8Static, TensorRT


def steps_of(name: str) -> list[Method]:
    """The recipe's steps for the target tensorrt, without a plan at the end."""
    steps = [step for step in recipe.load(name).steps if not isinstance(step, TensorRT)]
    return [
        msgspec.structs.replace(step, target="tensorrt") if hasattr(step, "target") else step
        for step in steps
    ]


INT8 = [
    name
    for name in recipe.names()
    if all(step.takes == "onnx" for step in recipe.load(name).steps)
    and any(isinstance(step, Int8Static) for step in recipe.load(name).steps)
]
OTHERS = ["fold", "int4-tensorrt", "fp16", "bf16", "fp8"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    train = glyphs(600, 1)
    path = classifier(tmp_path_factory.mktemp("digits") / "digits.onnx", train)
    return path, Rows({"image": train.inputs["image"][:64]})


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    path = transformer(tmp_path_factory.mktemp("block") / "block.onnx", width=128, outliers=0)
    return path, tokens(32, width=128)


def plan_of(name: str, path: Path, rows: Rows, folder: Path) -> PlanModel:
    """The recipe's steps, and then a plan."""
    now: Model = OnnxModel(path)
    for step in (*steps_of(name), TensorRT(batches=(1, 4, 16))):
        now = step.load()(now, step, context(folder, path, rows))
    assert isinstance(now, PlanModel)
    return now


def test_there_are_recipes_of_each_kind_of_calibration() -> None:
    assert len(INT8) >= 8
    kinds = {
        step.calibration for name in INT8 for step in steps_of(name) if isinstance(step, Int8Static)
    }
    assert kinds == {"min-max", "entropy", "percentile", "mse"}


@pytest.mark.parametrize("name", [*INT8, *OTHERS])
def test_what_a_recipe_makes_of_a_network_of_convolutions_builds(
    name: str, digits: tuple[Path, Rows], tmp_path: Path
) -> None:
    plan = plan_of(name, *digits, tmp_path)
    assert plan.path.stat().st_size > 10_000
    assert plan.library == f"tensorrt_rtx {trt.__version__}"


@pytest.mark.parametrize("name", ["int8", "smoothquant", "mixed", *OTHERS])
def test_what_a_recipe_makes_of_a_transformer_builds(
    name: str, block: tuple[Path, Rows], tmp_path: Path
) -> None:
    assert plan_of(name, *block, tmp_path).path.stat().st_size > 10_000


def test_quantized_plans_are_smaller(tmp_path: Path) -> None:
    """Where weights outweigh the code of layers, which a plan holds too."""
    rng = np.random.default_rng(0)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "dense")
    weight = constant("w", rng.normal(0, 1, (2048, 2048)))
    path = tmp_path / "large.onnx"
    onnx.save(model([node], [("x", ["n", 2048])], [("y", ["n", 2048])], [weight]), path)
    rows = Rows({"x": rng.normal(0, 1, (16, 2048)).astype(np.float32)})
    whole = plan_of("fold", path, rows, tmp_path).path.stat().st_size
    assert plan_of("int8-tensorrt", path, rows, tmp_path).path.stat().st_size < 0.4 * whole


Build = Callable[[onnx.ModelProto, TensorRT], None]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def run(proto: onnx.ModelProto, method: TensorRT) -> None:
        path = tmp_path / "model.onnx"
        onnx.save(proto, path)
        own = context(tmp_path, path)
        method.load()(OnnxModel(path), method, own)
        assert own.measured["plan"]["bytes"] > 0
        assert own.progress.tracked == ["Plan"]  # type: ignore[attr-defined]

    return run


def wide() -> onnx.ModelProto:
    """Two axes vary."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "dense")
    weight = constant("w", np.eye(8))
    return model([node], [("x", ["n", "s", 8])], [("y", ["n", "s", 8])], [weight])


def test_further_axes_need_shapes(build: Build) -> None:
    with pytest.raises(MethodError, match=r"input 'x' has the shape \[-1, -1, 8\]"):
        build(wide(), TensorRT())
    build(wide(), TensorRT(shapes={"x": ((1, 1, 8), (4, 16, 8), (8, 64, 8))}))


def test_shapes_of_an_input_that_there_is_not(build: Build) -> None:
    with pytest.raises(MethodError, match="names 'z'; inputs are 'x'"):
        build(wide(), TensorRT(shapes={"z": ((1, 1, 8), (4, 16, 8), (8, 64, 8))}))


def test_an_operator_that_tensorrt_lacks_names_the_layer(build: Build) -> None:
    node = helper.make_node("Frobnicate", ["x"], ["y"], "odd", domain="org.example")
    proto = wide()
    del proto.graph.node[:]
    proto.graph.node.append(node)
    proto.opset_import.append(helper.make_opsetid("org.example", 1))
    with pytest.raises(MethodError, match=r"layer 'odd' \(Frobnicate\)"):
        build(proto, TensorRT())


def test_a_plan_for_the_workspace_and_level_asked_for(build: Build) -> None:
    build(wide(), TensorRT(level=1, workspace=64, shapes={"x": ((1, 1, 8), (1, 2, 8), (2, 4, 8))}))
