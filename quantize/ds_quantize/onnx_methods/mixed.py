"""INT8 where it does no harm: the layers that it harms most stay in floating point."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import onnx

from ds_engines.base import Tensors
from ds_quantize.context import Context
from ds_quantize.forms import Model, OnnxModel
from ds_quantize.methods.onnx import MixedPrecision
from ds_quantize.onnx_methods.prepare import prepared
from ds_quantize.onnx_methods.sessions import Runner, feeds
from ds_quantize.onnx_methods.static import Plan, finished, planned, quantize

EXACT = 120.0
"""Decibels given for outputs without any difference."""


@dataclass(frozen=True)
class Likeness:
    """How near outputs are to those of the original: the cosine of the angle between them, and
    the ratio of signal to quantization noise in decibels.
    """

    cosine: float
    sqnr: float


def mixed_precision(model: Model, method: MixedPrecision, context: Context) -> OnnxModel:
    """Handler of `mixed-precision`."""
    plan = planned(prepared(model, context), method, context)
    probe = Probe(plan.proto, method, context)
    ranking = _ranking(plan, probe, context)
    context.measured["sensitivity"] = [
        {"layer": name, "cosine": like.cosine, "sqnr": like.sqnr} for name, like in ranking
    ]
    kept, like = _kept(plan, method, probe, [name for name, _ in ranking])
    if not _near(like, method):
        context.progress.say(
            f"with {len(kept)} of {len(ranking)} layers in floating point, which is all that "
            f"max_share allows, outputs have a cosine of {like.cosine:.4f} and {like.sqnr:.1f} dB"
        )
    context.measured["mixed"] = {"kept": kept, "cosine": like.cosine, "sqnr": like.sqnr}
    return finished(_without(plan, kept), context)


class Probe:
    """Compares quantized forms of a model with it, on the same rows."""

    def __init__(self, proto: onnx.ModelProto, method: MixedPrecision, context: Context) -> None:
        self._threads = context.threads
        self._feeds = list(feeds(context, method.name, method.probe, method.batch))
        runner = Runner(proto, self._threads)
        self._wanted = [runner.run(feed) for feed in self._feeds]

    def likeness(self, proto: onnx.ModelProto) -> Likeness:
        """Over all floating-point outputs of all rows."""
        runner = Runner(proto, self._threads)
        sums = np.zeros(4)
        for feed, wanted in zip(self._feeds, self._wanted, strict=True):
            sums += _sums(wanted, runner.run(feed))
        product, signal, other, noise = sums
        cosine = product / np.sqrt(signal * other) if signal and other else float(noise == 0)
        sqnr = 10 * np.log10(signal / noise) if signal and noise else EXACT
        return Likeness(round(float(cosine), 6), round(float(min(sqnr, EXACT)), 2))


def _sums(wanted: Tensors, found: Tensors) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    sums = np.zeros(4)
    for name, array in wanted.items():
        if array.dtype.kind == "f":
            a, b = array.astype(np.float64).ravel(), found[name].astype(np.float64).ravel()
            sums += (a @ b, a @ a, b @ b, (a - b) @ (a - b))
    return sums


def _ranking(plan: Plan, probe: Probe, context: Context) -> list[tuple[str, Likeness]]:
    """Each layer quantized alone, the most harmful first."""
    names = [node.name for node in plan.layers]
    found = [
        (name, probe.likeness(quantize(plan, (name,))))
        for name in context.progress.track(names, "Sensitivity", len(names))
    ]
    return sorted(found, key=lambda entry: entry[1].sqnr)


def _kept(
    plan: Plan, method: MixedPrecision, probe: Probe, ranking: list[str]
) -> tuple[list[str], Likeness]:
    """The fewest of the most sensitive layers without which the model is near enough, or as many
    as `max_share` allows. Found by halving, as each layer kept brings it nearer.
    """
    low, high = 0, math.ceil(method.max_share * len(ranking))
    found = ranking[:high], probe.likeness(quantize(_without(plan, ranking[:high])))
    while low < high:
        middle = (low + high) // 2
        like = probe.likeness(quantize(_without(plan, ranking[:middle])))
        if _near(like, method):
            high, found = middle, (ranking[:middle], like)
        else:
            low = middle + 1
    return found


def _near(like: Likeness, method: MixedPrecision) -> bool:
    return (method.min_cosine is None or like.cosine >= method.min_cosine) and (
        method.min_sqnr is None or like.sqnr >= method.min_sqnr
    )


def _without(plan: Plan, names: list[str]) -> Plan:
    return replace(plan, exclude=(*plan.exclude, *names))
