"""INT8 weights; the ranges of activations are found anew for each request."""

from __future__ import annotations

import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
from onnxruntime.quantization.quant_utils import QuantizationMode

from ds_quantize.context import Context
from ds_quantize.errors import MethodError
from ds_quantize.forms import Model, OnnxModel
from ds_quantize.methods.onnx import Int8Dynamic
from ds_quantize.onnx_methods import graph
from ds_quantize.onnx_methods.collapse import check
from ds_quantize.onnx_methods.prepare import prepared, require_layers
from ds_quantize.onnx_methods.quiet import quiet


def int8_dynamic(model: Model, method: Int8Dynamic, context: Context) -> OnnxModel:
    """Handler of `int8-dynamic`."""
    proto = prepared(model, context)
    exclude = graph.excluded(proto.graph, method.exclude)
    require_layers(proto, method.operators, exclude)
    quantized = _quantized(proto, method, exclude)
    check(proto, quantized, method, context)
    return graph.save(quantized, context.folder)


def _quantized(proto: onnx.ModelProto, method: Int8Dynamic, exclude: list[str]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    try:
        with quiet():
            quantizer = ONNXQuantizer(
                copy,
                method.per_channel,
                method.reduce_range,
                QuantizationMode.IntegerOps,
                False,  # not static
                QuantType.QInt8,
                QuantType.QUInt8,
                None,
                [],
                exclude,
                list(method.operators),
                {"MatMulConstBOnly": True},
            )
            quantizer.quantize_model()
    except Exception as error:
        raise MethodError(f"the model cannot be quantized: {graph.first_line(error)}") from error
    result: onnx.ModelProto = quantizer.model.model
    return result
