"""INT4 weights of matrix products, by ONNX Runtime's quantizers of blocks."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper
from onnxruntime.quantization import QuantFormat
from onnxruntime.quantization.calibrate import CalibrationDataReader
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    GPTQWeightOnlyQuantConfig,
    HQQWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
    WeightOnlyQuantConfig,
)

from ds_engines.base import Tensors
from ds_quantize.context import Context
from ds_quantize.errors import MethodError
from ds_quantize.forms import Model, OnnxModel
from ds_quantize.methods.onnx import Int4Weights
from ds_quantize.onnx_methods import graph
from ds_quantize.onnx_methods.awq import rescaled
from ds_quantize.onnx_methods.collapse import check
from ds_quantize.onnx_methods.prepare import prepared, require_layers, upgraded
from ds_quantize.onnx_methods.quiet import quiet
from ds_quantize.onnx_methods.scaling import PRODUCTS, matrix
from ds_quantize.onnx_methods.sessions import shown_feeds

INT4_OPSET = 21
"""The first whose DequantizeLinear takes INT4 and blocks."""


def int4_weights(model: Model, method: Int4Weights, context: Context) -> OnnxModel:
    """Handler of `int4-weights`."""
    if method.target == "tensorrt" and method.algorithm not in ("rtn", "awq"):
        raise MethodError(
            f"int4-weights: {method.algorithm} makes operators of ONNX Runtime's own; for the "
            "target tensorrt, algorithm must be rtn or awq"
        )
    proto = prepared(model, context)
    exclude = graph.excluded(proto.graph, method.exclude)
    require_layers(proto, PRODUCTS, exclude)
    work = onnx.ModelProto()
    work.CopyFrom(proto)
    split_gemms(work)
    if method.algorithm == "awq":
        rescaled(work, exclude, method, context)
    if method.target == "tensorrt":
        work = upgraded(work, INT4_OPSET)
    quantized = _quantized(work, exclude, method, context)
    check(proto, quantized, method, context)
    return graph.save(quantized, context.folder)


def split_gemms(proto: onnx.ModelProto) -> None:
    """Gemm with constant weights as MatMul and Add, as only MatMul has a form for INT4."""
    constants = graph.weights(proto.graph)
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        plain = all(item.name == "transB" or item.f == 1.0 for item in node.attribute)
        if node.op_type == "Gemm" and node.input[1] in constants and plain:
            nodes += _split(proto, node)
        else:
            nodes.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    _drop_unused(proto)


def _split(proto: onnx.ModelProto, gemm: onnx.NodeProto) -> list[onnx.NodeProto]:
    weight = f"{gemm.name}_matrix"
    values = np.ascontiguousarray(matrix(proto, gemm))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(values, weight))
    if len(gemm.input) < 3 or not gemm.input[2]:
        return [helper.make_node("MatMul", [gemm.input[0], weight], gemm.output, gemm.name)]
    product = f"{gemm.output[0]}_product"
    return [
        helper.make_node("MatMul", [gemm.input[0], weight], [product], gemm.name),
        helper.make_node("Add", [product, gemm.input[2]], gemm.output, f"{gemm.name}_bias"),
    ]


def _drop_unused(proto: onnx.ModelProto) -> None:
    used = graph.consumers(proto.graph)
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)


def _quantized(
    proto: onnx.ModelProto, exclude: list[str], method: Int4Weights, context: Context
) -> onnx.ModelProto:
    config = _config(method, context)
    try:
        with quiet():
            quantizer = MatMulNBitsQuantizer(
                proto,
                block_size=method.block_size,
                is_symmetric=method.symmetric,
                accuracy_level=method.accuracy_level,
                nodes_to_exclude=exclude,
                algo_config=config,
            )
            quantizer.process()
    except Exception as error:
        raise MethodError(f"the model cannot be quantized: {graph.first_line(error)}") from error
    result: onnx.ModelProto = quantizer.model.model
    return result


def _config(method: Int4Weights, context: Context) -> WeightOnlyQuantConfig | None:
    if method.algorithm == "hqq":
        return HQQWeightOnlyQuantConfig(block_size=method.block_size)
    if method.algorithm == "gptq":
        return GPTQWeightOnlyQuantConfig(
            _Reader(method, context), block_size=max(128, method.block_size), mse=True
        )
    standard = method.target == "tensorrt"
    return DefaultWeightOnlyQuantConfig(
        block_size=method.block_size,
        is_symmetric=method.symmetric,
        accuracy_level=method.accuracy_level,
        quant_format=QuantFormat.QDQ if standard else QuantFormat.QOperator,
    )


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Calibration data as ONNX Runtime reads them; it copies the reader before it starts."""

    def __init__(self, method: Int4Weights, context: Context) -> None:
        self._feeds = list(
            shown_feeds(context, method.name, method.samples, method.batch, "Calibration")
        )

    def get_next(self) -> Tensors | None:
        return self._feeds.pop(0) if self._feeds else None
