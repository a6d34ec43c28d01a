"""Along which axis requests can be joined: guessed from a model's shapes, then proven by running.

A model file names neither its batch axis nor whether its rows are independent. The guess takes
the first dynamic axis of each input (or the axis that carries the same symbol). The proof runs
the model on three rows, one by one and together, and demands that every output grew along one
axis and that no row's answer changed: in a running total, the first row's would not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec
import numpy as np

from ds_engines.base import Array, Tensors
from ds_engines.datatypes import DATATYPES
from ds_engines.errors import EngineFailure
from ds_engines.spec import BatchPolicy, ModelSpec, TensorSpec

TRIAL_SIZES = (1, 8, 16, 32, 64, 128, 224, 256, 512)
"""Lengths tried for the other dynamic axes until the model accepts one."""

ROWS = 3


class Runner(Protocol):
    """The part of an engine that a trial needs."""

    def run(self, batch: Tensors, outputs: tuple[str, ...] = ()) -> Tensors: ...


def joined(
    inputs: Sequence[TensorSpec], symbols: Mapping[str, Sequence[object]]
) -> list[TensorSpec]:
    """The inputs with their batch axes filled in. `symbols`: the shapes as the file has them."""
    symbol = next(
        (symbols[t.name][0] for t in inputs if t.shape[:1] == (-1,)),
        None,
    )
    return [
        msgspec.structs.replace(tensor, batch_axis=_axis(tensor, symbols[tensor.name], symbol))
        for tensor in inputs
    ]


def _axis(tensor: TensorSpec, shape: Sequence[object], symbol: object) -> int | None:
    if isinstance(symbol, str):
        if symbol in shape:
            return list(shape).index(symbol)
        if any(isinstance(size, str) for size in shape):
            return None
    if tensor.shape[:1] == (-1,):
        return 0
    dynamic = [axis for axis, size in enumerate(tensor.shape) if size == -1]
    return dynamic[0] if len(dynamic) == 1 and symbol is None else None


def complete(
    spec: ModelSpec, engine: Runner, sizes: Sequence[int] = (), tolerance: float = 0.0
) -> ModelSpec:
    """The spec with its outputs' batch axes, or with batching off where rows do not join.

    `sizes` are tried before TRIAL_SIZES. `tolerance`: the part of a row's largest value by which
    it may differ among others, for engines that calculate in a few bits.
    """
    if not any(tensor.batch_axis is not None for tensor in spec.inputs):
        return _unbatched(spec)
    for size in (*sizes, *TRIAL_SIZES):
        try:
            return _tried(spec, engine, size, tolerance)
        except EngineFailure:
            continue
    return _unbatched(spec)


def _tried(spec: ModelSpec, engine: Runner, size: int, tolerance: float) -> ModelSpec:
    rows = [_row(spec.inputs, size, seed) for seed in range(ROWS)]
    alone = [engine.run(row) for row in rows]
    if not all(alone[0][tensor.name].size for tensor in spec.outputs):
        raise EngineFailure(f"axes of {size} are too short: the answer is empty")
    together = engine.run(_join(spec.inputs, rows))
    outputs = []
    for tensor in spec.outputs:
        many = together[tensor.name]
        axis = _grown(alone[0][tensor.name], many)
        if axis is None or not all(
            _same(one[tensor.name], np.take(many, [row], axis), tolerance)
            for row, one in enumerate(alone)
        ):
            return _unbatched(spec)
        outputs.append(msgspec.structs.replace(tensor, batch_axis=axis))
    return msgspec.structs.replace(spec, outputs=tuple(outputs))


def _unbatched(spec: ModelSpec) -> ModelSpec:
    policy: BatchPolicy = msgspec.structs.replace(spec.batch, max_batch_size=0)
    return msgspec.structs.replace(
        spec,
        batch=policy,
        inputs=tuple(msgspec.structs.replace(t, batch_axis=None) for t in spec.inputs),
        outputs=tuple(msgspec.structs.replace(t, batch_axis=None) for t in spec.outputs),
    )


def example(inputs: Sequence[TensorSpec], rows: int) -> Tensors:
    """A batch of so many rows that are alike, of a model whose other axes do not vary."""
    return _join(inputs, [_row(inputs, 1, 1)] * rows)


def _row(inputs: Sequence[TensorSpec], size: int, seed: int) -> Tensors:
    return {tensor.name: _sample(tensor, size, seed) for tensor in inputs}


def _sample(tensor: TensorSpec, size: int, seed: int) -> Array:
    """One row: random where the type is real, 0 or 1 where it may be an index.

    The first row is the one that differs: a sum, a maximum or a shift over rows then shows.
    """
    shape = tuple(
        1 if axis == tensor.batch_axis else (size if extent == -1 else extent)
        for axis, extent in enumerate(tensor.shape)
    )
    value = int(seed == 0 and tensor.batch_axis is not None)
    if tensor.batch_axis is None:
        seed = 0
    if tensor.datatype == "BYTES":
        return np.full(shape, b"a", dtype=np.object_)
    dtype = DATATYPES[tensor.datatype].dtype
    if tensor.datatype == "BF16":
        return np.full(shape, 0x3F80 * value, dtype=dtype)
    if np.issubdtype(dtype, np.floating):
        return np.random.default_rng(seed).random(shape).astype(dtype)
    return np.full(shape, value, dtype=dtype)


def _join(inputs: Sequence[TensorSpec], rows: Sequence[Tensors]) -> Tensors:
    return {
        tensor.name: rows[0][tensor.name]
        if tensor.batch_axis is None
        else np.concatenate([row[tensor.name] for row in rows], axis=tensor.batch_axis)
        for tensor in inputs
    }


def _grown(alone: Array, together: Array) -> int | None:
    """The one axis that went from 1 to ROWS, all others alike; else None."""
    if alone.ndim != together.ndim:
        return None
    pairs = list(zip(alone.shape, together.shape, strict=True))
    grown = [axis for axis, (one, many) in enumerate(pairs) if one != many]
    return grown[0] if len(grown) == 1 and pairs[grown[0]] == (1, ROWS) else None


def _same(alone: Array, joined: Array, tolerance: float) -> bool:
    if alone.shape != joined.shape:
        return False
    if np.issubdtype(alone.dtype, np.floating):
        largest = float(np.max(np.abs(alone), initial=0, where=np.isfinite(alone)))
        atol = max(1e-3, tolerance * largest)
        return bool(np.allclose(alone, joined, rtol=1e-2, atol=atol, equal_nan=True))
    return bool(np.array_equal(alone, joined))
