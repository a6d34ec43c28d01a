"""Small ONNX models, each for one behaviour; built with the `onnx` package, never downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper

Shape = Sequence[int | str | None]

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}
HALVES = ("FP16", "BF16")
"""The datatypes that KServe's typed contents cannot hold."""

PLAIN = tuple(name for name in ONNX_TYPES if name not in HALVES)

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def _value(name: str, kind: int, shape: Shape) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _constant(name: str, value: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(value, name)


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    constants: Sequence[onnx.TensorProto] = (),
) -> Path:
    """Check the model and write it to `path`, making its folder."""
    graph = helper.make_graph(nodes, "test", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def mlp(path: Path, seed: int = 0) -> Path:
    """x FP32[batch, 64] to y FP32[batch, 8]."""
    random = np.random.default_rng(seed)
    return save(
        path,
        [
            helper.make_node("MatMul", ["x", "w1"], ["h"]),
            helper.make_node("Tanh", ["h"], ["a"]),
            helper.make_node("MatMul", ["a", "w2"], ["y"]),
        ],
        [_value("x", FLOAT, ["batch", 64])],
        [_value("y", FLOAT, ["batch", 8])],
        [
            _constant("w1", random.standard_normal((64, 128), np.float32) / 8),
            _constant("w2", random.standard_normal((128, 8), np.float32) / 8),
        ],
    )


def classifier(path: Path) -> Path:
    """image FP32[batch, 3, 224, 224] to scores FP32[batch, 10]."""
    random = np.random.default_rng(0)
    return save(
        path,
        [
            helper.make_node(
                "Conv", ["image", "w"], ["c"], strides=[16, 16], kernel_shape=[16, 16]
            ),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("GlobalAveragePool", ["r"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("MatMul", ["f", "v"], ["scores"]),
        ],
        [_value("image", FLOAT, ["batch", 3, 224, 224])],
        [_value("scores", FLOAT, ["batch", 10])],
        [
            _constant("w", random.standard_normal((8, 3, 16, 16), np.float32) / 16),
            _constant("v", random.standard_normal((8, 10), np.float32)),
        ],
    )


def identities(path: Path, datatypes: Sequence[str]) -> Path:
    """For each datatype `T` an input `in_T` [batch, n_T] and an output `out_T` like it."""
    shapes = {name: ["batch", f"n_{name}"] for name in datatypes}
    return save(
        path,
        [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name in datatypes],
        [_value(f"in_{name}", ONNX_TYPES[name], shapes[name]) for name in datatypes],
        [_value(f"out_{name}", ONNX_TYPES[name], shapes[name]) for name in datatypes],
    )


def slow(path: Path, width: int = 256) -> Path:
    """x FP32[batch, 4], steps INT64[1] to y = x after `steps` matrix products: it takes as long
    as the request says. All requests of a batch have `steps` in common.
    """
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["m_in", "turn"], ["m_out"]),
            helper.make_node("Identity", ["more_in"], ["more_out"]),
        ],
        "body",
        [
            _value("i", INT64, []),
            _value("more_in", TensorProto.BOOL, []),
            _value("m_in", FLOAT, [width, width]),
        ],
        [_value("more_out", TensorProto.BOOL, []), _value("m_out", FLOAT, [width, width])],
    )
    zeros = np.zeros((width, width), np.float32)
    return save(
        path,
        [
            helper.make_node("Squeeze", ["steps"], ["count"]),
            helper.make_node("Loop", ["count", "yes", "zeros"], ["m"], body=body),
            helper.make_node("ReduceSum", ["m"], ["zero"], keepdims=0),
            helper.make_node("Add", ["x", "zero"], ["y"]),
        ],
        [_value("x", FLOAT, ["batch", 4]), _value("steps", INT64, [1])],
        [_value("y", FLOAT, ["batch", 4])],
        [
            _constant("zeros", zeros),
            _constant("turn", np.eye(width, dtype=np.float32)),
            _constant("yes", np.array(True)),
        ],
    )


def lookup(path: Path) -> Path:
    """index INT64[batch, 1] to value FP32[batch, 1] = 10 * index; fails outside 0 to 15."""
    return save(
        path,
        [helper.make_node("Gather", ["table", "index"], ["value"], axis=0)],
        [_value("index", INT64, ["batch", 1])],
        [_value("value", FLOAT, ["batch", 1])],
        [_constant("table", 10 * np.arange(16, dtype=np.float32))],
    )


def sequences(path: Path) -> Path:
    """x FP32[batch, length, channels] to double, shaped alike, and total FP32[batch, 1, 1]."""
    return save(
        path,
        [
            helper.make_node("Add", ["x", "x"], ["double"]),
            helper.make_node("ReduceSum", ["x", "axes"], ["total"], keepdims=1),
        ],
        [_value("x", FLOAT, ["batch", "length", "channels"])],
        [
            _value("double", FLOAT, ["batch", "length", "channels"]),
            _value("total", FLOAT, ["batch", 1, 1]),
        ],
        [_constant("axes", np.array([1, 2], np.int64))],
    )


def fixed(path: Path) -> Path:
    """x FP32[3, 4] to y = -x: no axis along which requests could be joined."""
    return save(
        path,
        [helper.make_node("Neg", ["x"], ["y"])],
        [_value("x", FLOAT, [3, 4])],
        [_value("y", FLOAT, [3, 4])],
    )


def running_total(path: Path) -> Path:
    """x FP32[n] to y, the sums of all elements so far: the first row does not depend on the
    others, every other row does.
    """
    return save(
        path,
        [helper.make_node("CumSum", ["x", "axis"], ["y"])],
        [_value("x", FLOAT, ["n", 3])],
        [_value("y", FLOAT, ["n", 3])],
        [_constant("axis", np.array(0, np.int64))],
    )


def centred(path: Path) -> Path:
    """x FP32[n, 3] less the mean over all rows: no row's answer is its own."""
    return save(
        path,
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["x", "mean"], ["y"]),
        ],
        [_value("x", FLOAT, ["n", 3])],
        [_value("y", FLOAT, ["n", 3])],
    )


def summed(path: Path) -> Path:
    """x FP32[n, 3] to one total FP32[1]: rows go in, and do not come out."""
    return save(
        path,
        [helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0)],
        [_value("x", FLOAT, ["n", 3])],
        [_value("total", FLOAT, [])],
    )


def recurrent(path: Path) -> Path:
    """x FP32[batch, 4], state FP32[2, batch, 4], scale FP32[] to y = x * scale + state[0] and
    next_state = state + x: the state's batch axis is 1, the scale is common to a batch.
    """
    return save(
        path,
        [
            helper.make_node("Mul", ["x", "scale"], ["scaled"]),
            helper.make_node("Gather", ["state", "first"], ["top"], axis=0),
            helper.make_node("Add", ["scaled", "top"], ["y"]),
            helper.make_node("Add", ["state", "x"], ["next_state"]),
        ],
        [
            _value("x", FLOAT, ["batch", 4]),
            _value("state", FLOAT, [2, "batch", 4]),
            _value("scale", FLOAT, []),
        ],
        [_value("y", FLOAT, ["batch", 4]), _value("next_state", FLOAT, [2, "batch", 4])],
        [_constant("first", np.array(0, np.int64))],
    )


def unnamed_axes(path: Path) -> Path:
    """x FP32[?, 64], as exporters write it that name no axis, to y = -x."""
    return save(
        path,
        [helper.make_node("Neg", ["x"], ["y"])],
        [_value("x", FLOAT, [None, 64])],
        [_value("y", FLOAT, [None, 64])],
    )


def picky_length(path: Path) -> Path:
    """x FP32[batch, length] to y, where the length must be a multiple of 16."""
    return save(
        path,
        [
            helper.make_node("Reshape", ["x", "shape"], ["pairs"]),
            helper.make_node("ReduceSum", ["pairs", "axis"], ["y"], keepdims=0),
        ],
        [_value("x", FLOAT, ["batch", "length"])],
        [_value("y", FLOAT, ["batch", 16])],
        [
            _constant("shape", np.array([0, -1, 16], np.int64)),
            _constant("axis", np.array([1], np.int64)),
        ],
    )


def shifted(path: Path, datatype: str, operator: str = "Identity") -> Path:
    """x [n, 3] to y: the rows moved down by one, the last one first. With a binary `operator`,
    y joins each row with the one above it (the first with itself) instead.
    """
    kind = ONNX_TYPES[datatype]
    binary = operator != "Identity"
    return save(
        path,
        [
            helper.make_node("Slice", ["x", "zero", "minus_one", "zero"], ["upper"]),
            helper.make_node(
                "Slice", ["x", *(["zero", "one"] if binary else ["minus_one", "end"]), "zero"],
                ["top"],
            ),
            helper.make_node("Concat", ["top", "upper"], ["moved"], axis=0),
            helper.make_node(operator, ["x", "moved"] if binary else ["moved"], ["y"]),
        ],
        [_value("x", kind, ["n", 3])],
        [_value("y", kind, ["n", 3])],
        [
            _constant(name, np.array([value], np.int64))
            for name, value in {"zero": 0, "one": 1, "minus_one": -1, "end": 2**31}.items()
        ],
    )  # fmt: skip


def doubled(path: Path, shape: Shape) -> Path:
    """y = 2 * x, both of that shape."""
    return save(
        path,
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [_value("x", FLOAT, shape)],
        [_value("y", FLOAT, shape)],
    )


def pooled(path: Path) -> Path:
    """The mean of each colour of one picture, with a batch axis that is always 1."""
    return save(
        path,
        [helper.make_node("GlobalAveragePool", ["picture"], ["means"])],
        [_value("picture", FLOAT, (1, 3, 4, 4))],
        [_value("means", FLOAT, (1, 3, 1, 1))],
    )


def scaled(path: Path) -> Path:
    """y = x * factor + shift, both of which have a value in the file: 2, and 0 for every row."""
    return save(
        path,
        [
            helper.make_node("Mul", ["x", "factor"], ["product"]),
            helper.make_node("Add", ["product", "shift"], ["y"]),
        ],
        [
            _value("x", FLOAT, ["rows", 3]),
            _value("factor", FLOAT, [1]),
            _value("shift", FLOAT, ["rows", 1]),
        ],
        [_value("y", FLOAT, ["rows", 3])],
        [
            _constant("factor", np.array([2], np.float32)),
            _constant("shift", np.zeros((1, 1), np.float32)),
        ],
    )


def told_sums(path: Path, text: bool = False) -> Path:
    """A sequence's model. x FP32[batch, 1] to y, the sum of the sequence's so far, with what it is
    told: start INT32, end FP32, ready BOOL, all [batch, 1], and id, UINT64 or text, given back as
    `who`; `told` is 1000 * ready + 100 * start + 10 * end. state FP32[batch, 1] becomes `next`.
    """
    kind = TensorProto.STRING if text else TensorProto.UINT64
    row = ["batch", 1]
    return save(
        path,
        [
            helper.make_node("Add", ["state", "x"], ["y"]),
            helper.make_node("Identity", ["y"], ["next"]),
            helper.make_node("Cast", ["start"], ["s"], to=FLOAT),
            helper.make_node("Cast", ["ready"], ["r"], to=FLOAT),
            helper.make_node("Mul", ["r", "thousand"], ["rr"]),
            helper.make_node("Mul", ["s", "hundred"], ["ss"]),
            helper.make_node("Mul", ["end", "ten"], ["ee"]),
            helper.make_node("Add", ["rr", "ss"], ["rs"]),
            helper.make_node("Add", ["rs", "ee"], ["told"]),
            helper.make_node("Identity", ["id"], ["who"]),
        ],
        [
            _value("x", FLOAT, row),
            _value("start", TensorProto.INT32, row),
            _value("end", FLOAT, row),
            _value("ready", TensorProto.BOOL, row),
            _value("id", kind, row),
            _value("state", FLOAT, row),
        ],
        [
            _value("y", FLOAT, row),
            _value("told", FLOAT, row),
            _value("who", kind, row),
            _value("next", FLOAT, row),
        ],
        [
            _constant("thousand", np.array(1000, np.float32)),
            _constant("hundred", np.array(100, np.float32)),
            _constant("ten", np.array(10, np.float32)),
        ],
    )


def logarithms(path: Path) -> Path:
    """x FP32[n, 3] to y = 1 / (log(2x) + 4): infinite within, and 0 again, where x is 0."""
    return save(
        path,
        [
            helper.make_node("Mul", ["x", "two"], ["twice"], "double"),
            helper.make_node("Log", ["twice"], ["l"], "block/log"),
            helper.make_node("Add", ["l", "four"], ["shifted"], "shift"),
            helper.make_node("Reciprocal", ["shifted"], ["y"], "turn"),
        ],
        [_value("x", FLOAT, ["n", 3])],
        [_value("y", FLOAT, ["n", 3])],
        [
            _constant("two", np.array(2, np.float32)),
            _constant("four", np.array(4, np.float32)),
        ],
    )


def widened(path: Path, width: int) -> Path:
    """x FP32[n, 1] to its mean over `width` copies, which are held all at once."""
    return save(
        path,
        [
            helper.make_node("Expand", ["x", "shape"], ["copies"]),
            helper.make_node("Mul", ["copies", "one"], ["same"]),
            helper.make_node("ReduceMean", ["same"], ["y"], axes=[1]),
        ],
        [_value("x", FLOAT, ["n", 1])],
        [_value("y", FLOAT, ["n", 1])],
        [
            _constant("shape", np.array([1, width], np.int64)),
            _constant("one", np.array(1, np.float32)),
        ],
    )
