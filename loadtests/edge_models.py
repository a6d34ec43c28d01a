"""Three classifiers of drawn digits: a small one in INT8 for a device, two larger ones above it.

Digits of five by seven points, drawn larger, moved about, and under noise of which some have much.
All are trained here in seconds, so that nothing has to be fetched.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from ds_quantize.cascade import lowest

Array = NDArray[Any]

INPUT, OUTPUT = "image", "probabilities"
SIZE, CLASSES = 32, 10

FONT = """
.###. ..#.. .###. ##### ...#. ##### ..##. ##### .###. .###.
#...# .##.. #...# ...#. ..##. #.... .#... ....# #...# #...#
#..## ..#.. ....# ..#.. .#.#. ####. #.... ...#. #...# #...#
#.#.# ..#.. ...#. ...#. #..#. ....# ####. ..#.. .###. .####
##..# ..#.. ..#.. ....# ##### ....# #...# .#... #...# ....#
#...# ..#.. .#... #...# ...#. #...# #...# .#... #...# ...#.
.###. .###. ##### .###. ...#. .###. .###. .#... .###. .##..
"""
TEST_ROWS = 2000
MOST_LOST = 0.002
"""The part of all answers that may become wrong at each tier."""


@dataclass(frozen=True)
class Models:
    """Files and accuracies by name: small, middle and large. `below`: the confidence of the first
    two under which the next one is asked, so that accuracy is kept. `images`: [rows, 1, 32, 32]
    float32 that none has seen, `labels` what they show.
    """

    files: dict[str, Path]
    accuracy: dict[str, float]
    below: dict[str, float]
    images: Array
    labels: Array


@dataclass
class Net:
    """Averages of squares of `pool` points, then one layer between them and the classes."""

    pool: int
    w1: Array
    b1: Array
    w2: Array
    b2: Array

    def hidden(self, x: Array) -> Array:
        found: Array = np.maximum(x @ self.w1 + self.b1, 0)
        return found

    def probabilities(self, images: Array) -> Array:
        return softmax(self.hidden(pooled(images, self.pool)) @ self.w2 + self.b2)


SHAPES = {"small": (8, 24), "middle": (4, 8), "large": (2, 96)}
"""Points that are joined to one, along each axis, and how many are between them and the classes."""


def make(folder: Path, seed: int = 0) -> Models:
    """Train all and write them."""
    random = np.random.default_rng(seed)
    images, labels = draw(random, 5000)
    nets = {name: train(random, images, labels, *shape) for name, shape in SHAPES.items()}
    files = {name: folder / f"{name}.onnx" for name in nets}
    for name, net in nets.items():
        save(net, files[name])
    files["small"] = folder / "small-int8.onnx"
    quantize_dynamic(folder / "small.onnx", files["small"], weight_type=QuantType.QInt8)
    tests, shown = draw(random, TEST_ROWS)
    accuracy = {name: float((_chosen(net, tests) == shown).mean()) for name, net in nets.items()}
    return Models(files, accuracy, _thresholds(nets, *draw(random, 2000)), tests, shown)


def _chosen(net: Net, images: Array) -> Array:
    found: Array = net.probabilities(images).argmax(1)
    return found


def _thresholds(nets: dict[str, Net], images: Array, labels: Array) -> dict[str, float]:
    """As `ds-quantize cascade` finds them, from the top: each is measured against those above it
    together.
    """
    right = _chosen(nets["large"], images) == labels
    below = {}
    for name in ("middle", "small"):
        scores = nets[name].probabilities(images)
        own = scores.argmax(1) == labels
        below[name] = lowest(scores.max(1), own, right, MOST_LOST)
        right = np.where(scores.max(1) >= below[name], own, right)
    return below


def draw(random: np.random.Generator, count: int) -> tuple[Array, Array]:
    """So many images, and what they show."""
    rows = [line.split() for line in FONT.split("\n") if line]
    shapes = [[[c == "#" for c in row[digit]] for row in rows] for digit in range(CLASSES)]
    large = np.kron(np.array(shapes, np.float32), np.ones((4, 4), np.float32))
    labels = random.integers(0, CLASSES, count)
    images = np.zeros((count, SIZE, SIZE), np.float32)
    for image, label in zip(images, labels, strict=True):
        down, right = random.integers(0, 5), random.integers(3, 10)
        image[down : down + 28, right : right + 20] = large[label]
    noise = random.uniform(0.1, 1.0, (count, 1, 1)) * random.standard_normal(images.shape)
    return (images + noise).astype(np.float32)[:, None], labels


def pooled(images: Array, pool: int) -> Array:
    side = SIZE // pool
    found: Array = images.reshape(-1, side, pool, side, pool).mean((2, 4)).reshape(-1, side * side)
    return found


def softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max(1, keepdims=True))
    found: Array = powers / powers.sum(1, keepdims=True)
    return found


def train(random: np.random.Generator, images: Array, labels: Array, pool: int, width: int) -> Net:
    """By Adam, on the cross entropy."""
    x, wanted = pooled(images, pool), np.eye(CLASSES, dtype=np.float32)[labels]
    sizes = ((x.shape[1], width), (width, CLASSES))
    first, second = (
        (random.standard_normal(size) * np.sqrt(2 / size[0])).astype(np.float32) for size in sizes
    )
    weights = [first, np.zeros(width, np.float32), second, np.zeros(CLASSES, np.float32)]
    means, squares = ([np.zeros_like(each) for each in weights] for _ in range(2))
    step = 0
    for _ in range(20):
        for rows in np.array_split(random.permutation(len(x)), len(x) // 100):
            step += 1
            net = Net(pool, *weights)
            hidden = net.hidden(x[rows])
            wrong = (softmax(hidden @ net.w2 + net.b2) - wanted[rows]) / len(rows)
            back = (wrong @ net.w2.T) * (hidden > 0)
            slopes = [x[rows].T @ back, back.sum(0), hidden.T @ wrong, wrong.sum(0)]
            for index, slope in enumerate(slopes):
                means[index] += 0.1 * (slope - means[index])
                squares[index] += 0.01 * (slope**2 - squares[index])
                speed = 2e-3 * np.sqrt(1 - 0.99**step) / (1 - 0.9**step)
                weights[index] -= speed * means[index] / (np.sqrt(squares[index]) + 1e-8)
    return Net(pool, *weights)


def save(net: Net, path: Path) -> None:
    """As ONNX: float32 [n, 1, 32, 32] to probabilities [n, 10]."""
    constants = {"w1": net.w1, "b1": net.b1, "w2": net.w2, "b2": net.b2}
    size = [net.pool, net.pool]
    nodes = [
        helper.make_node("AveragePool", [INPUT], ["p"], kernel_shape=size, strides=size),
        helper.make_node("Flatten", ["p"], ["x"]),
        helper.make_node("MatMul", ["x", "w1"], ["m"]),
        helper.make_node("Add", ["m", "b1"], ["a"]),
        helper.make_node("Relu", ["a"], ["h"]),
        helper.make_node("MatMul", ["h", "w2"], ["s"]),
        helper.make_node("Add", ["s", "b2"], ["t"]),
        helper.make_node("Softmax", ["t"], [OUTPUT], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["n", 1, SIZE, SIZE])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(value.astype(np.float32), k) for k, value in constants.items()],
    )
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(model)
    onnx.save(model, path)
