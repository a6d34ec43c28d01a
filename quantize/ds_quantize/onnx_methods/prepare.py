"""What is done to a model before it is quantized, and after."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, shape_inference, version_converter

from ds_quantize.context import Context
from ds_quantize.errors import MethodError
from ds_quantize.forms import Model
from ds_quantize.onnx_methods import graph
from ds_quantize.onnx_methods.fold import folded

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that multiply by weights: a model without one gains nothing."""

OPSET = 13
"""The first with a scale for each channel."""


def prepared(model: Model, context: Context) -> onnx.ModelProto:
    """The model with constants folded, batch normalization in the convolutions, and the types
    and shapes of inner tensors. Raises MethodError for a model that is quantized already.
    """
    graph.load(model)
    proto = folded(graph.path_of(model), context.folder)
    _refuse_quantized(proto)
    proto = upgraded(proto, OPSET)
    _flatten_biases(proto.graph)
    return inferred(proto)


def _flatten_biases(proto: onnx.GraphProto) -> None:
    """A bias of [1, n], which the fusion of a product and a sum leaves, is one of [n]; ONNX
    Runtime's quantizer knows no other.
    """
    used = {name for node in proto.node for name in _all_but_bias(node)}
    biases = {node.input[2] for node in proto.node if node.op_type == "Gemm" and node.input[2:]}
    for item in proto.initializer:
        if item.name in biases - used and len(item.dims) == 2 and item.dims[0] == 1:
            item.dims[:] = item.dims[1:]


def _all_but_bias(node: onnx.NodeProto) -> list[str]:
    return list(node.input[:2] if node.op_type == "Gemm" else node.input)


def inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    """With types and shapes of inner tensors, as far as ONNX can tell."""
    if proto.ByteSize() > graph.LARGEST:
        raise MethodError(
            f"the model has {proto.ByteSize() / 1e9:.1f} GB of weights; ONNX files of up to 1.9 GB "
            "can be quantized"
        )
    known: onnx.ModelProto = shape_inference.infer_shapes(proto, data_prop=True)
    # Exporters tell the shapes of weights there too, which a quantizer that transposes them keeps.
    weights = graph.weights(known.graph)
    told = [value for value in known.graph.value_info if value.name not in weights]
    del known.graph.value_info[:]
    known.graph.value_info.extend(told)
    return known


def layers(
    proto: onnx.ModelProto, operators: Collection[str], exclude: Collection[str] = ()
) -> list[onnx.NodeProto]:
    """The nodes of these operators that multiply by constant weights, in the order of the graph."""
    constants = graph.weights(proto.graph)
    return [
        node
        for node in proto.graph.node
        if node.op_type in operators
        and node.op_type in LAYERS
        and node.name not in exclude
        and node.input[1] in constants
    ]


def require_layers(
    proto: onnx.ModelProto, operators: Collection[str], exclude: Collection[str] = ()
) -> list[onnx.NodeProto]:
    """`layers`; MethodError where there is none, as nothing would be gained, and for weights that
    are not finite.
    """
    found = layers(proto, operators, exclude)
    if found:
        _require_finite(proto, found)
        return found
    wanted = [name for name in operators if name in LAYERS]
    types = sorted({node.op_type for node in proto.graph.node})
    raise MethodError(
        f"the model has no layer to quantize: no {', '.join(wanted)} with constant weights that is "
        f"not excluded; it has {', '.join(types)}"
    )


def _require_finite(proto: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    constants = graph.weights(proto.graph)
    for node in nodes:
        if not np.isfinite(graph.array(constants[node.input[1]])).all():
            raise MethodError(
                f"layer {node.name!r} ({node.op_type}) has weights that are not finite: "
                f"{node.input[1]!r}"
            )


def _refuse_quantized(proto: onnx.ModelProto) -> None:
    for node in proto.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "MatMulNBits"):
            raise MethodError(
                f"the model is quantized already: layer {node.name!r} is a {node.op_type}"
            )


def upgraded(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """The model with operators of that version at least. Raises MethodError."""
    if graph.opset(proto) >= version:
        return proto
    # Older files list weights as inputs, and the converter does not find those that are not.
    proto.ir_version = max(proto.ir_version, 8)
    try:
        newer: onnx.ModelProto = version_converter.convert_version(proto, version)
    except Exception as error:
        raise MethodError(
            f"the model is of opset {graph.opset(proto)} and cannot be made one of {version}, "
            f"which this needs: {graph.first_line(error)}"
        ) from error
    graph.name_nodes(newer)
    return newer


def float_tensors(proto: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> tuple[str, ...]:
    """The FP32 tensors that go into and out of these nodes, without constants."""
    constants = graph.weights(proto.graph)
    values = (*proto.graph.value_info, *proto.graph.input, *proto.graph.output)
    floats = {
        value.name
        for value in values
        if value.type.tensor_type.elem_type == TensorProto.FLOAT and value.name not in constants
    }
    names = (name for node in nodes for name in (*node.input, *node.output))
    return tuple(dict.fromkeys(name for name in names if name in floats))
