"""Some rows of tensors in KServe's binary form, and answers to them put in their places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_engines import datatypes
from ds_serve.transport.messages import Tensor

Array = NDArray[Any]


def array(tensor: Tensor) -> Array:
    assert isinstance(tensor.data, memoryview), "it has arrived"
    return datatypes.to_array(tensor.datatype, tensor.shape, tensor.data, tensor.name)


def tensor(name: str, datatype: str, values: Array) -> Tensor:
    data = datatypes.to_bytes(datatype, values, name)
    return Tensor(name, datatype, values.shape, memoryview(data))


def copied(given: Tensor) -> Tensor:
    """The same bytes: sending a tensor changes it."""
    return Tensor(given.name, given.datatype, given.shape, given.data)


def taken(given: Tensor, rows: Array) -> Tensor:
    """Those rows of it, along the first axis."""
    return tensor(given.name, given.datatype, array(given)[rows])


def put(
    ours: Sequence[Tensor], theirs: Sequence[Tensor], rows: Array, *, whole: bool
) -> list[Tensor] | None:
    """Our outputs with the others' for these rows, or the others' where they are for the `whole`;
    None where the two do not fit.
    """
    found = {each.name: each for each in theirs}
    made = []
    for own in ours:
        other = found.get(own.name)
        if other is None or other.datatype != own.datatype:
            return None
        if whole:
            made.append(other)
            continue
        if other.shape[1:] != own.shape[1:] or other.shape[0] != len(rows):
            return None
        values = np.array(array(own))
        values[rows] = array(other)
        made.append(tensor(own.name, own.datatype, values))
    return made
