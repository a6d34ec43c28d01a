"""Where the error comes from: the original's tensors against the candidate's, layer by layer.

Both files are run with all tensors as outputs, one row at a time, without fusions; so this is about
the numbers, and the built engine may round here and there differently.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime as ort

from ds_engines.base import Array, Tensors
from ds_quantize.data import Data
from ds_quantize.errors import MethodError
from ds_quantize.evaluate.results import LayerError

MOST_BYTES = 1_500_000_000
"""A larger file does not fit the format's limit once it has to be written in one piece."""

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Attention", "LSTM", "GRU"})
"""Layers that others are folded into: activations, normalizations."""

PLUMBING = frozenset(
    {"Constant", "Shape", "Identity", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
)


@dataclass
class Sums:
    """Of one tensor, over all rows. `finite` is about the candidate."""

    difference: float = 0.0
    original: float = 0.0
    candidate: float = 0.0
    product: float = 0.0
    values: int = 0
    finite: bool = True

    def add(self, theirs: Array, ours: Array) -> None:
        a, b = theirs.ravel().astype(np.float64), ours.ravel().astype(np.float64)
        a, b = a[np.isfinite(a)], b[np.isfinite(a)]
        self.finite &= bool(np.isfinite(b).all())
        a, b = a[np.isfinite(b)], b[np.isfinite(b)]
        self.difference += float(((a - b) ** 2).sum())
        self.original += float((a * a).sum())
        self.candidate += float((b * b).sum())
        self.product += float((a * b).sum())
        self.values += a.size

    @property
    def error(self) -> float:
        """The norm of the difference over that of the original."""
        if self.original == 0:
            return 0.0 if self.difference == 0 else 1.0
        return math.sqrt(self.difference / self.original)

    @property
    def cosine(self) -> float:
        norms = math.sqrt(self.original) * math.sqrt(self.candidate)
        return self.product / norms if norms else float(self.original == self.candidate)


@dataclass
class Found:
    """The layers, and what is to be said about them."""

    layers: tuple[LayerError, ...] = ()
    notes: list[str] = field(default_factory=list)


def errors(original: Path, candidate: Path, data: Data, rows: int) -> Found:
    """The layers of the original that the candidate still has, in the graph's order, with the rank
    of their own error. Raises MethodError where one of the files cannot be run so.
    """
    if max(original.stat().st_size, candidate.stat().st_size) > MOST_BYTES:
        return Found(notes=[f"layers are not compared: a file is above {MOST_BYTES:,} bytes"])
    before = onnx.load(original)
    after = onnx.load(candidate)
    pairs = _pairs(before.graph, after.graph)
    if not pairs:
        return Found(notes=["layers are not compared: both graphs have no tensor in common"])
    sums = {name: Sums() for name in pairs}
    first = _session(before, list(pairs), original)
    second = _session(after, list(pairs.values()), candidate)
    for row in islice(_single(data), rows):
        theirs = _run(first, list(pairs), row, original)
        ours = _run(second, list(pairs.values()), row, candidate)
        for name, mate in pairs.items():
            if _comparable(theirs[name], ours[mate]):
                sums[name].add(theirs[name], ours[mate])
    return Found(_ranked(_layers(before.graph, sums)))


def _pairs(before: onnx.GraphProto, after: onnx.GraphProto) -> dict[str, str]:
    """Tensors that nodes of the original make, to those of the candidate that layers after them
    see: where it is quantized, the one that is rounded. (The one before may lack an activation,
    which the rounding does as well.)
    """
    made = {name for node in after.node for name in node.output}
    rounded = _rounded(after)
    return {
        name: rounded.get(name, name)
        for node in before.node
        for name in node.output
        if name and name in made and node.op_type not in PLUMBING
    }


def _rounded(graph: onnx.GraphProto) -> dict[str, str]:
    """Tensors to what is left of them after QuantizeLinear and DequantizeLinear."""
    back = {n.input[0]: n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    return {
        node.input[0]: back[node.output[0]]
        for node in graph.node
        if node.op_type == "QuantizeLinear" and node.output[0] in back
    }


def _session(model: onnx.ModelProto, names: list[str], path: Path) -> ort.InferenceSession:
    there = {output.name for output in model.graph.output}
    # ONNX Runtime finds the types of outputs itself.
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in there)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise MethodError(f"layers of {path.name} cannot be looked at: {error}") from error


def _run(session: ort.InferenceSession, names: list[str], row: Tensors, path: Path) -> Tensors:
    try:
        return dict(zip(names, session.run(names, row), strict=True))
    except Exception as error:
        raise MethodError(f"layers of {path.name} cannot be run: {error}") from error


def _single(data: Data) -> Iterator[Tensors]:
    for batch in data.batches(1):
        yield batch.inputs


def _comparable(theirs: object, ours: object) -> bool:
    return (
        isinstance(theirs, np.ndarray)
        and isinstance(ours, np.ndarray)
        and theirs.dtype.kind == ours.dtype.kind == "f"
        and theirs.shape == ours.shape
    )


def _layers(graph: onnx.GraphProto, sums: dict[str, Sums]) -> Iterator[LayerError]:
    """Tensors of other types than floating-point numbers have no values in their sums."""
    error = {name: s.error for name, s in sums.items() if s.values}
    # What came in at nodes whose outputs were not compared goes on to the next.
    carried: dict[str, float] = {}
    folded: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        given = max((carried.get(name, 0.0) for name in node.input), default=0.0)
        layer = _layer(node, folded)
        for name in node.output:
            carried[name] = error.get(name, given)
            if name in error:
                yield LayerError(
                    name=layer.name or layer.output[0],
                    op=layer.op_type,
                    tensor=name,
                    error=error[name],
                    own=_own(error[name], given),
                    cosine=sums[name].cosine,
                    finite=sums[name].finite,
                )
            elif layer.op_type in WEIGHTED:
                folded[name] = layer


def _layer(node: onnx.NodeProto, folded: dict[str, onnx.NodeProto]) -> onnx.NodeProto:
    """The node, or the layer with weights before it that the candidate has folded it into."""
    if node.op_type in WEIGHTED:
        return node
    return next((folded[name] for name in node.input if name in folded), node)


def _own(error: float, given: float) -> float:
    return math.sqrt(max(0.0, error**2 - given**2))


def _ranked(layers: Iterator[LayerError]) -> tuple[LayerError, ...]:
    found = list(layers)
    order = sorted(range(len(found)), key=lambda index: -found[index].own)
    rank = {index: place for place, index in enumerate(order, 1)}
    return tuple(
        msgspec.structs.replace(layer, rank=rank[index]) for index, layer in enumerate(found)
    )


def sensitive(layers: tuple[LayerError, ...], most: int) -> list[LayerError]:
    """Those with the largest error of their own, the worst first."""
    return sorted(layers, key=lambda layer: layer.rank)[:most]
