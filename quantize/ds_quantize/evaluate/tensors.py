"""The comparison of models from tensors to tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np

from ds_engines.base import Array, BatchEngine, EngineOptions, Tensors
from ds_quantize.context import Context
from ds_quantize.data import Batch, Data, fit
from ds_quantize.errors import DataError, MethodError, SourceError
from ds_quantize.evaluate import (
    Evaluation,
    Options,
    Side,
    Timing,
    engines,
    joining,
    layers,
    memory,
    text,
)
from ds_quantize.evaluate.metrics import Metric, chosen, resolve
from ds_quantize.evaluate.outputs import by_row
from ds_quantize.evaluate.speed import timings
from ds_quantize.evaluate.tally import Tally
from ds_quantize.forms import Model
from ds_quantize.loaders.fitting import Fitted

ROWS = joining.ROWS
"""Rows a batch while the metric is taken."""

LOOSE = (
    f"the candidate's rounding makes rows of a batch change one another a little: it was judged in "
    f"batches of {ROWS}, and the config.pbtxt of a promoted version allows no larger ones"
)

FEW = 100
"""Rows below which intervals are so wide that the reader should be told."""


@dataclass(frozen=True)
class Half:
    """One of the two models: loaded, with the data in its layout."""

    model: Model
    engine: BatchEngine
    data: Fitted

    def answer(self, batch: Batch, rows: int) -> Tensors:
        """Rows along the first axis."""
        found = self.engine.run(batch.inputs)
        return by_row(found, self.engine.spec, rows, self.data.whole)


def compare(
    baseline: Model,
    candidate: Model,
    data: Data,
    metric: str,
    context: Context,
    options: Options,
) -> Evaluation:
    """See ds_quantize.evaluate.compare."""
    threads = engines.usable(context.threads)
    with (
        closing(engines.opened(baseline, threads)) as first,
        closing(engines.opened(candidate, threads)) as second,
    ):
        _require_same_tensors(first, second)
        loose = joining.joined(first, second, data)
        second.spec = loose or second.spec
        original = Half(baseline, first, _fitted(first, data))
        same = first.spec.inputs == second.spec.inputs
        ours = Half(candidate, second, original.data if same else _fitted(second, data))
        asked = _metric(metric, original, baseline)
        tally = _tally(asked, original, ours, context)
        speeds = _speeds(original, ours, options, context)
        found = _layers(original, ours, options, context)
        return Evaluation(
            data=data.source,
            digest=data.digest,
            rows=data.rows,
            threads=threads,
            baseline=_side(original, speeds[0], threads, options),
            candidate=_side(ours, speeds[1], threads, options),
            metrics=(tally.quality(context.seed),),
            agreement=tally.agreement(context.seed),
            cosine=tally.cosine(context.seed),
            outputs=tally.outputs(),
            layers=found.layers,
            faults=_faults(tally, found),
            joined_rows=ROWS if loose else 0,
            notes=(*_notes(original, ours), *((LOOSE,) if loose else ()), *found.notes),
        )


def _fitted(engine: BatchEngine, data: Data) -> Fitted:
    fitted = fit(data, engine.spec)
    if not isinstance(fitted, Fitted):
        raise DataError(f"{data.source} cannot be laid out for {engine.spec.name}")
    return fitted


def _require_same_tensors(first: BatchEngine, second: BatchEngine) -> None:
    """The second may give more than the first, as a cascade says who has answered."""
    for kind in ("inputs", "outputs"):
        theirs = [tensor.name for tensor in getattr(first.spec, kind)]
        ours = [tensor.name for tensor in getattr(second.spec, kind)]
        more = set(ours) - set(theirs) if kind == "outputs" else set()
        if sorted(theirs) != sorted(set(ours) - more):
            raise SourceError(
                f"{second.spec.name} has {kind} {', '.join(ours)}, but {first.spec.name} has "
                f"{', '.join(theirs)}: they are not the same model"
            )


def _metric(name: str, half: Half, baseline: Model) -> Metric:
    name = name or chosen(next(half.data.batches(1)).labels)
    path = engines.spec(baseline).artifact
    return resolve(name, half.engine.spec, half.data.labelled, partial(text.ctc, path))


def _tally(metric: Metric, original: Half, ours: Half, context: Context) -> Tally:
    tally = Tally(metric)
    size = ROWS if original.data.batched and ours.data.batched else 1
    pairs = _pairs(original.data, ours.data, size)
    rows = original.data.rows
    total = math.ceil(rows / (original.data.per_call or size))
    for theirs, own in context.progress.track(pairs, "Evaluating", total):
        count = _rows(original.data, theirs)
        if count != _rows(ours.data, own):
            raise SourceError("original and candidate take different numbers of rows at a time")
        tally.add(ours.answer(own, count), original.answer(theirs, count), theirs.labels)
    return tally


def _pairs(theirs: Fitted, ours: Fitted, size: int) -> Iterator[tuple[Batch, Batch]]:
    """The same rows in both layouts."""
    if theirs is ours:
        return ((batch, batch) for batch in theirs.batches(size))
    return zip(theirs.batches(size), ours.batches(size), strict=True)


def _rows(data: Fitted, batch: Batch) -> int:
    if data.per_call:
        return data.per_call
    tensor = next(t for t in data.spec.inputs if t.batch_axis is not None)
    return int(batch.inputs[tensor.name].shape[tensor.batch_axis or 0])


def _speeds(
    original: Half, ours: Half, options: Options, context: Context
) -> tuple[tuple[Timing, ...], tuple[Timing, ...]]:
    batches = options.batches
    if not (original.data.batched and ours.data.batched):
        batches = (original.data.per_call or 1,)
    found: tuple[list[Timing], list[Timing]] = ([], [])
    for size in context.progress.track(batches, "Timing"):
        pair = timings(
            (original.engine, ours.engine),
            (_sample(original.data, size), _sample(ours.data, size)),
            size,
            options.seconds,
            options.repeats,
        )
        for own, timing in zip(found, pair, strict=True):
            own.append(timing)
    return tuple(found[0]), tuple(found[1])


def _sample(data: Fitted, rows: int) -> Tensors:
    """So many rows, the same again and again where there are too few."""
    batch = next(data.batches(rows)).inputs
    if data.per_call:
        return batch
    return {
        tensor.name: batch[tensor.name]
        if tensor.batch_axis is None
        else _repeated(batch[tensor.name], rows, tensor.batch_axis)
        for tensor in data.spec.inputs
    }


def _repeated(array: Array, rows: int, axis: int) -> Array:
    repeated: Array = np.take(array, np.arange(rows) % array.shape[axis], axis)
    return repeated


def _layers(original: Half, ours: Half, options: Options, context: Context) -> layers.Found:
    if not options.layer_rows or original.model.form != "onnx" or ours.model.form != "onnx":
        return layers.Found()
    context.progress.say("Comparing layers")
    first, second = (engines.spec(half.model).artifact for half in (original, ours))
    try:
        return layers.errors(first, second, original.data, options.layer_rows)
    except MethodError as error:
        return layers.Found(notes=[str(error)])


def _side(half: Half, times: tuple[Timing, ...], threads: int, options: Options) -> Side:
    spec = engines.spec(half.model)
    grown = None
    if options.memory:
        batch = _sample(half.data, max(times, key=lambda timing: timing.batch).batch)
        grown = memory.measured(spec, EngineOptions(threads=threads), batch)
    return Side(
        path=str(spec.artifact),
        engine=spec.engine,
        size_bytes=engines.size(half.model),
        memory_bytes=grown,
        timings=times,
    )


def _faults(tally: Tally, found: layers.Found) -> tuple[str, ...]:
    """What is wrong with the outputs, and with which layer it begins."""
    faults = tally.faults()
    first = next((layer for layer in found.layers if not layer.finite), None)
    if faults and first is not None:
        return (*faults, f"the first layer that is not finite is {first.name!r} ({first.op})")
    worst = layers.sensitive(found.layers, 1)
    if faults and worst:
        return (*faults, f"the layer with the largest error is {worst[0].name!r} ({worst[0].op})")
    return faults


def _notes(original: Half, ours: Half) -> Iterator[str]:
    rows = original.data.rows
    if rows < FEW:
        yield f"only {rows} rows: the intervals are wide"
    if original.data.batched and not ours.data.batched:
        yield (
            "the candidate's rows depend on one another, so the server will not batch them; "
            "the original's do not"
        )
