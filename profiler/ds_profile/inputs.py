"""Requests to a model of which only the shapes are known, or with the user's own data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ds_client.tensors import Array, Tensor
from ds_engines.batch_axes import TRIAL_SIZES
from ds_engines.datatypes import DATATYPES
from ds_engines.spec import TensorSpec
from ds_profile.errors import ProfileError

Inputs = dict[str, Array]


@dataclass(frozen=True)
class Wish:
    """What the user says of the requests: `rows` in each, whole shapes by name, or an .npz file
    whose arrays are one request.
    """

    rows: int = 1
    shapes: Mapping[str, tuple[int, ...]] | None = None
    file: Path | None = None


def candidates(tensors: Sequence[TensorSpec], wish: Wish) -> Iterator[Inputs]:
    """Requests to try in turn: the lengths of free axes that a model takes are not written in it.

    Raises ProfileError for a file or a shape that does not fit the model's tensors.
    """
    if wish.file is not None:
        yield _from_file(wish.file, tensors)
        return
    shapes = dict(wish.shapes or {})
    if unknown := sorted(set(shapes) - {tensor.name for tensor in tensors}):
        names = ", ".join(tensor.name for tensor in tensors)
        raise ProfileError(f"--shape {unknown[0]}: the model has no such input; it has {names}")
    free = any(_is_free(tensor) for tensor in tensors if tensor.name not in shapes)
    for size in TRIAL_SIZES if free else TRIAL_SIZES[:1]:
        yield {t.name: sample(t, shapes.get(t.name) or _shape(t, wish.rows, size)) for t in tensors}


def _is_free(tensor: TensorSpec) -> bool:
    return any(n == -1 and axis != tensor.batch_axis for axis, n in enumerate(tensor.shape))


def _shape(tensor: TensorSpec, rows: int, size: int) -> tuple[int, ...]:
    return tuple(
        (rows if axis == tensor.batch_axis else size) if extent == -1 else extent
        for axis, extent in enumerate(tensor.shape)
    )


def sample(tensor: TensorSpec, shape: tuple[int, ...]) -> Array:
    """Random numbers where the type is real; zeros where it may be an index; text for BYTES."""
    if tensor.datatype == "BYTES":
        return np.full(shape, b"text", dtype=np.object_)
    dtype = DATATYPES[tensor.datatype].dtype
    if tensor.datatype != "BF16" and np.issubdtype(dtype, np.floating):
        return np.random.default_rng(0).random(shape).astype(dtype)
    return np.zeros(shape, dtype=dtype)


def stacked(one: Inputs, tensors: Sequence[TensorSpec], rows: int) -> Inputs:
    """As if `rows` rows of such requests had come together, for an engine alone."""
    batch: Inputs = {}
    for tensor in tensors:
        array = one[tensor.name]
        if tensor.batch_axis is not None:
            axis = tensor.batch_axis
            array = np.take(array, [row % array.shape[axis] for row in range(rows)], axis)
        batch[tensor.name] = array
    return batch


def raw(tensor: TensorSpec, array: Array) -> Array | Tensor:
    """What the client SDK takes: BF16 bits have no dtype of their own."""
    if tensor.datatype == "BF16":
        return Tensor("BF16", array.shape, array.astype("<u2").tobytes())
    return array


def shape_of(text: str) -> tuple[str, tuple[int, ...]]:
    """NAME=1x3x224x224. Raises ProfileError."""
    name, _, sizes = text.rpartition("=")
    try:
        shape = tuple(int(size) for size in sizes.split("x"))
    except ValueError:
        shape = ()
    if not name or not shape or min(shape) < 1:
        raise ProfileError(f"--shape {text!r} is no shape; it must be like NAME=1x3x224x224")
    return name, shape


def _from_file(path: Path, tensors: Sequence[TensorSpec]) -> Inputs:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except OSError as error:
        raise ProfileError(f"--inputs {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ProfileError(f"--inputs {path} is no .npz: {error}") from None
    missing = [t.name for t in tensors if t.name not in arrays and not t.optional]
    if missing:
        raise ProfileError(f"--inputs {path} has no array {missing[0]!r}; it has {list(arrays)}")
    return arrays
