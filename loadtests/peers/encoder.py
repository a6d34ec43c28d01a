"""A sentence encoder of the shape of all-MiniLM-L6-v2 as an ONNX file, with random weights.

6 layers, 384 wide, 12 heads, 1,536 within, a vocabulary of 30,522 and mean pooling, as its
config.json on the Hugging Face hub says: some 22 million parameters. Padding is token 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

INPUT, OUTPUT = "input_ids", "embedding"
TOKENS, HIDDEN, HEADS, LAYERS, INNER, VOCABULARY = 64, 384, 12, 6, 1536, 30_522


class Builder:
    """Nodes and weights of a graph under way; `add` and its kin return a tensor's name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(0)

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def constant(self, value: NDArray[np.generic]) -> str:
        name = f"c_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def weight(self, *shape: int) -> str:
        return self.constant((self._random.standard_normal(shape) * 0.05).astype(np.float32))

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        product = self.add("MatMul", x, self.weight(inputs, outputs))
        return self.add("Add", product, self.weight(outputs))

    def norm(self, x: str) -> str:
        one = self.constant(np.ones(HIDDEN, np.float32))
        zero = self.constant(np.zeros(HIDDEN, np.float32))
        return self.add("LayerNormalization", x, one, zero, axis=-1, epsilon=1e-12)

    def numbers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))


def write(path: Path) -> None:
    """int64 [n, 64] to float32 [n, 384], some 90 MB."""
    build = Builder()
    present = build.add("Cast", build.add("Greater", INPUT, build.numbers(0)), to=TensorProto.FLOAT)
    words = build.add("Gather", build.weight(VOCABULARY, HIDDEN), INPUT)
    x = build.norm(build.add("Add", words, build.weight(TOKENS, HIDDEN)))
    absent = build.add("Sub", build.scalar(1), present)
    far = build.add("Mul", absent, build.scalar(-1e4))
    mask = build.add("Unsqueeze", far, build.numbers(1, 2))
    for _ in range(LAYERS):
        x = _layer(build, x, mask)
    _pool(build, x, present)
    graph = helper.make_graph(
        build.nodes,
        "encoder",
        [helper.make_tensor_value_info(INPUT, TensorProto.INT64, ["n", TOKENS])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", HIDDEN])],
        build.weights,
    )
    made = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(made)
    onnx.save(made, path)


def _layer(build: Builder, x: str, mask: str) -> str:
    x = build.norm(build.add("Add", x, _attention(build, x, mask)))
    inner = _gelu(build, build.linear(x, HIDDEN, INNER))
    return build.norm(build.add("Add", x, build.linear(inner, INNER, HIDDEN)))


def _attention(build: Builder, x: str, mask: str) -> str:
    shape = build.numbers(0, TOKENS, HEADS, HIDDEN // HEADS)
    root = build.scalar((HIDDEN / HEADS) ** 0.5)

    def heads(order: list[int]) -> str:
        parts = build.add("Reshape", build.linear(x, HIDDEN, HIDDEN), shape)
        return build.add("Transpose", parts, perm=order)

    query, key, value = heads([0, 2, 1, 3]), heads([0, 2, 3, 1]), heads([0, 2, 1, 3])
    scores = build.add("Div", build.add("MatMul", query, key), root)
    weights = build.add("Softmax", build.add("Add", scores, mask), axis=-1)
    joined = build.add("Transpose", build.add("MatMul", weights, value), perm=[0, 2, 1, 3])
    flat = build.add("Reshape", joined, build.numbers(0, TOKENS, HIDDEN))
    return build.linear(flat, HIDDEN, HIDDEN)


def _gelu(build: Builder, x: str) -> str:
    """x / 2 * (1 + erf(x / sqrt 2)), spelt as exporters do, so that it is fused."""
    erf = build.add("Erf", build.add("Div", x, build.scalar(2**0.5)))
    twice = build.add("Mul", x, build.add("Add", erf, build.scalar(1)))
    return build.add("Mul", twice, build.scalar(0.5))


def _pool(build: Builder, x: str, present: str) -> None:
    """The mean over the tokens that are there, of length 1."""
    weights = build.add("Unsqueeze", present, build.numbers(2))
    axis = build.numbers(1)
    total = build.add("ReduceSum", build.add("Mul", x, weights), axis, keepdims=0)
    count = build.add("ReduceSum", weights, axis, keepdims=0)
    mean = build.add("Div", total, build.add("Max", count, build.scalar(1)))
    build.nodes.append(
        helper.make_node("LpNormalization", [mean], [OUTPUT], "normalize", axis=-1, p=2)
    )
