"""Half-precision forms; inputs and outputs keep their types."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from ds_engines.base import Array
from ds_quantize.context import Context
from ds_quantize.errors import MethodError
from ds_quantize.forms import Model, OnnxModel
from ds_quantize.methods.onnx import Bf16, Fp16
from ds_quantize.onnx_methods import graph
from ds_quantize.onnx_methods.collapse import check
from ds_quantize.onnx_methods.prepare import float_tensors, prepared
from ds_quantize.onnx_methods.quiet import quiet
from ds_quantize.onnx_methods.sessions import Runner, feeds

LARGEST = 65504.0
"""The largest number of FP16."""

ROWS = 16
"""Of calibration data, to look for larger ones."""

SMALL = 256
"""Elements of a constant below which its own Cast node would be larger than what it saves."""


def fp16(model: Model, method: Fp16, context: Context) -> OnnxModel:
    """Handler of `fp16`."""
    proto = prepared(model, context)
    exclude = graph.excluded(proto.graph, method.exclude)
    if context.calibration is not None:
        exclude += _too_large(proto, method, context)
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    try:
        with quiet():
            half = convert_float_to_float16(
                copy,
                keep_io_types=True,
                op_block_list=[*DEFAULT_OP_BLOCK_LIST, *method.keep],
                node_block_list=exclude,
            )
    except Exception as error:
        raise MethodError(f"the model cannot be made FP16: {graph.first_line(error)}") from error
    _join(half.graph)
    check(proto, half, method, context)
    return graph.save(half, context.folder)


def _join(proto: onnx.GraphProto) -> None:
    """Leave out what narrows a tensor between two nodes that are both in FP32."""
    casts = {
        node.output[0]: node.input[0]
        for node in proto.node
        if node.op_type == "Cast" and _target(node) == TensorProto.FLOAT16
    }
    outputs = {output.name for output in proto.output}
    wide = {
        node.output[0]: casts[node.input[0]]
        for node in proto.node
        if node.op_type == "Cast"
        and _target(node) == TensorProto.FLOAT
        and node.input[0] in casts
        and node.output[0] not in outputs
    }
    for node in proto.node:
        for at, name in enumerate(node.input):
            node.input[at] = wide.get(name, name)
    used = graph.consumers(proto).keys() | outputs
    kept = [node for node in proto.node if node.op_type != "Cast" or node.output[0] in used]
    del proto.node[:]
    proto.node.extend(kept)


def _target(cast: onnx.NodeProto) -> int:
    return next(int(item.i) for item in cast.attribute if item.name == "to")


def _too_large(proto: onnx.ModelProto, method: Fp16, context: Context) -> list[str]:
    """The nodes whose values, on some of the calibration data, FP16 cannot hold; a CPU, which
    computes much of it in FP32, would not show it.
    """
    tensors = float_tensors(proto, list(proto.graph.node))
    feed = next(feeds(context, method.name, ROWS, ROWS))
    values = feed | Runner(proto, context.threads, tensors).run(feed)
    large = {name for name in tensors if _peak(values[name]) > LARGEST}
    names = [node.name for node in proto.graph.node if large & {*node.input, *node.output}]
    if names:
        context.progress.say(f"left in FP32, as FP16 cannot hold their values: {', '.join(names)}")
        context.measured["kept"] = names
    return names


def _peak(values: Array) -> float:
    """The largest finite absolute value."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0))


def bf16(model: Model, method: Bf16, context: Context) -> OnnxModel:
    """Handler of `bf16`: ONNX Runtime widens the weights once, as it loads the file."""
    proto = prepared(model, context)
    excluded = set(graph.excluded(proto.graph, method.exclude))
    kept = {
        name for node in proto.graph.node if node.name in excluded for name in node.input if name
    }
    narrow = onnx.ModelProto()
    narrow.CopyFrom(proto)
    casts = [
        _narrowed(tensor)
        for tensor in narrow.graph.initializer
        if _is_large(tensor) and tensor.name not in kept
    ]
    if not casts:
        raise MethodError(f"the model has no FP32 weight of {SMALL} elements or more")
    nodes = [*casts, *narrow.graph.node]
    del narrow.graph.node[:]
    narrow.graph.node.extend(nodes)
    check(proto, narrow, method, context)
    return graph.save(narrow, context.folder)


def _is_large(tensor: onnx.TensorProto) -> bool:
    size = 1
    for length in tensor.dims:
        size *= length
    return tensor.data_type == TensorProto.FLOAT and size >= SMALL


def _narrowed(tensor: onnx.TensorProto) -> onnx.NodeProto:
    """Make the constant a BF16 one; the node gives its values as FP32 by the old name."""
    name = tensor.name
    values = graph.array(tensor).astype(ml_dtypes.bfloat16)
    tensor.CopyFrom(numpy_helper.from_array(values, f"{name}_bf16"))
    return helper.make_node("Cast", [tensor.name], [name], f"{name}_widened", to=TensorProto.FLOAT)
