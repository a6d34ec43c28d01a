"""Batches of a few sizes only, for devices on which every change of a batch's size costs time.

ONNX Runtime's convolutions on CUDA keep the plan of cuDNN's for the shape that they saw last, and
no other: a session whose batches vary plans them all anew, for milliseconds each. MIGraphX compiles
the whole model. So each size has a session of its own, and a batch is padded up to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ds_engines.base import Array, EngineOptions, Tensors
from ds_engines.errors import LoadError
from ds_engines.onnx_graph import OnnxGraph
from ds_engines.onnxruntime_devices import CUDA, MIGRAPHX, Choice
from ds_engines.spec import ModelSpec, TensorSpec

PARAMETER = "onnxruntime.batch_sizes"
"""Of a model's configuration: sizes such as `1,8,32`, or ANY for batches as they come."""

ANY = "any"

_PLANNED = frozenset({"Conv", "ConvTranspose", "FusedConv", "NhwcConv"})
"""Operators, ONNX Runtime's own among them, whose plan depends on the shape that came last.
Pooling, normalization and recurrent layers describe themselves to cuDNN at every run.
"""


def named(spec: ModelSpec) -> tuple[int, ...] | None:
    """The sizes that the configuration names: none for ANY; None where it says nothing. Raises
    LoadError.
    """
    text = spec.parameters.get(PARAMETER)
    if text is None:
        return None
    if text.strip() == ANY:
        return ()
    try:
        sizes = tuple(sorted({int(each) for each in text.split(",")}))
    except ValueError:
        sizes = ()
    most = max(1, spec.batch.max_batch_size)
    if not sizes or sizes[0] < 1 or sizes[-1] > most:
        raise LoadError(
            f"model {spec.name!r}: {PARAMETER} is {text!r}; it must be sizes of batches from 1 to "
            f"max_batch_size, which is {most}, such as 1,{most}, or {ANY}"
        )
    return sizes


def chosen(spec: ModelSpec, choice: Choice, options: EngineOptions) -> tuple[int, ...]:
    """The sizes that batches are to have, the smallest first; none where they run as they come.

    The largest that is named may be below `max_batch_size`: larger batches are not padded.
    """
    said = named(spec)
    if said is not None:
        return said
    most = spec.batch.max_batch_size
    if most < 2 or not _varying_costs(spec.artifact, choice):
        return ()
    if options.memory_efficient:
        return (most,) if choice.provider == MIGRAPHX else ()
    preferred = {size for size in spec.batch.preferred_sizes if size <= most}
    return tuple(sorted({*_powers(most), *preferred}))


def _varying_costs(artifact: Path, choice: Choice) -> bool:
    if choice.provider != CUDA:
        return choice.provider == MIGRAPHX
    graph = OnnxGraph(artifact.read_bytes(), artifact)
    return any(node.op in _PLANNED for node in graph.nodes)


def _powers(most: int) -> list[int]:
    """Those of two below `most`, and that."""
    return [1 << power for power in range((most - 1).bit_length())] + [most]


def affordable(sizes: Sequence[int], fits: Callable[[int], bool]) -> tuple[int, ...]:
    """As many sizes as fit, each with its weights: every other one is left out until they do, and
    the largest stays. `fits` is asked of how many sessions more than one.
    """
    while len(sizes) > 1 and not fits(len(sizes) - 1):
        sizes = sizes[::-1][::2][::-1]
    return tuple(sizes)


def next_of(sizes: Sequence[int], rows: int) -> int:
    """The size to which so many rows are padded: as many as there are where none is that large."""
    return next((size for size in sizes if size >= rows), rows) if rows else 0


def rows_of(batch: Tensors, inputs: Sequence[TensorSpec]) -> int:
    """Along the axis on which requests are joined; 0 where there is none, or where tensors differ,
    which the model shall refuse by itself.
    """
    found = {
        batch[tensor.name].shape[tensor.batch_axis]
        for tensor in inputs
        if tensor.batch_axis is not None
        and tensor.name in batch
        and batch[tensor.name].ndim > tensor.batch_axis
    }
    return found.pop() if len(found) == 1 else 0


def padded(batch: Tensors, inputs: Sequence[TensorSpec], rows: int, size: int) -> Tensors:
    """The batch with its last row again until there are `size` of them."""
    axes = {tensor.name: tensor.batch_axis for tensor in inputs}
    return {
        name: _longer(array, axis, size - rows) if (axis := axes.get(name)) is not None else array
        for name, array in batch.items()
    }


def _longer(array: Array, axis: int, missing: int) -> Array:
    held = np.asarray(array)  # it may be a client's, on a GPU
    last = held[(slice(None),) * axis + (slice(-1, None),)]
    return np.concatenate([held, np.repeat(last, missing, axis)], axis)


def cut(answers: Tensors, outputs: Sequence[TensorSpec], rows: int, size: int) -> Tensors:
    """The answers to the first `rows` of `size`; as they are where they have another size."""
    axes: Mapping[str, int | None] = {tensor.name: tensor.batch_axis for tensor in outputs}
    return {name: _shorter(array, axes.get(name), rows, size) for name, array in answers.items()}


def _shorter(array: Array, axis: int | None, rows: int, size: int) -> Array:
    if axis is None or array.ndim <= axis or array.shape[axis] != size:
        return array
    part: Array = array[(slice(None),) * axis + (slice(rows),)]
    return part
