"""A plan's inputs and outputs: what they may be, and how a batch is made to fit."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np

from ds_engines.base import Array
from ds_engines.datatypes import DATATYPES
from ds_engines.errors import InvalidRequest, LoadError
from ds_engines.spec import TensorSpec
from ds_engines.tensorrt_builder import Shape, Shapes


class Port(msgspec.Struct, frozen=True):
    """One input or output of a plan. `shape` has -1 where it varies. `profile`: an input's
    smallest, usual and largest shape. `size`: bytes that it takes at most. `known`: its shape
    follows from those of the inputs, not from what is in them.
    """

    name: str
    datatype: str
    shape: Shape
    profile: Shapes | None = None
    size: int = 0
    known: bool = True

    @property
    def joint(self) -> bool:
        """Whether an input's first axis varies, along which rows are joined."""
        return self.shape[:1] == (-1,)

    @property
    def dtype(self) -> np.dtype[Any]:
        return DATATYPES[self.datatype].dtype

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(name=self.name, datatype=self.datatype, shape=self.shape)

    def nbytes(self, shape: Shape) -> int:
        return math.prod(shape) * self.dtype.itemsize

    def check(self, shape: Shape) -> None:
        """Raises InvalidRequest for a shape that the plan was not built for."""
        if self.profile is None:
            return
        low, _, high = self.profile
        fits = len(shape) == len(low) and all(
            least <= size <= most for least, size, most in zip(low, shape, high, strict=True)
        )
        if not fits:
            raise InvalidRequest(
                f"input {self.name!r} has the shape {list(shape)}; the plan was built for "
                f"{list(low)} to {list(high)}"
            )


def ranged(name: str, datatype: str, profile: Shapes) -> Port:
    """The port of an input: an axis varies where its profile lets it."""
    low, _, high = profile
    shape = tuple(a if a == b else -1 for a, b in zip(low, high, strict=True))
    size = math.prod(high) * DATATYPES[datatype].dtype.itemsize
    return Port(name, datatype, shape, profile, size)


def rows(ports: Iterable[Port]) -> tuple[int, int]:
    """The fewest and most rows of a batch: along the first axis, where that varies. (1, 0): the
    plan takes no batches.
    """
    three = [port.profile for port in ports if port.profile is not None and port.joint]
    if not three:
        return 1, 0
    return max(low[0][0] for low in three), min(high[2][0] for high in three)


def lengths(ports: Iterable[Port]) -> tuple[int, ...]:
    """The usual lengths of other axes than the first."""
    found = {
        port.profile[1][axis]
        for port in ports
        if port.profile is not None
        for axis, size in enumerate(port.shape)
        if axis and size == -1
    }
    return tuple(sorted(found))


def padded(array: Array, fewest: int) -> Array:
    """The array with its last row again until there are `fewest`."""
    missing = fewest - len(array)
    if missing <= 0 or not len(array):
        return array
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])


def cut(array: Array, axis: int | None, padding: tuple[int, int]) -> Array:
    """The answer to the first of `padding`'s rows, where it was padded to the second."""
    given, run = padding
    axis = axis or 0
    if given == run or array.ndim <= axis or array.shape[axis] != run:
        return array
    part: Array = array[(slice(None),) * axis + (slice(given),)]
    return part


def parsed(text: str, where: str) -> Shapes:
    """The three shapes of `1x16,8x64,8x128`. Raises LoadError."""
    try:
        three = tuple(tuple(int(size) for size in each.split("x")) for each in text.split(","))
    except ValueError:
        three = ()
    if len(three) != 3:
        raise LoadError(
            f"{where} is {text!r}; it must be the smallest, usual and largest shape, such as "
            "1x16,8x64,8x128"
        )
    return three[0], three[1], three[2]
