"""An ONNX graph under way: nodes, seeded weights, and the blocks that both models are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

OPSET, IR_VERSION = 17, 9
"""Old enough for every engine that reads ONNX, new enough for LayerNormalization."""

FAR = -1e4
"""Added to the attention scores of padding: exp of it is 0, and a row of padding alone no NaN."""


class Graph:
    """`add` and its kin return the name of the tensor that they make.

    Layers work on matrices, [rows, width], with one `Gemm` each: ONNX Runtime multiplies them in
    one go, whatever the batch, and adds the bias on the way.
    """

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(seed)

    def add(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """A node of one output, which is called `name` where that is given."""
        return self.several(kind, 1, *inputs, name=name, **attributes)[0]

    def several(
        self, kind: str, outputs: int, *inputs: str, name: str = "", **attributes: Any
    ) -> list[str]:
        """A node of several outputs."""
        name = name or f"{kind.lower()}_{len(self.nodes)}"
        names = [name] if outputs == 1 else [f"{name}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name, **attributes))
        return names

    def constant(self, value: npt.NDArray[np.generic]) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def numbers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def drawn(self, *shape: int, fan_in: int) -> npt.NDArray[np.float32]:
        """Normally distributed around 0 with the variance 1 / fan_in."""
        return self._random.standard_normal(shape, np.float32) / np.float32(fan_in**0.5)

    def reshape(self, x: str, *shape: int) -> str:
        """0 keeps a size of `x`, -1 is what is left."""
        return self.add("Reshape", x, self.numbers(*shape))

    def linear(self, x: str, inputs: int, outputs: int, gain: float = 1) -> str:
        """[rows, inputs] to [rows, outputs], with weights `gain` times the usual."""
        weight = self.constant(self.drawn(inputs, outputs, fan_in=inputs) * np.float32(gain))
        bias = self.constant(self.drawn(outputs, fan_in=100))
        return self.add("Gemm", x, weight, bias)

    def norm(self, x: str, width: int) -> str:
        one = self.constant(np.ones(width, np.float32))
        zero = self.constant(np.zeros(width, np.float32))
        return self.add("LayerNormalization", x, one, zero, axis=-1)

    def encoder(self, x: str, steps: int, width: int, heads: int, mask: str = "") -> str:
        """A block of a Transformer encoder: [n * steps, width] to the same.

        `mask` is added to the scores and is of a shape that goes with [n, heads, steps, steps].
        """
        x = self.norm(self.add("Add", x, self._attention(x, steps, width, heads, mask)), width)
        inner = self.add("Relu", self.linear(x, width, 2 * width))
        return self.norm(self.add("Add", x, self.linear(inner, 2 * width, width)), width)

    def _attention(self, x: str, steps: int, width: int, heads: int, mask: str) -> str:
        size = width // heads

        def part(scale: float, order: list[int]) -> str:
            weight = self.constant(self.drawn(width, width, fan_in=width) * np.float32(scale))
            split = self.reshape(self.add("MatMul", x, weight), -1, steps, heads, size)
            return self.add("Transpose", split, perm=order)

        # The scores are scaled by way of the query's weights, which costs nothing.
        query = part(size**-0.5, [0, 2, 1, 3])
        key, value = part(1, [0, 2, 3, 1]), part(1, [0, 2, 1, 3])
        scores = self.add("MatMul", query, key)
        scores = self.add("Add", scores, mask) if mask else scores
        read = self.add("MatMul", self.add("Softmax", scores, axis=-1), value)
        joined = self.add("Transpose", read, perm=[0, 2, 1, 3])
        return self.linear(self.reshape(joined, -1, width), width, width)

    def model(
        self,
        name: str,
        inputs: Mapping[str, tuple[int, Sequence[Any]]],
        outputs: Mapping[str, Sequence[Any]],
    ) -> onnx.ModelProto:
        """The whole. `inputs`: their element type and shape; `outputs`, of floats: their shape."""
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(key, *value) for key, value in inputs.items()],
            [
                helper.make_tensor_value_info(key, onnx.TensorProto.FLOAT, shape)
                for key, shape in outputs.items()
            ],
            self.weights,
        )
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(graph, ir_version=IR_VERSION, opset_imports=[opset])
