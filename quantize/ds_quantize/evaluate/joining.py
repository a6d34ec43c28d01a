"""Whether rows of a quantized model can be joined, though they change one another a little.

An engine proves that the rows of a batch do not change one another before it joins them. Of a
quantized model they may: the order of sums differs with the number of rows, and a value on the edge
between two steps of a scale may go either way. Such a model is judged in batches, and served in no
larger ones, if what its rows do to one another is little, and less than what quantizing did to
them. It must be little too beside rows that are much louder: where ranges are those of a whole
batch, as with activations quantized as they come, one such row costs its neighbours their
precision, which no evaluation on rows of one kind would show.
"""

from __future__ import annotations

import msgspec
import numpy as np

from ds_engines.base import Array, BatchEngine, Tensors
from ds_engines.spec import BatchPolicy, ModelSpec, TensorSpec
from ds_quantize.data import Batch, Data, fit

ROWS = 32
"""Rows that are joined at most."""

SHARE = 0.03
"""How much of an answer's norm other rows may change, where quantizing has changed more. Measured
with ranges found beforehand: 0 to 0.029, on Magika, PP-OCR and ResNet-50's shape.
"""

NUMBERS = "fiub"

LOUD = 16
"""How many times louder the neighbours are. Measured with ranges as they come: a small network's
answers change by 0.003 to 0.01 of their norm beside rows of their kind, and by 0.06 to 0.11 beside
such.
"""


def joined(original: BatchEngine, candidate: BatchEngine, data: Data) -> ModelSpec | None:
    """The candidate's spec with the original's batch axes, where its rows may be joined so.

    None where they are proven already, the original's are not, the two have other tensors, or rows
    of `data` change one another too much.
    """
    spec = with_axes(candidate.spec, original.spec)
    if spec is None:
        return None
    batch = next(iter(fit(data, spec).batches(ROWS)))
    rows = len(next(iter(batch.inputs.values())))
    if rows == 1:
        return None
    together = candidate.run(batch.inputs)
    alone = _one_by_one(candidate, batch, rows)
    before = original.run(batch.inputs)
    close = all(_close(together[name], alone[name], before[name]) for name in together)
    return spec if close and _heeded(candidate, batch, alone, rows // 2) else None


def _heeded(candidate: BatchEngine, batch: Batch, alone: Tensors, rows: int) -> bool:
    """Whether the first `rows` are answered as they are alone beside loud ones."""
    found = candidate.run({name: _loud(array, rows) for name, array in batch.inputs.items()})
    return all(_little(found[name][:rows], alone[name][:rows]) for name in found)


def _loud(array: Array, first: int) -> Array:
    """The rows after the first ones louder; codes, such as those of words, have no loudness."""
    if array.dtype.kind != "f":
        return array
    louder: Array = np.concatenate([array[:first], array[first:] * array.dtype.type(LOUD)])
    return louder


def with_axes(spec: ModelSpec, original: ModelSpec) -> ModelSpec | None:
    """`spec` with rows along the first axis, as the original's are; None where it has others."""
    theirs = {tensor.name: tensor for tensor in (*original.inputs, *original.outputs)}
    tensors = (*spec.inputs, *spec.outputs)
    if not all(_fits(own, theirs.get(own.name)) for own in tensors):
        return None
    policy: BatchPolicy = msgspec.structs.replace(spec.batch, max_batch_size=ROWS)
    made: ModelSpec = msgspec.structs.replace(
        spec, batch=policy, inputs=_along_first(spec.inputs), outputs=_along_first(spec.outputs)
    )
    return made


def _fits(own: TensorSpec, theirs: TensorSpec | None) -> bool:
    open_ = own.batch_axis is None and own.shape[:1] == (-1,)
    return open_ and theirs is not None and theirs.batch_axis == 0


def _along_first(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    return tuple(msgspec.structs.replace(tensor, batch_axis=0) for tensor in tensors)


def _one_by_one(engine: BatchEngine, batch: Batch, rows: int) -> Tensors:
    answers = [
        engine.run({name: array[row : row + 1] for name, array in batch.inputs.items()})
        for row in range(rows)
    ]
    return {name: np.concatenate([each[name] for each in answers]) for name in answers[0]}


def _close(together: Array, alone: Array, before: Array) -> bool:
    """Changed little, and less than by quantizing."""
    if together.shape != before.shape or not _little(together, alone):
        return False
    if together.dtype.kind not in NUMBERS:
        return True
    first, second, third = (array.astype(np.float64) for array in (together, alone, before))
    return bool(np.linalg.norm(first - second) <= np.linalg.norm(first - third))


def _little(found: Array, alone: Array) -> bool:
    """For numbers, by their norms; anything else must be the same."""
    if found.shape != alone.shape:
        return False
    if found.dtype.kind not in NUMBERS:
        return bool((found == alone).all())
    first, second = found.astype(np.float64), alone.astype(np.float64)
    return bool(np.linalg.norm(first - second) <= SHARE * np.linalg.norm(second))
