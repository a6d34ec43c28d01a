"""What a model answers, with its rows along the first axis."""

from __future__ import annotations

import numpy as np

from ds_engines.base import Array, Tensors
from ds_engines.datatypes import bf16_to_float32
from ds_engines.spec import ModelSpec, TensorSpec
from ds_quantize.errors import DataError


def by_row(outputs: Tensors, spec: ModelSpec, rows: int, whole: bool) -> Tensors:
    """Rows first, halves widened. `whole`: the one row is all that the model answers."""
    found = {}
    for tensor in spec.outputs:
        array = _widened(outputs[tensor.name], tensor)
        found[tensor.name] = array[None] if whole else _moved(array, tensor, spec, rows)
    return found


def _moved(array: Array, tensor: TensorSpec, spec: ModelSpec, rows: int) -> Array:
    axis = 0 if tensor.batch_axis is None else tensor.batch_axis
    if array.ndim > axis and array.shape[axis] == rows:
        return np.moveaxis(array, axis, 0)
    if rows == 1:
        return array[None]
    raise DataError(
        f"output {tensor.name!r} of {spec.name} has shape {list(array.shape)} for {rows} rows: "
        "what a row's answer is cannot be told"
    )


def _widened(array: Array, tensor: TensorSpec) -> Array:
    if tensor.datatype == "BF16":
        return bf16_to_float32(array)
    return array.astype(np.float32) if tensor.datatype == "FP16" else array


def main_output(outputs: Tensors, name: str) -> Array:
    """The output of that name; where there is none, the first that looks like scores of classes,
    or the first of all.
    """
    if name:
        return outputs[name]
    scores = (a for a in outputs.values() if a.dtype.kind == "f" and a.ndim > 1 and a.shape[-1] > 1)
    return next(scores, next(iter(outputs.values())))


def answers(array: Array) -> Array | None:
    """What an output says, position by position: the index of the highest score along the last
    axis, or the values themselves where they are no scores; None for single numbers.
    """
    array = squeezed(array)
    if array.dtype.kind != "f":
        return array
    return array.argmax(-1) if array.ndim > 1 and array.shape[-1] > 1 else None


def squeezed(array: Array) -> Array:
    """Without the trailing axes of length 1, as pictures' classifiers have."""
    while array.ndim > 2 and array.shape[-1] == 1:
        array = array[..., 0]
    return array


def flat(array: Array) -> Array:
    """[rows, everything else], FP64."""
    return array.reshape(len(array), -1).astype(np.float64)


def cosines(first: Array, second: Array) -> Array:
    """Row by row. Two rows of zeros are alike, one is unlike anything else."""
    a, b = flat(first), flat(second)
    ours, theirs = np.einsum("ij,ij->i", a, a), np.einsum("ij,ij->i", b, b)
    norms = np.sqrt(ours) * np.sqrt(theirs)
    both_zero = (ours == 0) & (theirs == 0)
    cosine = np.einsum("ij,ij->i", a, b) / np.where(norms > 0, norms, 1)
    found: Array = np.where(both_zero, 1.0, np.clip(cosine, -1, 1))
    return found
