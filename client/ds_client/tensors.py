"""numpy arrays to KServe's raw bytes, and back."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ds_client.errors import InvalidRequest, ServerFailure

Array = NDArray[Any]

_DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(code)
    for name, code in {
        "BOOL": "?",
        "UINT8": "<u1",
        "UINT16": "<u2",
        "UINT32": "<u4",
        "UINT64": "<u8",
        "INT8": "<i1",
        "INT16": "<i2",
        "INT32": "<i4",
        "INT64": "<i8",
        "FP16": "<f2",
        "FP32": "<f4",
        "FP64": "<f8",
    }.items()
}
WIDTHS = {name: dtype.itemsize for name, dtype in _DTYPES.items()} | {"BF16": 2}
"""Bytes of an element, where it has a fixed number."""

_NAMES = {dtype.newbyteorder("="): name for name, dtype in _DTYPES.items()}
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input in its raw form: little-endian, row-major, BYTES elements behind their lengths."""

    datatype: str
    shape: tuple[int, ...]
    data: bytes


def bfloat16(values: ArrayLike) -> Tensor:
    """A BF16 input: each value rounded to the nearest bfloat16, ties to even."""
    array = np.ascontiguousarray(values, dtype=np.float32)
    bits = array.view(np.uint32)
    upper = bits >> 16
    rounded = (bits + ((upper & 1) + 0x7FFF)) >> 16
    data = np.where(np.isnan(array), upper | 0x40, rounded).astype("<u2")
    return Tensor("BF16", np.shape(values), data.tobytes())


def encode(name: str, value: ArrayLike | Tensor) -> Tensor:
    """The raw form of an input. Text and bytes become BYTES; an ml_dtypes bfloat16 array BF16.

    Raises InvalidRequest for what is no array, or of a dtype that the protocol has no datatype for.
    """
    if isinstance(value, Tensor):
        return value
    array = _array(name, value)
    if array.dtype.kind in "OSU":
        elements = [_as_bytes(name, element) for element in array.reshape(-1).tolist()]
        return Tensor("BYTES", array.shape, _pack(elements))
    if array.dtype.name == "bfloat16":
        return Tensor("BF16", array.shape, array.tobytes())
    datatype = _NAMES.get(array.dtype.newbyteorder("="))
    if datatype is None:
        raise InvalidRequest(f"input {name!r}: numpy's {array.dtype} cannot be sent")
    return Tensor(datatype, array.shape, array.astype(_DTYPES[datatype], copy=False).tobytes())


def _array(name: str, value: ArrayLike) -> Array:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise InvalidRequest(f"input {name!r} is no array: {error}") from None


def numbers(name: str, value: ArrayLike | Tensor) -> tuple[str, Array] | None:
    """The datatype of an input, and the array whose elements are its raw form as they are; None
    where it has none, or cannot be sent. Raises InvalidRequest for what is no array.
    """
    if isinstance(value, Tensor):
        return None
    array = _array(name, value)
    if array.dtype.name == "bfloat16":
        return "BF16", array
    datatype = _NAMES.get(array.dtype.newbyteorder("="))
    return None if datatype is None else (datatype, array.astype(_DTYPES[datatype], copy=False))


def decode(name: str, datatype: str, shape: Sequence[int], data: bytes) -> Array:
    """The array of an output, a read-only view of `data` where the datatype allows.

    BYTES gives dtype object holding `bytes`, BF16 gives float32. Raises ServerFailure where the
    data does not fit the shape.
    """
    try:
        if datatype == "BYTES":
            return _objects(_unpack(data)).reshape(shape)
        if datatype == "BF16":
            bits = np.frombuffer(data, "<u2").astype(np.uint32) << 16
            return bits.view(np.float32).reshape(shape)
        return np.frombuffer(data, _DTYPES[datatype]).reshape(shape)
    except KeyError:
        raise ServerFailure(f"output {name!r} has the unknown datatype {datatype!r}") from None
    except (ValueError, struct.error) as error:
        raise ServerFailure(
            f"output {name!r}: {len(data)} bytes are no {datatype} of shape {list(shape)}: {error}"
        ) from None


def decode_contents(name: str, datatype: str, shape: Sequence[int], values: Sequence[Any]) -> Array:
    """The array of an output that came as typed contents. Raises ServerFailure."""
    if math.prod(shape) != len(values):
        raise ServerFailure(
            f"output {name!r}: {len(values)} elements do not make shape {list(shape)}"
        )
    if datatype == "BYTES":
        return _objects(list(values)).reshape(shape)
    if datatype not in _DTYPES:
        raise ServerFailure(f"output {name!r}: {datatype!r} cannot come as typed contents")
    return np.array(values, dtype=_DTYPES[datatype]).reshape(shape)


def _as_bytes(name: str, element: object) -> bytes:
    if isinstance(element, bytes):
        return element
    if isinstance(element, str):
        return element.encode()
    raise InvalidRequest(
        f"input {name!r}: a {type(element).__name__} in an array of objects; "
        "elements must be bytes or str"
    )


def _pack(elements: Sequence[bytes]) -> bytes:
    return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))


def _unpack(data: bytes) -> list[bytes]:
    elements, position = [], 0
    while position < len(data):
        start = position + _LENGTH.size
        position = start + _LENGTH.unpack_from(data, position)[0]
        if position > len(data):
            raise ValueError("an element is cut short")
        elements.append(data[start:position])
    return elements


def _objects(elements: list[bytes]) -> Array:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array
