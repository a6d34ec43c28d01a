"""A cascade: a small model answers the rows that it is sure of, a large one the others.

It is one ONNX graph, so that any server of ONNX files serves it, batched as it may be: the large
model is a branch that gets the rows that are not sure, however many, and is left out where there
are none.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from ds_engines.base import Array, BatchEngine, Tensors
from ds_quantize import cascade_graph, sources
from ds_quantize.context import Context
from ds_quantize.errors import DataError, MethodError
from ds_quantize.evaluate import engines
from ds_quantize.forms import Model, OnnxModel
from ds_quantize.methods.cascade import Cascade
from ds_quantize.onnx_methods import graph

BATCH = 64

LEAST_ROWS = 20
"""Fewer rows do not tell where to draw a line."""


def cascade(model: Model, method: Cascade, context: Context) -> OnnxModel:
    """Handler of `cascade`; the model given is the large one.

    Raises MethodError where the two do not fit, or the small one is of no use.
    """
    small = _small(method)
    large = OnnxModel(graph.path_of(model))
    engine_small, engine_large = (
        engines.opened(each, engines.usable(context.threads)) for each in (small, large)
    )
    _require_rows(engine_small, method.small)
    _require_rows(engine_large, str(large.path))
    tried = _try(engine_small, engine_large, context)
    threshold = method.threshold or lowest(tried.sure, tried.small, tried.large, method.max_drop)
    context.measured.update(tried.at(threshold), threshold=threshold)
    merged = cascade_graph.merged(
        graph.load(small), graph.load(large), threshold, probabilities=tried.probabilities
    )
    onnx.checker.check_model(merged)
    return graph.save(merged, context.folder)


class Tried:
    """What both models answered to the rows of the calibration data.

    `sure`: the small one's probability of its answer; `small` and `large`: whether it was right.
    """

    def __init__(self, scores: list[Array], others: list[Array], labels: list[Array]) -> None:
        found, wanted = np.concatenate(scores), np.concatenate(others)
        right = np.concatenate(labels) if labels else wanted.argmax(1)
        self.probabilities = _are_probabilities(found)
        self.sure = (found if self.probabilities else _softmax(found)).max(1)
        self.small = found.argmax(1) == right
        self.large = wanted.argmax(1) == right

    def at(self, threshold: float) -> dict[str, float]:
        """Accuracies, and the share of rows that the small model answers."""
        taken = self.sure >= threshold
        return {
            "answered_by_small": float(taken.mean()),
            "accuracy_small": float(self.small.mean()),
            "accuracy_large": float(self.large.mean()),
            "accuracy": float(np.where(taken, self.small, self.large).mean()),
        }


def lowest(sure: Array, small: Array, large: Array, max_drop: float = 0.0) -> float:
    """The lowest threshold at which, as at all above it, the accuracy is the large model's.

    `sure`: [rows] probabilities; `small`, `large`: [rows] whether the answer was right. Raises
    MethodError where the small model may answer nothing.
    """
    order = np.argsort(-sure, kind="stable")
    # After each row, from the surest on: how many answers the small model has spoiled so far.
    lost = np.cumsum(large[order].astype(int) - small[order].astype(int))
    too_many = np.flatnonzero(lost > max_drop * len(sure))
    taken = int(too_many[0]) if len(too_many) else len(sure)
    at = sure[order]
    # Rows of the same probability are taken together or not at all.
    while 0 < taken < len(sure) and at[taken - 1] == at[taken]:
        taken -= 1
    if taken == 0:
        raise MethodError(
            "cascade: wherever the line is drawn, the small model answers worse than the large "
            "one; give a better small model, or allow a max_drop"
        )
    below = at[taken] if taken < len(sure) else 0.0
    return float((at[taken - 1] + below) / 2)


def _try(small: BatchEngine, large: BatchEngine, context: Context) -> Tried:
    data = context.needed_calibration("cascade")
    if data.rows < LEAST_ROWS:
        raise DataError(
            f"{data.source} has {data.rows} rows, and a threshold takes {LEAST_ROWS} at least"
        )
    scores: list[Array] = []
    others: list[Array] = []
    labels: list[Array] = []
    total = -(-data.rows // BATCH)
    for batch in context.progress.track(data.batches(BATCH), "cascade: rows", total):
        scores.append(_scores(small, batch.inputs, large))
        others.append(_scores(large, batch.inputs, large))
        if batch.labels is not None:
            labels.append(batch.labels)
    if scores[0].shape[1] != others[0].shape[1]:
        raise MethodError(
            f"cascade: the small model knows {scores[0].shape[1]} classes, and the large one "
            f"{others[0].shape[1]}"
        )
    return Tried(scores, others, labels)


def _scores(engine: BatchEngine, given: Tensors, like: BatchEngine) -> Array:
    """The first output, [rows, classes]; inputs are called as the large model calls them."""
    names = cascade_graph.paired(
        [tensor.name for tensor in engine.spec.inputs], [t.name for t in like.spec.inputs]
    )
    found = engine.run({own: given[theirs] for own, theirs in names.items()})
    array = found[engine.spec.outputs[0].name]
    if array.ndim != 2 or array.dtype.kind != "f" or array.shape[1] < 2:
        raise MethodError(
            f"cascade: output {engine.spec.outputs[0].name!r} of {engine.spec.name} has the shape "
            f"{list(array.shape)}; scores of classes, [rows, classes], are needed"
        )
    return array


def _small(method: Cascade) -> OnnxModel:
    model = sources.read(method.small).model
    if not isinstance(model, OnnxModel):
        raise MethodError(
            f"cascade: {method.small} is {model.form}; export it to ONNX first "
            "(`ds-quantize export`)"
        )
    return model


def _require_rows(engine: BatchEngine, said: str) -> None:
    tensors = (*engine.spec.inputs, *engine.spec.outputs)
    fixed = next((tensor for tensor in tensors if tensor.batch_axis != 0), None)
    if fixed is not None:
        raise MethodError(
            f"cascade: {Path(said).name} does not take rows along the first axis of "
            f"{fixed.name!r}; export it with a dynamic batch axis"
        )


def _are_probabilities(scores: Array) -> bool:
    return bool((scores >= 0).all() and np.allclose(scores.sum(1), 1, atol=1e-2))


def _softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max(1, keepdims=True))
    softened: Array = powers / powers.sum(1, keepdims=True)
    return softened
