"""The models that servers are measured with: one input, one output, one row a request.

Weights are random: a server's speed does not depend on what they are. Files are made where they
are missing, in a second or so, and are the same each time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from loadtests import model
from loadtests.peers import encoder

DTYPES: dict[str, np.dtype[Any]] = {
    "FP32": np.dtype(np.float32),
    "INT64": np.dtype(np.int64),
}


@dataclass(frozen=True)
class Workload:
    """`shape` and `out_shape` are of one row. `protocols` are those measured unless told.

    `stretch` is how many times as long as others it is measured: 64 rows at once must fit well
    into a third of that.
    """

    name: str
    title: str
    input: str
    datatype: str
    shape: tuple[int, ...]
    output: str
    out_shape: tuple[int, ...]
    protocols: tuple[str, ...]
    stretch: float = 1

    def rows(self, count: int) -> NDArray[np.generic]:
        """Input of shape [count, ...], the same each time."""
        random = np.random.default_rng(1)
        if self.datatype == "INT64":
            return random.integers(1, encoder.VOCABULARY, (count, *self.shape), dtype=np.int64)
        return random.random((count, *self.shape), dtype=np.float32)


def write_image(path: Path) -> None:
    """Mean over each channel, then a matrix: float32 [n, 3, 224, 224] to [n, 16]."""
    weight = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["x"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("MatMul", ["f", "w"], ["y"]),
        ],
        "image",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 224, 224])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16])],
        [numpy_helper.from_array(weight, "w")],
    )
    save(graph, path)


def save(graph: onnx.GraphProto, path: Path) -> None:
    made = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(made)
    onnx.save(made, path)


MLP = Workload(
    "mlp",
    "a multilayer perceptron of 37 kB, 64 floats in, 8 out",
    model.INPUT,
    "FP32",
    (model.FEATURES,),
    model.OUTPUT,
    (model.CLASSES,),
    ("JSON", "HTTP", "gRPC unary", "gRPC stream"),
)
ENCODER = Workload(
    "encoder",
    "a sentence encoder of the shape of all-MiniLM-L6-v2, 64 tokens in, 384 floats out",
    encoder.INPUT,
    "INT64",
    (encoder.TOKENS,),
    encoder.OUTPUT,
    (encoder.HIDDEN,),
    ("JSON", "gRPC unary"),
    stretch=3,
)
IMAGE = Workload(
    "image",
    "3 x 224 x 224 floats, 600 kB, through a model that hardly computes",
    "x",
    "FP32",
    (3, 224, 224),
    "y",
    (16,),
    ("bytes", "HTTP", "gRPC unary", "gRPC stream"),
)
WORKLOADS = {work.name: work for work in (MLP, ENCODER, IMAGE)}
WRITERS: dict[str, Callable[[Path], None]] = {
    "mlp": model.write,
    "encoder": encoder.write,
    "image": write_image,
}


def write(work: Workload, folder: Path) -> Path:
    """The model's file in `folder`."""
    path = folder / f"{work.name}.onnx"
    WRITERS[work.name](path)
    return path
