"""The recommender: what a user did last, and 100 candidates, to a score for each of them.

Deep interest network (Zhou et al. 2018, arXiv:1706.06978) over a behaviour sequence that a
Transformer encoder has read (Chen et al. 2019, arXiv:1905.06874), then cross layers (DCN-v2, Wang
et al. 2021, arXiv:2008.13535). All that belongs to the user is computed once for all candidates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from loadtests.models.graph import FAR, Graph

HISTORY, CANDIDATES, PROFILE, EMBEDDED, OUTPUT = (
    "history",
    "candidates",
    "profile",
    "embedded",
    "scores",
)
STEPS, CHOICES, TRAITS, WIDTH = 50, 100, 16, 32
"""Items of the history, candidates of a request, floats of a profile and of an embedding."""

HEADS, INTEREST, CROSSES, TOP = 2, 16, 2, 64
"""Heads of the encoder, hidden units of the attention, cross layers, hidden units of the top."""

TABLE = "table"
CROSSED = 3 * WIDTH


def build(rows: int, table: onnx.TensorProto) -> onnx.ModelProto:
    """history INT32 [n, 50], candidates INT32 [n, 100], profile FP32 [n, 16] to scores [n, 100].

    An id is any INT32: its row in `table`, FP32 [rows, 32], is its remainder. In the history 0
    is padding.
    """
    graph = Graph()
    ids = graph.add("Concat", HISTORY, CANDIDATES, axis=1)
    hashed = graph.add("Mod", ids, graph.constant(np.array(rows, np.int32)))
    graph.add("Gather", TABLE, hashed, name=EMBEDDED)
    _body(graph)
    made = graph.model("recommender", _inputs(CANDIDATES), {OUTPUT: ["n", CHOICES]})
    made.graph.initializer.append(table)
    return made


def build_body() -> onnx.ModelProto:
    """The same without the table: `embedded`, FP32 [n, 150, 32], stands for the candidates."""
    graph = Graph()
    _body(graph)
    return graph.model("body", _inputs(EMBEDDED), {OUTPUT: ["n", CHOICES]})


def _inputs(second: str) -> dict[str, tuple[int, list[Any]]]:
    tensors: dict[str, tuple[int, list[Any]]] = {
        HISTORY: (TensorProto.INT32, ["n", STEPS]),
        CANDIDATES: (TensorProto.INT32, ["n", CHOICES]),
        EMBEDDED: (TensorProto.FLOAT, ["n", STEPS + CHOICES, WIDTH]),
        PROFILE: (TensorProto.FLOAT, ["n", TRAITS]),
    }
    return {name: tensors[name] for name in (HISTORY, second, PROFILE)}


def _body(graph: Graph) -> None:
    sizes = graph.numbers(STEPS, CHOICES)
    behaviour, choices = graph.several("Split", 2, EMBEDDED, sizes, axis=1)
    padding = graph.add("Equal", HISTORY, graph.constant(np.array(0, np.int32)))
    present = graph.add("Cast", graph.add("Not", padding), to=TensorProto.FLOAT)
    read = _read(graph, behaviour, padding)
    interest = _interest(graph, choices, read, present)
    user = _user(graph, read, present)
    _scores(graph, graph.add("Concat", choices, interest, user, axis=2))


def _read(graph: Graph, behaviour: str, padding: str) -> str:
    """The behaviour sequence after the encoder, [n, 50, 32]."""
    place = graph.constant(graph.drawn(STEPS, WIDTH, fan_in=WIDTH))
    far = graph.add("Mul", graph.add("Cast", padding, to=TensorProto.FLOAT), graph.scalar(FAR))
    mask = graph.add("Unsqueeze", far, graph.numbers(1, 2))
    flat = graph.reshape(graph.add("Add", behaviour, place), -1, WIDTH)
    return graph.reshape(graph.encoder(flat, STEPS, WIDTH, HEADS, mask), -1, STEPS, WIDTH)


def _interest(graph: Graph, queries: str, keys: str, present: str) -> str:
    """DIN attention of each candidate over the sequence, [n, 100, 32]; weights not normalised.

    The first layer, W [q, k, q - k, q * k] + b, is ((Wk - Wd) + Wp * q) k + ((Wq + Wd) q + b):
    for each hidden unit a product of something of q, `left`, with [k, 1]. So the tensor of pairs,
    [n, 100, 50, 128], is never made. Where k is padding all of [k, 1] is 0, and so is the weight.
    """
    there = graph.add("Unsqueeze", present, graph.numbers(2))
    known = graph.add("Concat", graph.add("Mul", keys, there), there, axis=2)
    one = graph.add("Unsqueeze", _with_one(graph, queries), graph.numbers(1))
    left = graph.add("MatMul", one, graph.constant(_pair_weights(graph)))
    pairs = graph.add(
        "MatMul",
        graph.reshape(left, 0, INTEREST * CHOICES, WIDTH + 1),
        graph.add("Transpose", known, perm=[0, 2, 1]),
    )
    hidden = graph.reshape(graph.add("Relu", pairs), 0, INTEREST, CHOICES * STEPS)
    last = graph.constant(graph.drawn(1, INTEREST, fan_in=INTEREST * STEPS))
    weights = graph.reshape(graph.add("MatMul", last, hidden), 0, CHOICES, STEPS)
    return graph.add("MatMul", weights, keys)


def _with_one(graph: Graph, queries: str) -> str:
    """[n, 100, 33]: the last column is 1."""
    pads = graph.numbers(0, 0, 0, 0, 0, 1)
    return graph.add("Pad", queries, pads, graph.scalar(1))


def _pair_weights(graph: Graph) -> npt.NDArray[np.float32]:
    """[16, 33, 33], which turns [q, 1] into `left` for each hidden unit."""
    of_query, of_key, of_difference, of_product = (
        graph.drawn(INTEREST, WIDTH, fan_in=4 * WIDTH) for _ in range(4)
    )
    made = np.zeros((INTEREST, WIDTH + 1, WIDTH + 1), np.float32)
    diagonal = np.arange(WIDTH)
    made[:, diagonal, diagonal] = of_product
    made[:, WIDTH, :WIDTH] = of_key - of_difference
    made[:, :WIDTH, WIDTH] = of_query + of_difference
    made[:, WIDTH, WIDTH] = graph.drawn(INTEREST, fan_in=100)
    return made


def _user(graph: Graph, read: str, present: str) -> str:
    """The user, [n, 100, 32]: the mean of the sequence and the profile, for each candidate."""
    there = graph.add("Unsqueeze", present, graph.numbers(1))
    total = graph.reshape(graph.add("MatMul", there, read), -1, WIDTH)
    count = graph.add("ReduceSum", present, graph.numbers(1), keepdims=1)
    mean = graph.add("Div", total, graph.add("Max", count, graph.scalar(1)))
    both = graph.add("Concat", mean, PROFILE, axis=1)
    user = graph.add("Relu", graph.linear(both, WIDTH + TRAITS, WIDTH))
    wide = graph.add("Unsqueeze", user, graph.numbers(1))
    return graph.add("Expand", wide, graph.numbers(1, CHOICES, 1))


def _scores(graph: Graph, joined: str) -> None:
    """Two cross layers, x' = x0 * (W x + b) + x, a layer on top, and a probability."""
    first = crossed = graph.reshape(joined, -1, CROSSED)
    for _ in range(CROSSES):
        product = graph.add("Mul", first, graph.linear(crossed, CROSSED, CROSSED))
        crossed = graph.add("Add", product, crossed)
    inner = graph.add("Relu", graph.linear(crossed, CROSSED, TOP))
    score = graph.add("Sigmoid", graph.linear(inner, TOP, 1))
    graph.add("Reshape", score, graph.numbers(-1, CHOICES), name=OUTPUT)
