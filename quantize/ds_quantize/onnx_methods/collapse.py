"""Whether a quantized model still says anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx

from ds_engines.base import Array, Tensors
from ds_quantize.context import Context
from ds_quantize.errors import MethodError
from ds_quantize.onnx_methods import graph
from ds_quantize.onnx_methods.sessions import Runner, feeds

if TYPE_CHECKING:
    from ds_quantize.method import Method

ROWS = 16


def check(
    original: onnx.ModelProto, quantized: onnx.ModelProto, method: Method, context: Context
) -> None:
    """Run both on some calibration data, where there are any. Raises MethodError that names the
    first layer whose output is not finite, or is one value where the original's is not.
    """
    if context.calibration is None:
        Runner(quantized, context.threads)
        return
    feed = next(feeds(context, method.name, ROWS, ROWS))
    before = Runner(original, context.threads).run(feed)
    after = Runner(quantized, context.threads).run(feed)
    if any(_collapsed(before[name], after[name]) for name in before):
        raise MethodError(_blame(original, quantized, feed, context))


def _collapsed(before: Array, after: Array) -> bool:
    if after.dtype.kind not in "fiu" or not after.size:
        return False
    if np.isfinite(before).all() and not np.isfinite(after).all():
        return True
    return _varies(before) and not _varies(after)


def _varies(array: Array) -> bool:
    """Whether rows differ, or, where there is one alone, its elements."""
    rows = array if array.ndim and len(array) > 1 else array.reshape(-1)
    return bool((rows != rows[:1]).any())


def _blame(
    original: onnx.ModelProto, quantized: onnx.ModelProto, feed: Tensors, context: Context
) -> str:
    """The first layer in the order of the graph whose output has collapsed."""
    made = graph.producers(quantized.graph)
    outputs = [name for node in original.graph.node for name in node.output if name in made]
    names = tuple(outputs)
    before = Runner(original, context.threads, names).run(feed)
    after = Runner(quantized, context.threads, names).run(feed)
    for name in outputs:
        if _collapsed(before[name], after[name]):
            kind = (
                "the same for every row"
                if np.isfinite(after[name]).all()
                else "values that are not finite"
            )
            return f"{graph.layer_of(original.graph, name)} gives {kind} once it is quantized"
    return "the model gives the same for every row once it is quantized"
