"""The fraud model: the last 24 transactions of a card to the probability that the last is fraud."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from loadtests.models.card_features import FEATURES, STEPS
from loadtests.models.graph import Graph

INPUT, OUTPUT = "window", "fraud_probability"
HIDDEN, HEADS = 32, 4
GAIN = 8
"""Of the last layer: the answers to different windows are then far apart."""


def build() -> onnx.ModelProto:
    """FP32 [n, 24, 16], the newest transaction last, to FP32 [n, 1]: some 80 kB.

    An LSTM reads the window, a block of a Transformer encoder looks at all of its steps, and the
    mean of those goes to a small classifier.
    """
    graph = Graph()
    read = graph.reshape(_lstm(graph, INPUT), -1, HIDDEN)
    seen = graph.encoder(read, STEPS, HIDDEN, HEADS)
    mean = graph.add("ReduceMean", graph.reshape(seen, -1, STEPS, HIDDEN), axes=[1], keepdims=0)
    inner = graph.add("Relu", graph.linear(mean, HIDDEN, HIDDEN))
    graph.add("Sigmoid", graph.linear(inner, HIDDEN, 1, GAIN), name=OUTPUT)
    inputs = {INPUT: (TensorProto.FLOAT, ["n", STEPS, FEATURES])}
    return graph.model("fraud", inputs, {OUTPUT: ["n", 1]})


def write(path: Path) -> None:
    """The file is there whole or not at all."""
    made = build()
    onnx.checker.check_model(made)
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(made.SerializeToString())
    part.replace(path)


def _lstm(graph: Graph, x: str) -> str:
    """[n, steps, features] to [n, steps, 1, hidden]; ONNX wants the steps first."""
    gates = 4 * HIDDEN
    weights = [
        graph.drawn(1, gates, FEATURES, fan_in=FEATURES),
        graph.drawn(1, gates, HIDDEN, fan_in=HIDDEN),
        np.zeros((1, 2 * gates), np.float32),
    ]
    first = graph.add("Transpose", x, perm=[1, 0, 2])
    names = [graph.constant(weight) for weight in weights]
    read = graph.add("LSTM", first, *names, hidden_size=HIDDEN)
    return graph.add("Transpose", read, perm=[2, 0, 1, 3])
