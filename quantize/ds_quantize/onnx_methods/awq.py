"""Activation-aware scales (AWQ: Lin et al., 2024): channels that matter are rounded more finely."""

from __future__ import annotations

import numpy as np
import onnx

from ds_engines.base import Array
from ds_quantize.context import Context
from ds_quantize.methods.onnx import Int4Weights
from ds_quantize.onnx_methods.blocks import nearest
from ds_quantize.onnx_methods.channels import Channels, seen
from ds_quantize.onnx_methods.scaling import Group, groups, matrix, rescale

POWERS = np.linspace(0, 0.95, 20)
SMALLEST = 1e-4


def rescaled(
    proto: onnx.ModelProto, exclude: list[str], method: Int4Weights, context: Context
) -> None:
    """Rescale each group of products in place by what makes their own error the least."""
    found = groups(proto, exclude)
    tensors = tuple(group.tensor for group in found)
    channels = seen(proto, tensors, method, context, products=True)
    powers = {}
    for group in context.progress.track(found, "Scales", len(found)):
        power, scales = _best(proto, group, channels[group.tensor], method)
        powers[group.nodes[0].name] = round(power, 2)
        if power:
            rescale(proto, group, scales)
    context.measured["awq"] = powers


def _best(
    proto: onnx.ModelProto, group: Group, channels: Channels, method: Int4Weights
) -> tuple[float, Array]:
    """The power of the mean activation that is the best scale, and the scales."""
    mean = np.maximum(channels.absolute / channels.rows, SMALLEST)
    weights = np.concatenate([matrix(proto, node) for node in group.nodes], axis=1)
    least, best = np.inf, (0.0, np.ones_like(mean))
    for power in POWERS:
        scales = mean**power
        scales /= np.sqrt(scales.max() * scales.min())
        blocks = nearest(weights * scales[:, None], method.block_size, method.symmetric)
        wrong = blocks.values / scales[:, None] - weights
        error = float(np.einsum("ij,ij->", channels.products @ wrong, wrong))
        if error < least:
            least, best = error, (float(power), scales)
    return best
