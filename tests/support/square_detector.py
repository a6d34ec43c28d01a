"""A detector made by hand that is exact: saturated red, green and blue rectangles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_models
from onnx import TensorProto, helper, numpy_helper

TILE, STRIDES, CLASSES = 640, (8, 16), 5
REACH = 128
"""Pixels that a position sees in each direction: no rectangle is longer, and none is nearer to
another than that.
"""


def saved(path: Path) -> Path:
    """`image` UINT8 [n, 3, 640, 640] to `scores` FP32 [n, 8000, 5] and `distances` FP32
    [n, 8000, 4]. A position within a rectangle counts, by convolutions with ones, how many pixels
    of its colour there are on each side, which is how far the rectangle reaches in the tile. The
    score is 1 in the very middle, and less beside it. Red is class 0, green 1, blue 2.
    """
    graph = Graph()
    graph.node("Cast", ["image"], "pixels", to=TensorProto.FLOAT)
    # A pixel has a colour where it exceeds both others together by half of what it can.
    graph.convolution("pixels", "differences", (3 * np.eye(3) - 1)[:, :, None, None])
    graph.node("Greater", ["differences", graph.constant(np.float32(255))], "coloured")
    graph.node("Cast", ["coloured"], "colours", to=TensorProto.FLOAT)
    graph.node("ReduceMax", ["colours"], "any", axes=[1], keepdims=1)
    levels = [_level(graph, stride) for stride in STRIDES]
    for number, name in enumerate(("scores", "distances")):
        graph.node("Concat", [level[number] for level in levels], name, axis=1)
    return graph.saved(path)


class Graph:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def node(self, kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, value: np.ndarray) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def convolution(
        self,
        given: str,
        made: str,
        weights: np.ndarray,
        stride: int = 1,
        pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    ) -> str:
        kernel = self.constant(weights.astype(np.float32))
        return self.node("Conv", [given, kernel], made, strides=[stride, stride], pads=list(pads))

    def saved(self, path: Path) -> Path:
        def value(name: str, kind: int, *shape: int) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, kind, ["n", *shape])

        positions = sum((TILE // stride) ** 2 for stride in STRIDES)
        return onnx_models.save(
            path,
            self.nodes,
            [value("image", TensorProto.UINT8, 3, TILE, TILE)],
            [
                value("scores", TensorProto.FLOAT, positions, CLASSES),
                value("distances", TensorProto.FLOAT, positions, 4),
            ],
            self.constants,
        )


def _level(graph: Graph, stride: int) -> tuple[str, str]:
    """Scores and distances of the positions that are `stride` apart, the first at half of it."""
    half = stride // 2
    own = np.zeros((half + 1, 1))  # of a patch that begins `half` before the position
    own[half] = 1
    before, after = np.ones((1, REACH)), np.ones((1, half + REACH))
    after[:, :half] = 0
    first, last = REACH - half, REACH + half - stride
    sides = {
        "left": (own * before, (0, first, 0, 0)),
        "up": ((own * before).T, (first, 0, 0, 0)),
        "right": (own * after, (0, 0, 0, last)),
        "down": ((own * after).T, (0, 0, last, 0)),
    }
    counted = [
        graph.convolution("any", f"{side}{stride}", kernel[None, None], stride, pads)
        for side, (kernel, pads) in sides.items()
    ]
    joined = graph.node("Concat", counted, f"sides{stride}", axis=1)
    scores = graph.node("Mul", [_inside(graph, stride), _central(graph, joined)], f"at{stride}")
    return _flat(graph, scores, CLASSES, stride), _flat(graph, joined, 4, stride)


def _inside(graph: Graph, stride: int) -> str:
    """[n, 5, rows, columns]: 1 for the class of a position's own pixel."""
    half = stride // 2
    kernel = np.zeros((CLASSES, 3, half + 1, half + 1))
    kernel[range(3), range(3), half, half] = 1
    return graph.convolution("colours", f"inside{stride}", kernel, stride)


def _central(graph: Graph, sides: str) -> str:
    """[n, 1, rows, columns]: 1 where as much is left as right, and up as down."""
    kernel = np.array([[1, 0, -1, 0], [0, 1, 0, -1]])[:, :, None, None]
    uneven = graph.convolution(sides, f"{sides}_uneven", kernel)
    size = graph.node("Abs", [uneven], f"{sides}_size")
    whole = graph.node("ReduceSum", [size, graph.constant(np.array([1]))], f"{sides}_sum")
    share = graph.node("Div", [whole, graph.constant(np.float32(512))], f"{sides}_share")
    return graph.node("Sub", [graph.constant(np.float32(1)), share], f"{sides}_central")


def _flat(graph: Graph, level: str, channels: int, stride: int) -> str:
    """[n, channels, rows, columns] to [n, positions, channels]."""
    count = (TILE // stride) ** 2
    shape = graph.constant(np.array([-1, channels, count], np.int64))
    rows = graph.node("Reshape", [level, shape], f"{level}_rows")
    return graph.node("Transpose", [rows], f"{level}_flat", perm=[0, 2, 1])
