"""KServe v2 datatypes: their names, sizes, numpy arrays, raw bytes and JSON lists.

Raw bytes are little-endian and row-major. A BYTES tensor is a stream of elements, each a 4-byte
little-endian length and that many bytes; as an array it has dtype object and holds `bytes`.
numpy has no bfloat16, so a BF16 array holds uint16 bit patterns.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from ds_engines.errors import EngineFailure, InvalidRequest

Array = NDArray[Any]
Buffer = bytes | bytearray | memoryview

_LENGTH = struct.Struct("<I")
_SMALL = 1 << 16
"""Bytes below which copying an array is cheaper than making a view of it."""


class Datatype(NamedTuple):
    """`itemsize` is in bytes; 0 where elements vary in length."""

    name: str
    itemsize: int
    dtype: np.dtype[Any]


def _fixed(name: str, code: str) -> Datatype:
    dtype = np.dtype(code)
    return Datatype(name, dtype.itemsize, dtype)


DATATYPES: dict[str, Datatype] = {
    datatype.name: datatype
    for datatype in (
        _fixed("BOOL", "?"),
        _fixed("UINT8", "<u1"),
        _fixed("UINT16", "<u2"),
        _fixed("UINT32", "<u4"),
        _fixed("UINT64", "<u8"),
        _fixed("INT8", "<i1"),
        _fixed("INT16", "<i2"),
        _fixed("INT32", "<i4"),
        _fixed("INT64", "<i8"),
        _fixed("FP16", "<f2"),
        _fixed("BF16", "<u2"),
        _fixed("FP32", "<f4"),
        _fixed("FP64", "<f8"),
        Datatype("BYTES", 0, np.dtype(object)),
    )
}

_FLOATS = frozenset({"FP16", "BF16", "FP32", "FP64"})

_CODES = {
    "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q",
    "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q", "FP32": "f", "FP64": "d",
}  # fmt: skip
"""What `struct` calls the types that it packs, refusing values out of range as we do."""


def find(datatype: str, name: str = "") -> Datatype:
    """The datatype of that KServe name. Raises InvalidRequest, naming tensor `name`."""
    found = DATATYPES.get(datatype)
    if found is None:
        known = ", ".join(DATATYPES)
        raise InvalidRequest(f"{_label(name)}: datatype {datatype!r} is not one of {known}")
    return found


def count(shape: Sequence[int], name: str = "") -> int:
    """How many elements a tensor of `shape` has. Raises InvalidRequest for a bad dimension."""
    for size in shape:
        if type(size) is not int or size < 0:
            raise InvalidRequest(
                f"{_label(name)}: shape {_show(shape)} holds {size!r}; "
                "each dimension must be an integer of 0 or more"
            )
    return math.prod(shape)


def check_size(name: str, datatype: str, shape: Sequence[int], nbytes: int) -> None:
    """Check the length of raw data against `shape` without reading the data.

    A BYTES tensor needs at least 4 bytes an element; `check_data` counts its elements too.
    Raises InvalidRequest naming tensor, expected and got.
    """
    kind = find(datatype, name)
    elements = count(shape, name)
    if kind.itemsize:
        expected = elements * kind.itemsize
        if nbytes != expected:
            raise InvalidRequest(
                f"{_label(name)}: {datatype} of shape {_show(shape)} takes {expected} bytes, "
                f"got {nbytes}"
            )
    elif nbytes < elements * _LENGTH.size:
        raise InvalidRequest(
            f"{_label(name)}: BYTES of shape {_show(shape)} takes at least "
            f"{elements * _LENGTH.size} bytes, got {nbytes}"
        )


def check_data(name: str, datatype: str, shape: Sequence[int], data: Buffer) -> None:
    """Check raw data in full: its length and, for BYTES, each element's length prefix.

    Raises InvalidRequest naming tensor, expected and got.
    """
    check_size(name, datatype, shape, len(data))
    if datatype != "BYTES":
        return
    expected = count(shape, name)
    got = count_elements(data, name, limit=expected)
    if got != expected:
        more = "more" if got > expected else str(got)
        raise InvalidRequest(
            f"{_label(name)}: shape {_show(shape)} has {expected} elements, the data holds {more}"
        )


def count_elements(data: Buffer, name: str = "", limit: int | None = None) -> int:
    """How many elements a BYTES stream holds; `limit` stops the count just beyond it.

    Raises InvalidRequest where the stream ends inside an element.
    """
    uniform = _uniform(data)
    if uniform is not None:
        return len(data) // (uniform + _LENGTH.size)
    read, end = _LENGTH.unpack_from, len(data)
    position = elements = 0
    while position < end and (limit is None or elements <= limit):
        if end - position < _LENGTH.size:
            raise _truncated(name, elements, _LENGTH.size, end - position, "its length")
        length = read(data, position)[0]
        position += _LENGTH.size + length
        if position > end:
            raise _truncated(name, elements, length, end - position + length, "the element")
        elements += 1
    return elements


def to_array(datatype: str, shape: Sequence[int], data: Buffer, name: str = "") -> Array:
    """The array in `data`, checked in full; fixed-size types are a read-only view of `data`.

    A BOOL byte other than 0 counts as true. Raises InvalidRequest naming tensor `name`.
    """
    kind = DATATYPES.get(datatype)
    try:
        if kind is not None and kind.itemsize and datatype != "BOOL":
            return np.ndarray(tuple(shape), kind.dtype, _exact(kind, shape, data))
    except (TypeError, ValueError, OverflowError):
        pass
    check_data(name, datatype, shape, data)
    flat: Array
    if datatype == "BYTES":
        flat = _object_array(_elements(data))
    else:
        flat = np.frombuffer(data, np.uint8)
        flat = flat.view(np.bool_) if flat.max(initial=0) <= 1 else flat != 0
    return _reshape(name, flat, shape)


def to_bytes(datatype: str, array: Array, name: str = "") -> bytes | memoryview:
    """The raw form of `array`: a view of a large contiguous array, otherwise `bytes`.

    Raises EngineFailure where the array's dtype is not `datatype`'s.
    """
    kind = find(datatype, name)
    if not kind.itemsize:
        return _pack(_as_bytes(element, name) for element in array.reshape(-1))
    _check_dtype(kind, array, name)
    if array.nbytes < _SMALL or not array.flags.c_contiguous:
        return array.tobytes()
    return array.reshape(-1).view(np.uint8).data


def from_json(name: str, datatype: str, shape: Sequence[int], data: list[Any]) -> Array:
    """The array that a JSON list holds, flat or nested row-major.

    Integers must fit the type and be written as integers; BOOL takes true, false, 0 and 1; a
    float type takes integers and floats, rounded to the nearest; BYTES takes strings, as UTF-8.
    Raises InvalidRequest naming the tensor and the element that is wrong.
    """
    kind = find(datatype, name)
    elements = count(shape, name)
    flat, types = _flatten(name, data)
    if len(flat) != elements:
        raise InvalidRequest(
            f"{_label(name)}: shape {_show(shape)} has {elements} elements, got {len(flat)}"
        )
    if not types <= _ALLOWED[datatype][0]:
        raise _wrong_type(name, datatype, flat)
    return _reshape(name, _convert(name, kind, flat), shape)


def bytes_of_json(name: str, datatype: str, shape: Sequence[int], data: list[Any]) -> Buffer:
    """The raw form of what a JSON list holds: `from_json` and `to_bytes`. Raises as they do."""
    code = _CODES.get(datatype)
    flat = data
    while flat and type(flat[0]) is list and len(set(map(_length, flat))) == 1:
        flat = flat[0] if len(flat) == 1 else list(chain.from_iterable(flat))
    if (
        code is not None
        and len(flat) == count(shape, name)
        and _ALLOWED[datatype][0].issuperset(map(type, flat))
    ):
        try:
            return struct.pack(f"<{len(flat)}{code}", *flat)
        except (struct.error, OverflowError):
            pass  # what is wrong is found and said by the long way
    return to_bytes(datatype, from_json(name, datatype, shape, data), name)


def _length(value: object) -> int:
    """Of a list; what is none has a length that no list has."""
    return len(value) if type(value) is list else -1


def to_json(datatype: str, array: Array, name: str = "") -> list[Any]:
    """The elements as a flat row-major list of what `json` can write; BYTES as UTF-8 text.

    NaN and infinities stay Python floats, which `json.dumps` writes as NaN and Infinity, as
    Triton does; orjson would write null. Raises InvalidRequest where an element of BYTES is not
    UTF-8 (ask for the output as binary), EngineFailure where the dtype is not `datatype`'s.
    """
    kind = find(datatype, name)
    if not kind.itemsize:
        return [_as_text(element, name) for element in array.reshape(-1)]
    _check_dtype(kind, array, name)
    if datatype == "BF16":
        array = bf16_to_float32(array)
    flat: list[Any] = array.reshape(-1).tolist()
    return flat


def to_json_text(datatype: str, array: Array, name: str = "") -> bytes:
    """`to_json` as JSON text, each float in the fewest digits that give it back.

    Non-finite floats are written NaN, Infinity and -Infinity. Raises as `to_json` does.
    """
    kind = find(datatype, name)
    if not kind.itemsize or datatype == "FP16":
        return json.dumps(to_json(datatype, array, name), separators=(",", ":")).encode()
    _check_dtype(kind, array, name)
    values = bf16_to_float32(array) if datatype == "BF16" else array
    flat = np.ascontiguousarray(values).reshape(-1)
    text = orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)
    if b"null" in text:
        return json.dumps(flat.tolist(), separators=(",", ":")).encode()
    return text


def json_of_bytes(datatype: str, shape: Sequence[int], data: Buffer, name: str = "") -> bytes:
    """The elements of raw data as JSON text: `to_array` and `to_json_text`. Raises as they do."""
    if datatype in _CODES:
        flat = np.frombuffer(data, DATATYPES[datatype].dtype)
        text = orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)
        if b"null" not in text:
            return text
    return to_json_text(datatype, to_array(datatype, shape, data, name), name)


def float32_to_bf16(array: Array) -> NDArray[np.uint16]:
    """Bit patterns of the nearest bfloat16, ties to even; a NaN stays a (quiet) NaN."""
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    upper = bits >> np.uint32(16)
    rounded = (bits + ((upper & np.uint32(1)) + np.uint32(0x7FFF))) >> np.uint32(16)
    result = np.where(np.isnan(array), upper | np.uint32(0x40), rounded)
    return result.astype(np.uint16).reshape(np.shape(array))


def bf16_to_float32(array: Array) -> NDArray[np.float32]:
    """The exact values of bfloat16 bit patterns."""
    return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _label(name: str) -> str:
    return f"tensor {name!r}" if name else "tensor"


def _show(shape: Iterable[Any]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _exact(kind: Datatype, shape: Sequence[int], data: Buffer) -> Buffer:
    """`data`, where its length is right to the byte: np.ndarray allows it to be longer."""
    if math.prod(shape) * kind.itemsize != len(data):
        raise ValueError
    return data


def _reshape(name: str, flat: Array, shape: Sequence[int]) -> Array:
    try:
        return flat.reshape(shape)
    except (ValueError, OverflowError) as error:  # over 64 axes, or 0 times a huge axis
        raise InvalidRequest(f"{_label(name)}: shape {_show(shape)}: {error}") from None


def _check_dtype(kind: Datatype, array: Array, name: str) -> None:
    if array.dtype != kind.dtype:
        raise EngineFailure(
            f"{_label(name)}: the engine gave {array.dtype} where {kind.name} was promised"
        )


def _uniform(data: Buffer) -> int | None:
    """The length that all elements of a BYTES stream share; None where they differ.

    Most streams hold one element, or many alike: those are checked without a Python loop.
    """
    if len(data) < _LENGTH.size:
        return None
    length: int = _LENGTH.unpack_from(data)[0]
    step = length + _LENGTH.size
    if len(data) % step:
        return None
    if len(data) == step:
        return length
    prefixes = np.frombuffer(data, np.uint8).reshape(-1, step)[:, : _LENGTH.size]
    return length if bool((prefixes == prefixes[0]).all()) else None


def _elements(data: Buffer) -> list[bytes]:
    """The elements of a BYTES stream that `check_data` has passed."""
    read, found, position, end = _LENGTH.unpack_from, [], 0, len(data)
    while position < end:
        start = position + _LENGTH.size
        position = start + read(data, position)[0]
        found.append(bytes(data[start:position]))
    return found


def _truncated(name: str, index: int, expected: int, got: int, part: str) -> InvalidRequest:
    return InvalidRequest(
        f"{_label(name)}: BYTES element {index} is cut short: {part} takes {expected} bytes, "
        f"{got} are left"
    )


def _object_array(elements: list[bytes]) -> Array:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def _pack(elements: Iterable[bytes]) -> bytes:
    pack = _LENGTH.pack
    return b"".join(chain.from_iterable((pack(len(element)), element) for element in elements))


def _as_bytes(element: object, name: str) -> bytes:
    if isinstance(element, bytes):
        return element
    if isinstance(element, str):
        return element.encode("utf-8", "surrogateescape")
    raise EngineFailure(
        f"{_label(name)}: the engine gave a {type(element).__name__} where BYTES was promised"
    )


def _as_text(element: object, name: str) -> str:
    try:
        return _as_bytes(element, name).decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"{_label(name)}: an element is not UTF-8 text ({error.reason} at byte {error.start}); "
            "request this output as binary data"
        ) from None


def _flatten(name: str, data: Any) -> tuple[list[Any], set[type]]:
    """All elements of a nested list and their types; each level is lists alike or no list."""
    if not isinstance(data, list):
        raise InvalidRequest(f"{_label(name)}: data is a {_json_type(data)}, it must be a list")
    level = data
    while list in (types := set(map(type, level))):
        if len(types) > 1:
            raise InvalidRequest(f"{_label(name)}: data mixes lists and elements at one level")
        if len(set(map(len, level))) > 1:
            raise InvalidRequest(f"{_label(name)}: data is ragged: lists of one level differ")
        level = list(chain.from_iterable(level))
    return level, types


_ALLOWED: dict[str, tuple[frozenset[type], str]] = {
    "BOOL": (frozenset({bool, int}), "true or false"),
    "BYTES": (frozenset({str}), "a string"),
} | {
    name: (frozenset({int, float}), "a number")
    if name in _FLOATS
    else (frozenset({int}), "an integer")
    for name in DATATYPES
    if name not in ("BOOL", "BYTES")
}


def _wrong_type(name: str, datatype: str, flat: list[Any]) -> InvalidRequest:
    allowed, wanted = _ALLOWED[datatype]
    index = next(index for index, value in enumerate(flat) if type(value) not in allowed)
    value = flat[index]
    shown = "" if isinstance(value, dict) or value is None else f" {_brief(value)}"
    return InvalidRequest(
        f"{_label(name)}: element {index} is a {_json_type(value)}{shown}; "
        f"each element of {datatype} must be {wanted}"
    )


def _convert(name: str, kind: Datatype, flat: list[Any]) -> Array:
    if kind.name == "BYTES":
        return _object_array(_encode(name, flat))
    if kind.name == "BOOL":
        return _booleans(name, flat)
    if kind.name in _FLOATS:
        return _floats(name, kind, flat)
    try:
        return np.array(flat, dtype=kind.dtype)
    except OverflowError:
        info = np.iinfo(kind.dtype)
        low, high = int(info.min), int(info.max)
        index = next(i for i, value in enumerate(flat) if not low <= value <= high)
        raise InvalidRequest(
            f"{_label(name)}: element {index} is {_brief(flat[index])}, "
            f"outside {kind.name}'s {low} to {high}"
        ) from None


def _encode(name: str, flat: list[str]) -> list[bytes]:
    try:
        return [text.encode() for text in flat]
    except UnicodeEncodeError:
        raise InvalidRequest(f"{_label(name)}: a string holds half of a surrogate pair") from None


def _booleans(name: str, flat: list[Any]) -> Array:
    wrong = next((i for i, value in enumerate(flat) if value not in (0, 1)), None)
    if wrong is not None:
        raise InvalidRequest(
            f"{_label(name)}: element {wrong} is {_brief(flat[wrong])}; "
            "each element of BOOL must be true or false"
        )
    return np.array(flat, dtype=np.bool_)


def _floats(name: str, kind: Datatype, flat: list[Any]) -> Array:
    """Rounded to the nearest; a finite number that the type cannot hold is an error."""
    if kind.name == "BF16":
        return _bf16s(name, flat)
    try:
        with np.errstate(over="raise"):
            return np.array(flat, dtype=kind.dtype)
    except (OverflowError, FloatingPointError):
        array = _saturated(flat, kind.dtype)
    _check_range(name, kind, flat, array)
    return array


def _bf16s(name: str, flat: list[Any]) -> Array:
    bits = float32_to_bf16(_saturated(flat, np.dtype(np.float32)))
    _check_range(name, DATATYPES["BF16"], flat, bf16_to_float32(bits))
    return bits


def _saturated(flat: list[Any], dtype: np.dtype[Any]) -> Array:
    def fit(value: float) -> float:
        try:
            return float(value)
        except OverflowError:
            return math.inf

    with np.errstate(over="ignore"):
        return np.array([fit(value) for value in flat], dtype=dtype)


def _check_range(name: str, kind: Datatype, flat: list[Any], values: Array) -> None:
    for index in np.flatnonzero(np.isinf(values)):
        value = flat[index]
        if isinstance(value, int) or math.isfinite(value):
            raise InvalidRequest(
                f"{_label(name)}: element {index} is {_brief(value)}, beyond the range of "
                f"{kind.name}"
            )


def _json_type(value: object) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number" if isinstance(value, int | float) else "value")


def _brief(value: object) -> str:
    """A value as a message shows it; never a long one, nor an int that Python refuses to print."""
    try:
        text = json.dumps(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 40 else f"{text[:37]}..."
