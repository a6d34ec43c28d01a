"""Activation-aware scales (AWQ: Lin et al., 2024): channels that matter are rounded more finely."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantizer

from ds_engines.base import Array
from ds_quantize.context import Context
from ds_quantize.methods.onnx import Int4Weights
from ds_quantize.onnx_methods.scaling import Group, groups, matrix, rescale
from ds_quantize.onnx_methods.sessions import Runner, shown_feeds

POWERS = np.linspace(0, 0.95, 20)
SMALLEST = 1e-4


@dataclass
class Seen:
    """Sums over the rows of an activation: of its absolute values, and of its outer products."""

    rows: int = 0
    absolute: Array = field(default_factory=lambda: np.zeros(0))
    products: Array = field(default_factory=lambda: np.zeros((0, 0)))

    def add(self, rows: Array) -> None:
        if not self.rows:
            width = rows.shape[1]
            self.absolute, self.products = np.zeros(width), np.zeros((width, width))
        self.rows += len(rows)
        self.absolute += np.abs(rows).sum(axis=0)
        self.products += rows.T @ rows


def rescaled(
    proto: onnx.ModelProto, exclude: list[str], method: Int4Weights, context: Context
) -> None:
    """Rescale each group of products in place by what makes their own error the least."""
    found = groups(proto, exclude)
    seen = _seen(proto, found, method, context)
    powers = {}
    for group in context.progress.track(found, "Scales", len(found)):
        power, scales = _best(proto, group, seen[group.tensor], method)
        powers[group.nodes[0].name] = round(power, 2)
        if power:
            rescale(proto, group, scales)
    context.measured["awq"] = powers


def _seen(
    proto: onnx.ModelProto, found: list[Group], method: Int4Weights, context: Context
) -> dict[str, Seen]:
    seen = {group.tensor: Seen() for group in found}
    runner = Runner(proto, context.threads, tuple(seen))
    for feed in shown_feeds(context, method.name, method.samples, method.batch, "Channels"):
        values = feed | runner.run(feed)
        for name, sums in seen.items():
            sums.add(values[name].reshape(-1, values[name].shape[-1]))
    return seen


def _best(
    proto: onnx.ModelProto, group: Group, seen: Seen, method: Int4Weights
) -> tuple[float, Array]:
    mean = np.maximum(seen.absolute / seen.rows, SMALLEST)
    weights = np.concatenate([matrix(proto, node) for node in group.nodes], axis=1)
    least, best = np.inf, (0.0, np.ones_like(mean))
    for power in POWERS:
        scales = mean**power
        scales /= np.sqrt(scales.max() * scales.min())
        wrong = rounded(weights * scales[:, None], method) / scales[:, None] - weights
        error = float(np.einsum("ij,ij->", seen.products @ wrong, wrong))
        if error < least:
            least, best = error, (float(power), scales)
    return best


def rounded(weights: Array, method: Int4Weights) -> Array:
    """The values that INT4 has for these weights, a scale for each block of rows."""
    rows, block = len(weights), method.block_size
    padded = np.pad(weights, ((0, -rows % block), (0, 0))).reshape(-1, block, weights.shape[1])
    if method.symmetric:
        levels, scale = DefaultWeightOnlyQuantizer.quant_slice_symmetric(padded)
        values = levels * scale
    else:
        levels, scale, zero = DefaultWeightOnlyQuantizer.quant_slice_asymmetric(padded)
        values = (levels.astype(np.float32) - zero) * scale
    found: Array = values.reshape(-1, weights.shape[1])[:rows]
    return found
