"""Whether rows of a quantized model can be joined, though they change one another a little.

An engine proves that the rows of a batch do not change one another before it joins them. Of a
quantized model they do: the order of sums differs with the number of rows, and a value on the edge
between two steps of a scale may go either way. Such a model is judged in batches, and served in no
larger ones, if what its rows do to one another is less than what quantizing did to them.
"""

from __future__ import annotations

import msgspec
import numpy as np

from ds_engines.base import Array, BatchEngine, Tensors
from ds_engines.spec import BatchPolicy, ModelSpec, TensorSpec
from ds_quantize.data import Batch, Data, fit

ROWS = 32
"""Rows that are joined at most."""

SHARE = 0.1
"""How much of an answer's norm other rows may change, where quantizing has changed more."""


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
    return spec if close else None


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
    """For numbers, by their norms; anything else must be the same."""
    if together.shape != alone.shape or together.shape != before.shape:
        return False
    if together.dtype.kind not in "fiub":
        return bool((together == alone).all())
    first, second, third = (array.astype(np.float64) for array in (together, alone, before))
    changed = np.linalg.norm(first - second)
    small = changed <= SHARE * np.linalg.norm(second)
    return bool(small and changed <= np.linalg.norm(first - third))
