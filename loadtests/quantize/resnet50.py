"""The shape of ResNet-50 with weights that chance made: for the speed, not for what it says.

The graph is the one that the `onnx` package carries for its own tests, where weights are constants.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper, version_converter

from loadtests.quantize import Case, recipe

GRAPH = Path(onnx.__file__).parent / "backend/test/data/light/light_resnet50.onnx"
CALIBRATION, OPSET = 16, 17
BRANCH = 0.3
"""What the last normalization of a block multiplies by, so that sixteen sums stay in bounds."""


def case(folder: Path, rows: int = 64) -> Case:
    """`rows` random pictures, smooth ones."""
    path = folder / "resnet50.onnx"
    onnx.save(build(), path)
    name = onnx.load(path).graph.input[0].name
    random = np.random.default_rng(0)
    for source, count in (("calibration", CALIBRATION), ("evaluation", rows)):
        np.savez(folder / f"{source}.npz", **{name: pictures(random, count)})
    return Case(
        name="ResNet-50's shape",
        about="pictures of 224 x 224; random weights, so only the speed means something",
        model=str(path),
        calibration=str(folder / "calibration.npz"),
        evaluation=str(folder / "evaluation.npz"),
        recipe=recipe("resnet50"),
    )


def pictures(random: np.random.Generator, count: int) -> npt.NDArray[np.float32]:
    """float32 [count, 3, 224, 224], each pixel near its neighbours."""
    coarse = random.standard_normal((count, 3, 14, 14)).astype(np.float32)
    fine = 0.3 * random.standard_normal((count, 3, 224, 224)).astype(np.float32)
    return coarse.repeat(16, 2).repeat(16, 3) + fine


def build() -> onnx.ModelProto:
    """FP32 [batch, 3, 224, 224] to FP32 [batch, 1000], opset 17."""
    model = onnx.load(GRAPH)
    model.ir_version = 8
    graph = model.graph
    _fill(graph)
    nodes = [node for node in graph.node if node.op_type not in ("ConstantOfShape", "Softmax")]
    for node in nodes:
        # A sum of two is an addition, and what this operator was for has gone.
        node.op_type = "Add" if node.op_type == "Sum" else node.op_type
    del graph.node[:]
    graph.node.extend(nodes)
    graph.output[0].name = nodes[-1].output[0]
    for value in (graph.input[0], graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    converted: onnx.ModelProto = version_converter.convert_version(model, OPSET)
    onnx.checker.check_model(converted)
    return converted


def _fill(graph: onnx.GraphProto) -> None:
    """Weights in place of the constants, and a reshape for any batch."""
    random = np.random.default_rng(0)
    shapes = _shapes(graph)
    made = {
        name: _weights(random, node.op_type, at, name, shapes[name])
        for node in graph.node
        for at, name in enumerate(node.input)
        if name in shapes and node.op_type in ("Conv", "BatchNormalization", "Gemm")
    }
    reshape = next(node for node in graph.node if node.op_type == "Reshape")
    made[reshape.input[1]] = np.array([-1, 2048], np.int64)
    data = graph.input[0]
    del graph.input[:], graph.initializer[:]
    graph.input.append(data)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in made.items())


def _shapes(graph: onnx.GraphProto) -> dict[str, list[int]]:
    """Of all weights, some of which the graph makes of a number and a shape."""
    given = {item.name: item for item in graph.initializer}
    made = {
        node.output[0]: numpy_helper.to_array(given[node.input[0]]).tolist()
        for node in graph.node
        if node.op_type == "ConstantOfShape"
    }
    return {name: list(item.dims) for name, item in given.items()} | made


def _weights(
    random: np.random.Generator, operator: str, at: int, name: str, shape: list[int]
) -> npt.NDArray[np.float32]:
    """He's initialization, and normalizations that pass on what they are given."""
    if operator == "BatchNormalization":
        scale = BRANCH if "branch2c" in name else 1.0
        return np.full(shape, {1: scale, 4: 1.0}.get(at, 0.0), np.float32)
    if len(shape) == 1:
        return np.zeros(shape, np.float32)
    spread = math.sqrt(2 / math.prod(shape[1:]))
    return (spread * random.standard_normal(shape)).astype(np.float32)
