"""The model that the gateways are measured with: so small that the engine is not the limit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

INPUT, OUTPUT = "x", "y"
FEATURES, HIDDEN, CLASSES = 64, 128, 8


def write(path: Path) -> None:
    """A multilayer perceptron, float32 [n, 64] to [n, 8], of some 37 kB."""
    random = np.random.default_rng(0)
    weights = {
        "w1": random.standard_normal((FEATURES, HIDDEN)) / 8,
        "b1": random.standard_normal(HIDDEN),
        "w2": random.standard_normal((HIDDEN, CLASSES)) / 8,
        "b2": random.standard_normal(CLASSES),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", [INPUT, "w1", "b1"], ["h"]),
            helper.make_node("Relu", ["h"], ["a"]),
            helper.make_node("Gemm", ["a", "w2", "b2"], [OUTPUT]),
        ],
        "mlp",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["n", FEATURES])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, ir_version=9, opset_imports=[opset])
    onnx.checker.check_model(model)
    onnx.save(model, path)
