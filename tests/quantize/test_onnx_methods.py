"""Each method on a small classifier with labelled rows and on a transformer's block, as the engine
that serves them sees the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from quantize_models import Rows, classifier, constant, context, glyphs, model, tokens, transformer

from ds_engines.base import EngineOptions, Tensors, load
from ds_engines.spec import ModelSpec
from ds_quantize.forms import OnnxModel
from ds_quantize.method import Method
from ds_quantize.methods.onnx import (
    Bf16,
    Fold,
    Fp8,
    Fp16,
    Int4Weights,
    Int8Dynamic,
    Int8Static,
    SmoothQuant,
)


@dataclass(frozen=True)
class Network:
    """A model, rows to calibrate it on and others to judge it by, and what it makes of those."""

    path: Path
    calibration: Rows
    evaluation: Rows
    outputs: Tensors


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Network:
    train, evaluation = glyphs(1500, 1), glyphs(1000, 2)
    path = classifier(tmp_path_factory.mktemp("digits") / "digits.onnx", train)
    calibration = Rows({"image": train.inputs["image"][:128]})
    return Network(path, calibration, evaluation, outputs_of(path, evaluation))


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> Network:
    path = transformer(tmp_path_factory.mktemp("block") / "block.onnx")
    return Network(path, tokens(64), tokens(32, seed=5), outputs_of(path, tokens(32, seed=5)))


def outputs_of(path: Path, rows: Rows) -> Tensors:
    """From the engine that serves ONNX files."""
    engine = load(ModelSpec("m", "onnxruntime", path), EngineOptions(threads=1))
    try:
        return engine.run(rows.inputs)
    finally:
        engine.close()


def apply(method: Method, network: Network, folder: Path) -> Path:
    """The file that the method makes; the one it is given stays as it is."""
    before = network.path.read_bytes()
    own = context(folder, network.path, network.calibration)
    made = method.load()(OnnxModel(network.path), method, own)
    assert network.path.read_bytes() == before
    assert isinstance(made, OnnxModel)
    assert [path.name for path in own.folder.iterdir()] == ["model.onnx"]
    return made.path


def accuracy(network: Network, outputs: Tensors) -> float:
    return float((outputs["logits"].argmax(axis=1) == network.evaluation.labels).mean())


def decibels(network: Network, path: Path) -> float:
    """Ratio of signal to quantization noise."""
    wanted = network.outputs["states"]
    noise = outputs_of(path, network.evaluation)["states"] - wanted
    return float(10 * np.log10((wanted**2).sum() / max((noise**2).sum(), 1e-30)))


def share(network: Network, path: Path) -> float:
    return path.stat().st_size / network.path.stat().st_size


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def name_of(method: object) -> str:
    """What differs from the method's defaults; nothing for the numbers of a case."""
    if not isinstance(method, Method):
        return ""
    fields = {field: getattr(method, field) for field in method.__struct_fields__}
    default = type(method)()
    said = [str(value) for field, value in fields.items() if value != getattr(default, field)]
    return "-".join([method.name, *said])


CLASSIFIERS = [
    # method, the most of the accuracy that may be lost, the most of the size that may be left
    (Fold(), 0.0, 1.02),
    (Fold(level="extended"), 0.0, 1.02),
    (Int8Static(), 0.01, 0.36),
    (Int8Static(per_channel=False), 0.02, 0.33),
    (Int8Static(calibration="entropy"), 0.01, 0.36),
    (Int8Static(calibration="percentile"), 0.01, 0.36),
    (Int8Static(calibration="mse"), 0.01, 0.36),
    (Int8Static(target="tensorrt"), 0.01, 0.36),
    (Int8Static(reduce_range=True), 0.02, 0.36),
    (Int8Dynamic(), 0.01, 0.8),
    (Fp16(), 0.002, 0.55),
    (Bf16(), 0.005, 0.55),
    (Fp8(), 0.01, 0.36),
    (SmoothQuant(), 0.01, 0.42),
    (Int4Weights(), 0.03, 0.75),
    pytest.param(Int4Weights(algorithm="gptq"), 0.01, 0.75, marks=pytest.mark.slow),
    (Int4Weights(algorithm="hqq"), 0.03, 0.76),
    pytest.param(Int4Weights(algorithm="awq"), 0.03, 0.8, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("method", "drop", "size"), CLASSIFIERS, ids=name_of)
def test_a_classifier_stays_right(
    method: Method, drop: float, size: float, digits: Network, tmp_path: Path
) -> None:
    path = apply(method, digits, tmp_path)
    before = accuracy(digits, digits.outputs)
    assert before > 0.9
    assert accuracy(digits, outputs_of(path, digits.evaluation)) >= before - drop
    assert share(digits, path) <= size


BLOCKS = [
    # method, the least ratio of signal to noise in decibels, the most of the size
    (Fold(), 100, 1.02),
    (Int8Static(), 18, 0.36),
    (Int8Static(calibration="mse"), 18, 0.36),
    (Int8Static(target="tensorrt"), 18, 0.36),
    (Int8Dynamic(), 20, 0.36),
    (Fp16(), 50, 0.55),
    (Bf16(), 40, 0.55),
    (Fp8(), 18, 0.36),
    (Int4Weights(), 14, 0.25),
    (Int4Weights(symmetric=False), 14, 0.25),
    (Int4Weights(algorithm="hqq"), 14, 0.25),
    (Int4Weights(algorithm="awq", target="tensorrt"), 14, 0.25),
    (Int4Weights(target="tensorrt", block_size=16), 14, 0.3),
]


@pytest.mark.parametrize(("method", "least", "size"), BLOCKS, ids=name_of)
def test_a_transformer_block_stays_near(
    method: Method, least: float, size: float, block: Network, tmp_path: Path
) -> None:
    path = apply(method, block, tmp_path)
    assert decibels(block, path) >= least
    assert share(block, path) <= size


def test_smoothing_helps_where_activations_have_outliers(block: Network, tmp_path: Path) -> None:
    plain = decibels(block, apply(Int8Static(), block, tmp_path))
    smooth = decibels(block, apply(SmoothQuant(), block, tmp_path))
    assert smooth > plain + 2


@pytest.mark.parametrize("algorithm", ["gptq", "awq"])
def test_looking_at_activations_beats_rounding_to_nearest(
    algorithm: str, block: Network, tmp_path: Path
) -> None:
    nearest = Int4Weights(symmetric=False)
    better = Int4Weights(symmetric=False, algorithm=algorithm)  # type: ignore[arg-type]
    assert decibels(block, apply(better, block, tmp_path)) > decibels(
        block, apply(nearest, block, tmp_path)
    )


def test_folding_leaves_standard_operators_alone(digits: Network, tmp_path: Path) -> None:
    model = onnx.load(apply(Fold(), digits, tmp_path))
    assert {opset.domain for opset in model.opset_import} == {""}
    onnx.checker.check_model(model, full_check=True)


def test_what_tensorrt_takes_has_no_zero_points_and_plain_biases(
    digits: Network, tmp_path: Path
) -> None:
    model = onnx.load(apply(Int8Static(target="tensorrt"), digits, tmp_path))
    constants = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
    }
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = constants[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
        if node.op_type == "Conv":
            assert constants[node.input[2]].dtype == np.float32


def test_operators_and_layers_can_be_left_out(digits: Network, tmp_path: Path) -> None:
    method = Int8Static(operators=("Conv", "Gemm"), exclude=("conv*",))
    model = onnx.load(apply(method, digits, tmp_path))
    made = {name: node for node in model.graph.node for name in node.output}
    sources = {
        node.name: made[node.input[1]].op_type if node.input[1] in made else "constant"
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm")
    }
    assert sources == {"conv1": "constant", "conv2": "constant", "head": "DequantizeLinear"}


@pytest.mark.parametrize("method", [Int8Static(), Int8Dynamic()], ids=name_of)
def test_tables_of_embeddings_shrink_too(method: Method, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table, weights = rng.normal(0, 1, (5000, 32)), rng.normal(0, 1, (32, 4))
    nodes = [
        helper.make_node("Cast", ["x"], ["ids"], "ids", to=onnx.TensorProto.INT64),
        helper.make_node("Gather", ["table", "ids"], ["found"], "lookup"),
        helper.make_node("MatMul", ["found", "w"], ["y"], "dense"),
    ]
    constants = [constant("table", table), constant("w", weights)]
    path = tmp_path / "embedding.onnx"
    onnx.save(model(nodes, [("x", ["n", 3])], [("y", ["n", 3, 4])], constants), path)
    ids = Rows({"x": rng.integers(0, 5000, (64, 3)).astype(np.float32)})
    wanted = outputs_of(path, ids)
    network = Network(path, ids, ids, wanted)
    made = apply(method, network, tmp_path)
    assert share(network, made) < 0.3
    assert np.corrcoef(outputs_of(made, ids)["y"].ravel(), wanted["y"].ravel())[0, 1] > 0.999


def test_int4_names_the_operator_of_its_target(block: Network, tmp_path: Path) -> None:
    assert "MatMulNBits" in operators(apply(Int4Weights(), block, tmp_path))
    standard = operators(apply(Int4Weights(target="tensorrt"), block, tmp_path))
    assert "MatMulNBits" not in standard
    assert "DequantizeLinear" in standard


def test_inputs_and_outputs_keep_their_types(digits: Network, tmp_path: Path) -> None:
    for method in (Fp16(), Bf16(), Fp8(), Int8Static()):
        model = onnx.load(apply(method, digits, tmp_path))
        kinds = [v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)]
        assert kinds == [onnx.TensorProto.FLOAT] * 2
