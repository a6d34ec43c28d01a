"""What calibration data say of the channels of activations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx

from ds_engines.base import Array, Tensors
from ds_quantize.context import Context
from ds_quantize.errors import MethodError
from ds_quantize.methods.onnx import Int4Weights, SmoothQuant
from ds_quantize.onnx_methods import graph
from ds_quantize.onnx_methods.sessions import Runner, shown_feeds


@dataclass
class Channels:
    """Over all rows of an activation: the largest and the sum of the absolute values of each
    channel, and the sum of the rows' outer products.
    """

    rows: int = 0
    peak: Array = field(default_factory=lambda: np.zeros(0))
    absolute: Array = field(default_factory=lambda: np.zeros(0))
    products: Array = field(default_factory=lambda: np.zeros((0, 0)))

    def add(self, rows: Array, products: bool) -> None:
        """Take in more rows, float[rows, channels]."""
        width = rows.shape[1]
        if not self.rows:
            self.peak, self.absolute = np.zeros(width), np.zeros(width)
            self.products = np.zeros((width, width) if products else (0, 0))
        self.rows += len(rows)
        self.peak = np.maximum(self.peak, np.abs(rows).max(axis=0, initial=0))
        self.absolute += np.abs(rows).sum(axis=0)
        if products:
            self.products += rows.T @ rows


def seen(
    proto: onnx.ModelProto,
    tensors: tuple[str, ...],
    method: Int4Weights | SmoothQuant,
    context: Context,
    products: bool = False,
) -> dict[str, Channels]:
    """The channels, which are the last axis, of these tensors over the calibration data.

    Raises MethodError that names the layer whose values are not finite.
    """
    found = {name: Channels() for name in tensors}
    for values in _values(proto, tensors, method, context):
        for name, channels in found.items():
            rows = values[name].reshape(-1, values[name].shape[-1])
            if not np.isfinite(rows).all():
                raise MethodError(
                    f"{graph.layer_of(proto.graph, name)} gives values that are not finite on the "
                    "calibration data"
                )
            channels.add(rows, products)
    return found


def _values(
    proto: onnx.ModelProto,
    tensors: tuple[str, ...],
    method: Int4Weights | SmoothQuant,
    context: Context,
) -> Iterator[Tensors]:
    runner = Runner(proto, context.threads, tensors)
    for feed in shown_feeds(context, method.name, method.samples, method.batch, "Channels"):
        yield feed | runner.run(feed)
