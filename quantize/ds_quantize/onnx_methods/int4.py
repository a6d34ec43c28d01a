"""INT4 weights of matrix products, a scale for each block of them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ds_engines.base import Array
from ds_quantize.context import Context
from ds_quantize.errors import MethodError
from ds_quantize.forms import Model, OnnxModel
from ds_quantize.methods.onnx import Int4Weights
from ds_quantize.onnx_methods import graph
from ds_quantize.onnx_methods.awq import rescaled
from ds_quantize.onnx_methods.blocks import MIDDLE, Blocks, gptq, hqq, nearest
from ds_quantize.onnx_methods.channels import Channels, seen
from ds_quantize.onnx_methods.collapse import check
from ds_quantize.onnx_methods.prepare import prepared, require_layers, upgraded
from ds_quantize.onnx_methods.scaling import PRODUCTS, groups, matrix

INT4_OPSET = 21
"""The first whose DequantizeLinear takes INT4 and blocks."""

CONTRIB = "com.microsoft"


def int4_weights(model: Model, method: Int4Weights, context: Context) -> OnnxModel:
    """Handler of `int4-weights`."""
    _refuse(method)
    proto = prepared(model, context)
    exclude = graph.excluded(proto.graph, method.exclude)
    require_layers(proto, PRODUCTS, exclude)
    work = onnx.ModelProto()
    work.CopyFrom(proto)
    if method.algorithm == "awq":
        rescaled(work, exclude, method, context)
    if method.target == "tensorrt":
        work = upgraded(work, INT4_OPSET)
    done = _quantize(work, exclude, method, context)
    if not done:
        raise MethodError("the model has no product with a constant matrix that INT4 is for")
    check(proto, work, method, context)
    context.measured["layers"] = {"quantized": done}
    return graph.save(work, context.folder)


def _refuse(method: Int4Weights) -> None:
    if method.target == "tensorrt" and (method.algorithm == "hqq" or not method.symmetric):
        raise MethodError(
            "int4-weights: TensorRT has no zero points; for it, symmetric must be true and "
            "algorithm another than hqq"
        )


def _quantize(
    proto: onnx.ModelProto, exclude: list[str], method: Int4Weights, context: Context
) -> int:
    """Replace the products in place; returns how many there were."""
    found = groups(proto, exclude)
    channels: dict[str, Channels] = {}
    if method.algorithm == "gptq":
        tensors = tuple(group.tensor for group in found)
        channels = seen(proto, tensors, method, context, products=True)
    replaced: dict[str, list[onnx.NodeProto]] = {}
    for group in context.progress.track(found, "Layers", len(found)):
        for node in group.nodes:
            blocks = _blocks(matrix(proto, node), channels.get(group.tensor), method)
            replaced[node.name] = product(proto, node, blocks, method)
    nodes = [new for node in proto.graph.node for new in replaced.get(node.name, [node])]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    graph.drop_unused(proto)
    return len(replaced)


def _blocks(weights: Array, channels: Channels | None, method: Int4Weights) -> Blocks:
    if method.algorithm == "hqq":
        return hqq(weights, method.block_size)
    if channels is not None:
        return gptq(weights, channels.products, method.block_size, method.symmetric)
    return nearest(weights, method.block_size, method.symmetric)


def product(
    proto: onnx.ModelProto, node: onnx.NodeProto, blocks: Blocks, method: Int4Weights
) -> list[onnx.NodeProto]:
    """The product with INT4 weights, and what else a Gemm does."""
    has_bias = node.op_type == "Gemm" and len(node.input) > 2 and node.input[2]
    output = f"{node.output[0]}_product" if has_bias else node.output[0]
    make = _standard if method.target == "tensorrt" else _contrib
    nodes = make(proto, node, blocks, output, method)
    if has_bias:
        nodes.append(
            helper.make_node("Add", [output, node.input[2]], node.output, f"{node.name}_bias")
        )
    return nodes


def _contrib(
    proto: onnx.ModelProto,
    node: onnx.NodeProto,
    blocks: Blocks,
    output: str,
    method: Int4Weights,
) -> list[onnx.NodeProto]:
    """ONNX Runtime's MatMulNBits: weights by column, the earlier of two in the lower half-byte."""
    levels, name = blocks.levels.transpose(2, 0, 1), node.name
    constants = {
        f"{name}_int4": _packed(levels),
        f"{name}_scales": blocks.scales.T.astype(np.float32),
    }
    if method.algorithm == "hqq":
        constants[f"{name}_zeros"] = blocks.zeros.T.astype(np.float32)
    elif not method.symmetric:
        zeros = blocks.zeros.T.astype(np.uint8)
        constants[f"{name}_zeros"] = _packed(np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2))))
    _add(proto, constants)
    if all(item.domain != CONTRIB for item in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    return [
        helper.make_node(
            "MatMulNBits",
            [node.input[0], *constants],
            [output],
            name,
            domain=CONTRIB,
            K=blocks.rows,
            N=levels.shape[0],
            bits=4,
            block_size=method.block_size,
            accuracy_level=method.accuracy_level,
        )
    ]


def _standard(
    proto: onnx.ModelProto,
    node: onnx.NodeProto,
    blocks: Blocks,
    output: str,
    method: Int4Weights,
) -> list[onnx.NodeProto]:
    """DequantizeLinear over blocks of INT4, and MatMul."""
    names = [f"{node.name}_int4", f"{node.name}_scales"]
    signed = blocks.levels.astype(np.int8) - MIDDLE
    levels = signed.reshape(-1, signed.shape[-1])[: blocks.rows]
    packed = _packed(np.pad(levels.reshape(-1), (0, levels.size % 2)).astype(np.uint8) & 15)
    proto.graph.initializer.append(
        helper.make_tensor(names[0], TensorProto.INT4, levels.shape, packed.tobytes(), raw=True)
    )
    _add(proto, {names[1]: blocks.scales.astype(np.float32)})
    wide = f"{node.name}_weights"
    return [
        helper.make_node(
            "DequantizeLinear",
            names,
            [wide],
            f"{node.name}_dequantize",
            axis=0,
            block_size=method.block_size,
        ),
        helper.make_node("MatMul", [node.input[0], wide], [output], node.name),
    ]


def _packed(levels: Array) -> Array:
    packed: Array = (levels[..., ::2] | (levels[..., 1::2] << 4)).astype(np.uint8)
    return packed


def _add(proto: onnx.ModelProto, constants: dict[str, Array]) -> None:
    for name, values in constants.items():
        tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
        proto.graph.initializer.append(tensor)
