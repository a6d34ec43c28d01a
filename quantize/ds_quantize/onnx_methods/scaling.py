"""Moving the scale of channels from activations into the weights that they are multiplied by.

x W = (x / s) (s W): the model computes the same, and quantizes better with the right s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ds_engines.base import Array
from ds_quantize.onnx_methods import graph
from ds_quantize.onnx_methods.prepare import layers

PRODUCTS = ("MatMul", "Gemm")


@dataclass(frozen=True)
class Group:
    """Matrix products that share the activation `tensor`, whose last axis has the channels."""

    tensor: str
    nodes: tuple[onnx.NodeProto, ...]


def groups(proto: onnx.ModelProto, exclude: list[str]) -> list[Group]:
    """All products with constant matrices, by their activation, in the order of the graph."""
    constants = graph.weights(proto.graph)
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in layers(proto, PRODUCTS, exclude):
        if len(constants[node.input[1]].dims) == 2 and _is_plain(node):
            found.setdefault(node.input[0], []).append(node)
    return [Group(tensor, tuple(nodes)) for tensor, nodes in found.items()]


def matrix(proto: onnx.ModelProto, node: onnx.NodeProto) -> Array:
    """The weights of a product, one row for each channel of its activation."""
    values = graph.array(graph.weights(proto.graph)[node.input[1]])
    return values.T if _attribute(node, "transB") else values


def set_matrix(proto: onnx.ModelProto, node: onnx.NodeProto, values: Array) -> None:
    """Give the product other weights; those that share the old ones keep them."""
    constants = graph.weights(proto.graph)
    stored = np.ascontiguousarray(values.T if _attribute(node, "transB") else values)
    name = node.input[1]
    if len(graph.consumers(proto.graph)[name]) == 1:
        graph.replace_weight(constants[name], stored)
        return
    own = f"{name}_of_{node.name}"
    dtype = graph.array(constants[name]).dtype
    proto.graph.initializer.append(numpy_helper.from_array(stored.astype(dtype), own))
    node.input[1] = own


def rescale(proto: onnx.ModelProto, group: Group, scales: Array) -> str:
    """Divide the group's activation by the scales, and multiply its weights by them.

    Returns the name of the node that divides, or "" where a layer normalization before does.
    """
    group = _found_again(proto, group)
    for node in group.nodes:
        set_matrix(proto, node, matrix(proto, node) * scales[:, None])
    normalization = _normalization(proto, group)
    if normalization is None:
        return _divided(proto, group, scales)
    constants = graph.weights(proto.graph)
    for name in normalization.input[1:]:
        graph.replace_weight(constants[name], graph.array(constants[name]) / scales)
    return ""


def _found_again(proto: onnx.ModelProto, group: Group) -> Group:
    """The group's nodes as they are in the graph now: putting in others makes copies of all."""
    names = {node.name for node in group.nodes}
    return Group(group.tensor, tuple(node for node in proto.graph.node if node.name in names))


def _normalization(proto: onnx.ModelProto, group: Group) -> onnx.NodeProto | None:
    """The LayerNormalization that makes the activation for this group alone."""
    node = graph.producers(proto.graph).get(group.tensor)
    if node is None or node.op_type != "LayerNormalization":
        return None
    constants, consumers = graph.weights(proto.graph), graph.consumers(proto.graph)
    alone = len(consumers[group.tensor]) == len(group.nodes) and all(
        name in constants and len(consumers[name]) == 1 for name in node.input[1:]
    )
    given = any(output.name == group.tensor for output in proto.graph.output)
    return node if alone and not given else None


def _divided(proto: onnx.ModelProto, group: Group, scales: Array) -> str:
    name = f"{group.tensor}_smoothed"
    constant = f"{name}_by"
    dtype = matrix(proto, group.nodes[0]).dtype
    proto.graph.initializer.append(numpy_helper.from_array((1 / scales).astype(dtype), constant))
    divide = helper.make_node("Mul", [group.tensor, constant], [name], name)
    nodes = list(proto.graph.node)
    nodes.insert(min(nodes.index(node) for node in group.nodes), divide)
    for node in group.nodes:
        node.input[0] = name
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return name


def _is_plain(node: onnx.NodeProto) -> bool:
    """Whether a Gemm does no more than multiply by the matrix and add the bias."""
    return not _attribute(node, "transA") and all(
        item.f == 1.0 for item in node.attribute if item.name in ("alpha", "beta")
    )


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((int(item.i) for item in node.attribute if item.name == name), 0)
