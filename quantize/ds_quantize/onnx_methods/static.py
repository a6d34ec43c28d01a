"""INT8 with ranges from calibration data, as QuantizeLinear and DequantizeLinear nodes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from ds_quantize.context import Context
from ds_quantize.errors import MethodError
from ds_quantize.forms import Model, OnnxModel
from ds_quantize.methods.onnx import Int8Static
from ds_quantize.onnx_methods import graph
from ds_quantize.onnx_methods.collapse import check
from ds_quantize.onnx_methods.prepare import LAYERS, float_tensors, layers, prepared, require_layers
from ds_quantize.onnx_methods.quiet import quiet
from ds_quantize.onnx_methods.ranges import Extent, measure

ROUND_ABOUT = (
    "Add",
    "AveragePool",
    "Clip",
    "Concat",
    "Flatten",
    "GlobalAveragePool",
    "MaxPool",
    "Relu",
    "Reshape",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
"""What lies between layers and would otherwise turn INT8 into floating point and back."""

CONVOLUTIONS = ("Conv", "ConvTranspose")

OPERATORS = {"cpu": (*LAYERS, "Gather", *ROUND_ABOUT), "tensorrt": (*LAYERS, "Add", "MaxPool")}

# Products of two activations, as in attention, stay in floating point, and so does what products
# give, to which biases and residuals are added.
PRODUCTS: dict[str, Any] = {
    "MatMulConstBOnly": True,
    "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
}

EXTRA: dict[str, dict[str, Any]] = {
    "cpu": PRODUCTS,
    "tensorrt": PRODUCTS
    | {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
    },
}

ACTIVATIONS = {"cpu": QuantType.QUInt8, "tensorrt": QuantType.QInt8}


@dataclass(frozen=True)
class Plan:
    """Everything that quantizing needs, so that it can be done again with other layers left out."""

    proto: onnx.ModelProto
    method: Int8Static
    ranges: dict[str, Extent]
    exclude: tuple[str, ...] = ()

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """The nodes that are quantized."""
        operators = operators_of(self.method)
        return [
            node
            for node in self.proto.graph.node
            if node.op_type in operators and node.name not in self.exclude
        ]

    @property
    def layers(self) -> list[onnx.NodeProto]:
        """Those that have weights."""
        return layers(self.proto, operators_of(self.method), self.exclude)


def int8_static(model: Model, method: Int8Static, context: Context) -> OnnxModel:
    """Handler of `int8-static`."""
    plan = planned(prepared(model, context), method, context)
    return finished(plan, context)


def finished(plan: Plan, context: Context) -> OnnxModel:
    """Quantize by the plan, check, and write the file."""
    quantized = quantize(plan)
    context.measured["layers"] = {
        "quantized": len(plan.layers),
        "kept": len(layers(plan.proto, LAYERS)) - len(plan.layers),
    }
    check(plan.proto, quantized, plan.method, context)
    return graph.save(quantized, context.folder)


def operators_of(method: Int8Static) -> tuple[str, ...]:
    """The types of operators that are quantized."""
    chosen = method.operators or OPERATORS[method.target]
    return tuple(name for name in chosen if name not in method.exclude_operators)


def planned(proto: onnx.ModelProto, method: Int8Static, context: Context) -> Plan:
    """Measure the ranges. Raises MethodError where there is nothing to quantize."""
    exclude = tuple(graph.excluded(proto.graph, method.exclude))
    if not method.operators:
        exclude += tuple(_left_by_default(proto))
    plan = Plan(proto, method, {}, exclude)
    _require_layers(plan)
    tensors = float_tensors(proto, plan.nodes)
    ranges = measure(proto, tensors, method, context, method.target == "tensorrt")
    plan = replace(plan, ranges=ranges.found)
    if ranges.unbounded:
        plan = _without_unbounded(plan, ranges.unbounded, context)
        _require_layers(plan)
    return plan


def _left_by_default(proto: onnx.ModelProto) -> list[str]:
    """The Adds but for those of outputs of convolutions, and lookups in what is not a constant.

    In a transformer sums are residuals with outliers, which INT8 ruins: MiniLM's embeddings had a
    cosine of 0.80 to the original's with them, and of 0.93 without.
    """
    made: set[str] = set()
    names = []
    constants = graph.weights(proto.graph)
    for node in proto.graph.node:
        inputs = [name for name in node.input if name not in constants]
        if node.op_type in CONVOLUTIONS or (
            node.op_type in ROUND_ABOUT and inputs and made.issuperset(inputs)
        ):
            made.update(node.output)
        elif node.op_type == "Add" or (node.op_type == "Gather" and node.input[0] not in constants):
            names.append(node.name)
    return names


def _require_layers(plan: Plan) -> None:
    require_layers(plan.proto, operators_of(plan.method), plan.exclude)


def _without_unbounded(plan: Plan, tensors: set[str], context: Context) -> Plan:
    nodes = [node for node in plan.nodes if tensors & {*node.input, *node.output}]
    names = tuple(node.name for node in nodes)
    context.progress.say(f"left as they are, as their values have no bounds: {', '.join(names)}")
    return replace(plan, exclude=plan.exclude + names)


def quantize(plan: Plan, only: tuple[str, ...] = ()) -> onnx.ModelProto:
    """The quantized model, or one with `only` these layers quantized.

    Raises MethodError that names the layer that cannot be.
    """
    try:
        return _quantized(plan, only)
    except Exception as error:
        raise MethodError(
            f"{_culprit(plan)} cannot be quantized: {graph.first_line(error)}"
        ) from error


def _culprit(plan: Plan) -> str:
    """Which layer fails when it is quantized alone."""
    for node in plan.nodes:
        try:
            _quantized(plan, (node.name,))
        except Exception:
            return f"layer {node.name!r} ({node.op_type})"
    return "the model"


def _quantized(plan: Plan, only: tuple[str, ...] = ()) -> onnx.ModelProto:
    method = plan.method
    copy = onnx.ModelProto()
    copy.CopyFrom(plan.proto)
    with quiet():
        quantizer = QDQQuantizer(
            copy,
            method.per_channel,
            method.reduce_range,
            QuantType.QInt8,
            ACTIVATIONS[method.target],
            _tensors_data(plan.ranges),
            list(only),
            list(plan.exclude),
            list(operators_of(method)),
            EXTRA[method.target],
        )
        quantizer.quantize_model()
    result: onnx.ModelProto = quantizer.model.model
    return result


def _tensors_data(ranges: dict[str, Extent]) -> TensorsData:
    return TensorsData(
        CalibrationMethod.MinMax,
        {
            name: TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
            for name, (low, high) in ranges.items()
        },
    )
