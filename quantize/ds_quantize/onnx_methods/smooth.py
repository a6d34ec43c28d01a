"""SmoothQuant (Xiao et al., 2023): W8A8 for transformers, whose activations have outliers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from ds_engines.base import Array
from ds_quantize.context import Context
from ds_quantize.errors import MethodError
from ds_quantize.forms import Model, OnnxModel
from ds_quantize.methods.onnx import SmoothQuant
from ds_quantize.onnx_methods import graph
from ds_quantize.onnx_methods.channels import seen
from ds_quantize.onnx_methods.prepare import inferred, prepared
from ds_quantize.onnx_methods.scaling import Group, groups, matrix, rescale
from ds_quantize.onnx_methods.static import finished, planned

SMALLEST = 1e-5


def smooth_quant(model: Model, method: SmoothQuant, context: Context) -> OnnxModel:
    """Handler of `smooth-quant`."""
    proto = prepared(model, context)
    found = groups(proto, graph.excluded(proto.graph, method.exclude))
    if not found:
        raise MethodError(
            "the model has no matrix product with constant weights, so there is nothing to smooth; "
            "use int8-static"
        )
    divided = smoothed(proto, found, method, context)
    plan = planned(inferred(proto), method, context)
    return finished(replace(plan, exclude=(*plan.exclude, *divided)), context)


def smoothed(
    proto: onnx.ModelProto, found: list[Group], method: SmoothQuant, context: Context
) -> list[str]:
    """Rescale in place; returns the names of the nodes that had to be put in."""
    channels = seen(proto, tuple(group.tensor for group in found), method, context)
    divided = []
    for group in found:
        weights = np.stack([np.abs(matrix(proto, node)).max(axis=1) for node in group.nodes])
        scales = _scales(channels[group.tensor].peak, weights.max(axis=0), method.alpha)
        divided.append(rescale(proto, group, scales))
    names = [name for name in divided if name]
    context.measured["smoothed"] = {"groups": len(found), "folded": len(found) - len(names)}
    return names


def _scales(activation: Array, weight: Array, alpha: float) -> Array:
    scales = np.maximum(activation, SMALLEST) ** alpha
    scales /= np.maximum(weight, SMALLEST) ** (1 - alpha)
    return np.where(activation > SMALLEST, np.maximum(scales, SMALLEST), 1.0)
