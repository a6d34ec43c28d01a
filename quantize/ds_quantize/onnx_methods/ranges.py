"""The ranges of activations, measured on calibration data.

The data are read twice, a batch at a time, so that memory does not grow with them: once for the
extremes, and once for histograms between those where the range is less than the extremes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx

from ds_engines.base import Array, Tensors
from ds_quantize.context import Context
from ds_quantize.errors import MethodError
from ds_quantize.onnx_methods import graph
from ds_quantize.onnx_methods.sessions import Runner, shown_feeds

if TYPE_CHECKING:
    from ds_quantize.methods.onnx import Fp8, Int8Static

BINS = 4096
LEVELS = 255
LARGE = 1e30
"""Masks of attention hold -inf, or the lowest number there is; no scale can tell such apart."""

Extent = tuple[float, float]


@dataclass
class Ranges:
    """`found`: lowest and highest value by tensor. `unbounded`: tensors that no range holds."""

    found: dict[str, Extent] = field(default_factory=dict)
    unbounded: set[str] = field(default_factory=set)


def measure(
    proto: onnx.ModelProto,
    tensors: tuple[str, ...],
    method: Int8Static | Fp8,
    context: Context,
    symmetric: bool,
) -> Ranges:
    """The ranges of these tensors. Raises DataError, and MethodError that names the layer from
    which NaN comes.
    """
    runner = Runner(proto, context.threads, tensors)
    calibration = _Calibration(proto, tensors, method, context, runner)
    ranges = calibration.extremes()
    if method.calibration != "min-max":
        histograms = calibration.histograms(ranges)
        for name, histogram in histograms.items():
            ranges.found[name] = _narrowed(histogram, ranges.found[name], method, symmetric)
    return ranges


@dataclass
class _Calibration:
    proto: onnx.ModelProto
    tensors: tuple[str, ...]
    method: Int8Static | Fp8
    context: Context
    runner: Runner

    def extremes(self) -> Ranges:
        ranges = Ranges()
        for values in self._values("Ranges"):
            for name, array in values.items():
                self._widen(ranges, name, array)
        for name in ranges.unbounded:
            ranges.found.pop(name, None)
        return ranges

    def histograms(self, ranges: Ranges) -> dict[str, Array]:
        """How many values are in each of BINS equal parts of a tensor's range."""
        counts = {name: np.zeros(BINS, np.int64) for name in ranges.found}
        for values in self._values("Histograms"):
            for name in counts:
                counts[name] += _counted(values[name], ranges.found[name])
        return counts

    def _values(self, description: str) -> Iterator[Tensors]:
        method = self.method
        for feed in shown_feeds(
            self.context, method.name, method.samples, method.batch, description
        ):
            values = feed | self.runner.run(feed)
            yield {name: values[name] for name in self.tensors if values[name].size}

    def _widen(self, ranges: Ranges, name: str, array: Array) -> None:
        low, high = float(array.min()), float(array.max())
        if np.isnan(low) or np.isnan(high):
            raise MethodError(
                f"{graph.layer_of(self.proto.graph, name)} gives NaN on the calibration data"
            )
        if low < -LARGE or high > LARGE:
            ranges.unbounded.add(name)
            return
        before = ranges.found.get(name, (0.0, 0.0))
        ranges.found[name] = (min(before[0], low), max(before[1], high))


def _counted(array: Array, extent: Extent) -> Array:
    return np.bincount(_places(array.reshape(-1), extent), minlength=BINS)


def _places(values: Array, extent: Extent) -> Array:
    """The bin of each value."""
    low, high = extent
    step = (high - low) / BINS or 1.0
    return np.clip(((values - low) / step).astype(np.int32), 0, BINS - 1)


def _narrowed(
    histogram: Array, extent: Extent, method: Int8Static | Fp8, symmetric: bool
) -> Extent:
    """The part of the range to keep; always with 0 in it, as zero must have an exact value."""
    low, high = extent
    if high <= low:
        return extent
    if method.calibration == "percentile":
        return _percentile(histogram, extent, method.percentile)
    if method.calibration == "mse":
        return _searched(histogram, extent, _squared_error, symmetric)
    return _searched(_without_zeros(histogram, extent), extent, _entropy, symmetric)


def _without_zeros(histogram: Array, extent: Extent) -> Array:
    """With no more in the bin of zero than next to it. Half of what a Relu gives is exactly zero,
    which has an exact value in any case, and would outweigh all else.
    """
    place = int(_places(np.zeros(1), extent)[0])
    beside = histogram[[place - 1 if place else 1, min(place + 1, BINS - 1)]]
    capped = histogram.copy()
    capped[place] = min(histogram[place], beside.max())
    return capped


def _percentile(histogram: Array, extent: Extent, percent: float) -> Extent:
    """Leaves out the same share of values on either side."""
    low, high = extent
    share = np.cumsum(histogram) / histogram.sum()
    edges = np.linspace(low, high, BINS + 1)
    outside = (1 - percent / 100) / 2
    left = edges[int(np.searchsorted(share, outside, side="right"))]
    right = edges[min(int(np.searchsorted(share, 1 - outside)) + 1, BINS)]
    return min(float(left), 0.0), max(float(right), 0.0)


Score = Callable[[Array, Array, float, float], float]


def _searched(histogram: Array, extent: Extent, score: Score, symmetric: bool) -> Extent:
    """The range with the least score; where it is not symmetric, one side after the other."""
    middles = np.linspace(*extent, BINS, endpoint=False) + (extent[1] - extent[0]) / BINS / 2
    used = histogram > 0
    middles, counts = middles[used], histogram[used].astype(np.float64)
    low, high = extent
    if symmetric:
        far = max(-low, high)
        part = _least(lambda part: score(middles, counts, -part * far, part * far))
        return -part * far, part * far
    high *= _least(lambda part: score(middles, counts, low, part * high))
    low *= _least(lambda part: score(middles, counts, part * low, high))
    return low, high


def _least(score: Callable[[float], float]) -> float:
    """The part of one side of the range with the least score."""
    parts = np.linspace(1.0, 0.02, 99)
    return float(parts[int(np.argmin([score(float(part)) for part in parts]))])


def _squared_error(middles: Array, counts: Array, low: float, high: float) -> float:
    step = (high - low) / LEVELS
    rounded = np.round(np.clip(middles, low, high) / step) * step
    return float((counts * (middles - rounded) ** 2).sum())


def _entropy(middles: Array, counts: Array, low: float, high: float) -> float:
    """Kullback-Leibler divergence of the quantized distribution from the true one.

    What lies outside the range counts as at its edge in the true distribution, and is missing in
    the other (Migacz, "8-bit inference with TensorRT", 2017).
    """
    inside = (middles >= low) & (middles <= high)
    if not inside.any():
        return np.inf
    true, kept = counts[inside].copy(), counts[inside]
    true[0] += counts[middles < low].sum()
    true[-1] += counts[middles > high].sum()
    levels = np.round((middles[inside] - low) / (high - low) * LEVELS).astype(np.int64)
    quantized = (np.bincount(levels, kept) / np.maximum(np.bincount(levels), 1))[levels]
    p, q = true / true.sum(), quantized / quantized.sum()
    return float((p * np.log(p / q)).sum())
