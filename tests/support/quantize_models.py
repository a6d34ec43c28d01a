"""Small networks with labelled data, for the quantization of ONNX files; no download, no training.

The classifier is a real one: random convolutions, and a last layer that is the solution of a
ridge regression on the training rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from ds_quantize.context import Context
from ds_quantize.data import Batch
from ds_quantize.forms import OnnxModel

Array = np.ndarray
Item = TypeVar("Item")

FONT = (
    "01110 10001 10011 10101 11001 10001 01110",
    "00100 01100 00100 00100 00100 00100 01110",
    "01110 10001 00001 00110 01000 10000 11111",
    "01110 10001 00001 00110 00001 10001 01110",
    "00010 00110 01010 10010 11111 00010 00010",
    "11111 10000 11110 00001 00001 10001 01110",
    "00110 01000 10000 11110 10001 10001 01110",
    "11111 00001 00010 00100 01000 01000 01000",
    "01110 10001 10001 01110 10001 10001 01110",
    "01110 10001 10001 01111 00001 00010 01100",
)
"""The ten digits, 7 rows of 5 points each."""

SIDE = 12


@dataclass
class Rows:
    """Rows in memory, as the pipeline's Data."""

    inputs: dict[str, Array]
    labels: Array | None = None
    source: str = "memory"
    digest: str = "0"

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def labelled(self) -> bool:
        return self.labels is not None

    def batches(self, size: int) -> Iterator[Batch]:
        for at in range(0, self.rows, size):
            labels = None if self.labels is None else self.labels[at : at + size]
            yield Batch({name: rows[at : at + size] for name, rows in self.inputs.items()}, labels)


@dataclass
class Notes:
    """A Progress that remembers what was shown."""

    tracked: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def track(
        self, items: Iterable[Item], description: str, total: int | None = None
    ) -> Iterator[Item]:
        self.tracked.append(description)
        yield from items

    def say(self, message: str) -> None:
        self.said.append(message)


def context(folder: Path, model: Path, calibration: Rows | None = None) -> Context:
    """A stage's context with an empty folder of its own."""
    own = folder / f"stage{len(list(folder.glob('stage*')))}"
    own.mkdir()
    return Context(own, Notes(), OnnxModel(model), calibration=calibration, threads=1)


def glyphs(rows: int, seed: int) -> Rows:
    """Noisy pictures of digits at random places: `image` float32[rows, 1, 12, 12]."""
    rng = np.random.default_rng(seed)
    bitmaps = [np.array([list(line) for line in glyph.split()], np.float32) for glyph in FONT]
    labels = rng.integers(0, 10, rows)
    images = rng.normal(0, 0.2, (rows, 1, SIDE, SIDE)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        y, x = rng.integers(1, 4), rng.integers(2, 6)
        image[0, y : y + 7, x : x + 5] += bitmaps[label] * rng.uniform(0.6, 1.4)
    return Rows({"image": images}, labels)


def conv_features(wide: bool = False) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Two layers of convolution, the second with channels of very different scales if `wide`."""
    rng = np.random.default_rng(7)
    first = rng.normal(0, 0.5, (32, 1, 3, 3))
    second = rng.normal(0, 0.1, (64, 32, 3, 3))
    if wide:
        second *= np.geomspace(0.05, 5, 64)[:, None, None, None]
    constants = {"w1": first, "b1": rng.normal(0, 0.1, 32), "w2": second, "b2": np.zeros(64)}
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("MaxPool", ["r2"], ["p"], "pool", kernel_shape=[3, 3], strides=[3, 3]),
        helper.make_node("Flatten", ["p"], ["features"], "flatten"),
    ]
    return nodes, [constant(name, values) for name, values in constants.items()]


def classifier(path: Path, train: Rows) -> Path:
    """`image` to `logits`, float32[batch, 10]: two convolutions and the fitted last layer."""
    nodes, constants = conv_features()
    shape = ["batch", *train.inputs["image"].shape[1:]]
    features = run(
        model(nodes, [("image", shape)], [("features", ["batch", None])], constants), train.inputs
    )["features"]
    scale = features.std()
    design = np.c_[features / scale, np.ones(len(features))].astype(np.float64)
    targets = np.eye(10)[train.labels] * 8 - 4
    ridge = np.linalg.solve(design.T @ design + 1 * np.eye(design.shape[1]), design.T @ targets)
    constants += [constant("w3", ridge[:-1] / scale), constant("b3", ridge[-1])]
    nodes.append(helper.make_node("Gemm", ["features", "w3", "b3"], ["logits"], "head"))
    proto = model(nodes, [("image", shape)], [("logits", ["batch", 10])], constants)
    onnx.save(proto, path)
    return path


def transformer(path: Path, width: int = 64, outliers: int = 3) -> Path:
    """One encoder block, `tokens` float32[batch, 16, width] to `states` of the same shape.

    A few channels of what its layer normalizations give are 30 times as large as the others, as
    they are in large models.
    """
    rng = np.random.default_rng(3)

    def matrix(rows: int, columns: int) -> Array:
        return rng.normal(0, rows**-0.5, (rows, columns))

    def norm(name: str, source: str) -> onnx.NodeProto:
        scale = np.ones(width)
        scale[rng.choice(width, outliers, replace=False)] = 30
        constants.extend([constant(f"{name}_g", scale), constant(f"{name}_b", np.zeros(width))])
        inputs = [source, f"{name}_g", f"{name}_b"]
        return helper.make_node("LayerNormalization", inputs, [name], name, axis=-1)

    def dense(name: str, source: str, rows: int, columns: int) -> list[onnx.NodeProto]:
        constants.extend(
            [constant(f"{name}_w", matrix(rows, columns)), constant(f"{name}_b", np.zeros(columns))]
        )
        return [
            helper.make_node("MatMul", [source, f"{name}_w"], [f"{name}_m"], name),
            helper.make_node("Add", [f"{name}_m", f"{name}_b"], [name], f"{name}_add"),
        ]

    constants: list[onnx.TensorProto] = [constant("root", np.array(width**-0.5 / 16))]
    nodes = [
        norm("n1", "tokens"),
        *(node for name in ("q", "k", "v") for node in dense(name, "n1", width, width)),
        helper.make_node("Transpose", ["k"], ["kt"], "kt", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"], "scores"),
        helper.make_node("Mul", ["scores", "root"], ["scaled"], "scaled"),
        helper.make_node("Softmax", ["scaled"], ["p"], "softmax", axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["mixed"], "mixed"),
        *dense("o", "mixed", width, width),
        helper.make_node("Add", ["tokens", "o"], ["h"], "residual1"),
        norm("n2", "h"),
        *dense("up", "n2", width, 4 * width),
        helper.make_node("Relu", ["up"], ["act"], "act"),
        *dense("down", "act", 4 * width, width),
        helper.make_node("Add", ["h", "down"], ["states"], "residual2"),
    ]
    shape = ["batch", 16, width]
    onnx.save(model(nodes, [("tokens", shape)], [("states", shape)], constants), path)
    return path


def tokens(rows: int, seed: int = 0, width: int = 64) -> Rows:
    """Inputs of `transformer`."""
    rng = np.random.default_rng(seed)
    return Rows({"tokens": rng.normal(0, 1, (rows, 16, width)).astype(np.float32)})


def constant(name: str, values: Array) -> onnx.TensorProto:
    """An FP32 constant."""
    return numpy_helper.from_array(np.asarray(values, np.float32), name)


def model(
    nodes: list[onnx.NodeProto],
    inputs: list[tuple[str, list[int | str | None]]],
    outputs: list[tuple[str, list[int | str | None]]],
    constants: list[onnx.TensorProto],
    opset: int = 17,
) -> onnx.ModelProto:
    """A checked FP32 model; inputs and outputs are pairs of name and shape."""

    def values(pairs: list[tuple[str, list[int | str | None]]]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in pairs
        ]

    made = helper.make_model(
        helper.make_graph(nodes, "test", values(inputs), values(outputs), constants),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )
    onnx.checker.check_model(made)
    return made


def run(proto: onnx.ModelProto, inputs: dict[str, Array]) -> dict[str, Array]:
    """All outputs by name, from ONNX Runtime."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options)
    names = [node.name for node in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))
