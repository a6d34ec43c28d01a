"""FP8 (E4M3) as QuantizeLinear and DequantizeLinear nodes around layers with weights."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

from ds_engines.base import Array
from ds_quantize.context import Context
from ds_quantize.forms import Model, OnnxModel
from ds_quantize.methods.onnx import Fp8
from ds_quantize.onnx_methods import graph
from ds_quantize.onnx_methods.collapse import check
from ds_quantize.onnx_methods.prepare import inferred, prepared, require_layers, upgraded
from ds_quantize.onnx_methods.ranges import Extent, measure

OPSET = 19
"""The first with FP8."""

LARGEST = 448.0
"""The largest number of E4M3."""


def fp8(model: Model, method: Fp8, context: Context) -> OnnxModel:
    """Handler of `fp8`."""
    proto = inferred(upgraded(prepared(model, context), OPSET))
    exclude = graph.excluded(proto.graph, method.exclude)
    nodes = require_layers(proto, method.operators, exclude)
    tensors = tuple(dict.fromkeys(node.input[0] for node in nodes))
    ranges = measure(proto, tensors, method, context, symmetric=True).found
    quantized = onnx.ModelProto()
    quantized.CopyFrom(proto)
    names = {node.name for node in nodes if node.input[0] in ranges}
    _keep_clipping(quantized.graph, {node.input[0] for node in nodes})
    _quantize(quantized.graph, names, ranges)
    graph.drop_unused(quantized)
    check(proto, quantized, method, context)
    context.measured["layers"] = {"quantized": len(names)}
    return graph.save(quantized, context.folder)


def _keep_clipping(proto: onnx.GraphProto, tensors: set[str]) -> None:
    """ONNX Runtime leaves out a Relu or Clip before it quantizes, as if FP8 had no sign as UINT8
    has none. LeakyRelu without a leak is a Relu, and with all of it, it changes nothing.
    """
    nodes: list[onnx.NodeProto] = []
    for node in proto.node:
        nodes.append(node)
        if not tensors & set(node.output):
            continue
        if node.op_type == "Relu":
            node.op_type = "LeakyRelu"
            node.attribute.append(helper.make_attribute("alpha", 0.0))
        elif node.op_type == "Clip":
            output = node.output[0]
            node.output[0] = f"{output}_clipped"
            nodes.append(
                helper.make_node(
                    "LeakyRelu", [node.output[0]], [output], f"{node.name}_kept", alpha=1.0
                )
            )
    del proto.node[:]
    proto.node.extend(nodes)


def _quantize(proto: onnx.GraphProto, names: set[str], ranges: dict[str, Extent]) -> None:
    constants = graph.weights(proto)
    nodes: list[onnx.NodeProto] = []
    done: set[str] = set()
    for node in proto.node:
        if node.name in names:
            for position in (0, 1):
                tensor = node.input[position]
                if tensor not in done:
                    done.add(tensor)
                    nodes += _pair(proto, tensor, constants.get(tensor), ranges)
                node.input[position] = f"{tensor}_fp8"
        nodes.append(node)
    del proto.node[:]
    proto.node.extend(nodes)


def _pair(
    proto: onnx.GraphProto,
    name: str,
    weight: onnx.TensorProto | None,
    ranges: dict[str, Extent],
) -> list[onnx.NodeProto]:
    """The nodes that make `<name>_fp8`, of a weight or of an activation."""
    values = None if weight is None else graph.array(weight)
    peak = max(map(abs, ranges[name])) if values is None else float(np.abs(values).max())
    scale = np.float32((peak or 1.0) / LARGEST)
    names = [f"{name}_fp8_scale", f"{name}_fp8_zero"]
    zero = np.zeros((), ml_dtypes.float8_e4m3fn)
    proto.initializer.append(numpy_helper.from_array(np.array(scale), names[0]))
    proto.initializer.append(numpy_helper.from_array(zero, names[1]))
    inner = f"{name}_fp8_quantized"
    widen = helper.make_node("DequantizeLinear", [inner, *names], [f"{name}_fp8"], f"{name}_dq")
    if values is None:
        return [helper.make_node("QuantizeLinear", [name, *names], [inner], f"{name}_q"), widen]
    proto.initializer.append(numpy_helper.from_array(_narrow(values / scale), inner))
    return [widen]


def _narrow(values: Array) -> Array:
    narrowed: Array = np.clip(values, -LARGEST, LARGEST).astype(ml_dtypes.float8_e4m3fn)
    return narrowed
