"""Half-precision forms; inputs and outputs keep their types."""

from __future__ import annotations

import ml_dtypes
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from ds_quantize.context import Context
from ds_quantize.errors import MethodError
from ds_quantize.forms import Model, OnnxModel
from ds_quantize.methods.onnx import Bf16, Fp16
from ds_quantize.onnx_methods import graph
from ds_quantize.onnx_methods.collapse import check
from ds_quantize.onnx_methods.prepare import prepared
from ds_quantize.onnx_methods.quiet import quiet

SMALL = 256
"""Elements of a constant below which its own Cast node would be larger than what it saves."""


def fp16(model: Model, method: Fp16, context: Context) -> OnnxModel:
    """Handler of `fp16`."""
    proto = prepared(model, context)
    exclude = graph.excluded(proto.graph, method.exclude)
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
    check(proto, half, method, context)
    return graph.save(half, context.folder)


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
