"""Reading, writing and asking questions of ONNX graphs."""

from __future__ import annotations

from collections import defaultdict
from fnmatch import fnmatchcase
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.external_data_helper import uses_external_data

from ds_engines.base import Array
from ds_quantize.errors import MethodError, SourceError
from ds_quantize.forms import Model, OnnxModel

FILE = "model.onnx"

LARGEST = 1_900_000_000
"""Bytes above which weights go into a file of their own: protobuf's limit is 2 GiB."""


def path_of(model: Model) -> Path:
    """The file; SourceError where the model is not an ONNX one."""
    if not isinstance(model, OnnxModel):
        raise SourceError(f"an ONNX file is needed, not a {model.form} model")
    return model.path


def load(model: Model) -> onnx.ModelProto:
    """The whole model with its weights, each node with a name. Raises SourceError."""
    path = path_of(model)
    try:
        proto = onnx.load(path)
    except Exception as error:
        raise SourceError(
            f"{path} is not a model in the ONNX format: {first_line(error)}"
        ) from error
    name_nodes(proto)
    return proto


def save(proto: onnx.ModelProto, folder: Path) -> OnnxModel:
    """Write `model.onnx`, and `model.onnx.data` beside it where it is too large for one file."""
    path = folder / FILE
    prune_domains(proto)
    sort_nodes(proto.graph)
    if proto.ByteSize() > LARGEST:
        onnx.save_model(proto, path, save_as_external_data=True, location=f"{FILE}.data")
    else:
        for tensor in proto.graph.initializer:
            if uses_external_data(tensor):
                raise SourceError(
                    f"tensor {tensor.name!r} has its values in a file that is missing"
                )
        onnx.save_model(proto, path)
    return OnnxModel(path)


def name_nodes(proto: onnx.ModelProto) -> None:
    """Give a name to each node that has none, as layers are told by their names."""
    taken = {node.name for node in proto.graph.node}
    for index, node in enumerate(proto.graph.node):
        if not node.name:
            name = f"{node.op_type}_{index}"
            node.name = name if name not in taken else f"{name}_{node.output[0]}"


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Put each node after those whose outputs it takes, as the format demands."""
    made = {name: at for at, node in enumerate(graph.node) for name in node.output if name}
    nodes = list(graph.node)
    sorter = TopologicalSorter(
        {at: {made[name] for name in _taken(node) if name in made} for at, node in enumerate(nodes)}
    )
    sorter.prepare()
    del graph.node[:]
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        graph.node.extend(nodes[at] for at in ready)
        sorter.done(*ready)


def prune_domains(proto: onnx.ModelProto) -> None:
    """Leave out operator sets that no node is of: other runtimes refuse those they do not know."""
    used = _domains(proto.graph.node) | {
        domain for function in proto.functions for domain in _domains(function.node)
    }
    kept = [opset for opset in proto.opset_import if opset.domain in used or not opset.domain]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)


def _domains(nodes: Any) -> set[str]:
    found = set()
    for node in nodes:
        found.add("" if node.domain == "ai.onnx" else node.domain)
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                found |= _domains(graph.node)
    return found


def opset(proto: onnx.ModelProto) -> int:
    """The version of the standard operators."""
    return next(
        (int(item.version) for item in proto.opset_import if item.domain in ("", "ai.onnx")), 1
    )


def weights(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """The constants of the graph by name."""
    return {tensor.name: tensor for tensor in graph.initializer}


def array(tensor: onnx.TensorProto) -> Array:
    """A constant's values."""
    values: Array = numpy_helper.to_array(tensor)
    return values


def replace_weight(tensor: onnx.TensorProto, values: Array) -> None:
    """Put other values into a constant, which keeps its name and type."""
    dtype = numpy_helper.to_array(tensor).dtype
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, dtype), tensor.name))


def drop_unused(proto: onnx.ModelProto) -> None:
    """Leave out constants that no node takes."""
    used = consumers(proto.graph).keys() | {output.name for output in proto.graph.output}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Tensor name to the node that makes it."""
    return {name: node for node in graph.node for name in node.output if name}


def consumers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Tensor name to the nodes that take it."""
    found: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in _taken(node):
            found[name].append(node)
    return found


def _taken(node: onnx.NodeProto) -> list[str]:
    """A node's inputs, and what the graphs within it, such as the branches of an If, take from
    around it.
    """
    inner = {
        name
        for attribute in node.attribute
        for graph in (attribute.g, *attribute.graphs)
        for within in graph.node
        for name in _taken(within)
    }
    return [*node.input, *sorted(inner)]


def excluded(graph: onnx.GraphProto, patterns: tuple[str, ...]) -> list[str]:
    """The names of the nodes that patterns match; MethodError for one that matches none."""
    names: list[str] = []
    for pattern in patterns:
        found = [node.name for node in graph.node if fnmatchcase(node.name, pattern)]
        if not found:
            some = ", ".join(repr(node.name) for node in list(graph.node)[:5])
            raise MethodError(f"exclude: no layer is called {pattern!r}; layers are {some}, …")
        names += found
    return names


def layer_of(graph: onnx.GraphProto, tensor: str) -> str:
    """How to tell a user which layer a tensor comes from."""
    node = producers(graph).get(tensor)
    return f"input {tensor!r}" if node is None else f"layer {node.name!r} ({node.op_type})"


def first_line(error: Exception) -> str:
    """The first line of a library's message, or the error's kind where it says nothing."""
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
