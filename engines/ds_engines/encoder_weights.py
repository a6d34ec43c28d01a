"""Tensors of safetensors files, by their names."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ds_engines.base import Array
from ds_engines.encoder_folder import files
from ds_engines.errors import LoadError

_BFLOAT16 = "BF16"
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", _BFLOAT16: "<u2"}
_MOST_HEADER = 100_000_000
"""What the format allows, in bytes."""


class _Place(NamedTuple):
    file: Path
    type: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Weights:
    """Those of a folder or of one file. A tensor is read when it is asked for, as FP32.

    Raises LoadError for a file that is not there or not whole.
    """

    def __init__(self, path: Path) -> None:
        self._places: dict[str, _Place] = {}
        for file in files(path) if path.is_dir() else [path]:
            self._places |= _places(file)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __getitem__(self, name: str) -> Array:
        """Raises LoadError where there is none of that name, or of a type that is no number's."""
        place = self._places.get(name)
        if place is None:
            raise LoadError(f"the weights hold no tensor {name!r}")
        if place.type not in _TYPES:
            raise LoadError(f"{place.file}: {name!r} is of type {place.type}, not floating point")
        return _read(place)

    @property
    def names(self) -> list[str]:
        return list(self._places)


def _places(file: Path) -> dict[str, _Place]:
    try:
        header, data, size = _header(file)
        found = {
            name: _place(file, entry, data, size)
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise LoadError(f"{file} is not a whole safetensors file: {error!r:.200}") from None
    return found


def _header(file: Path) -> tuple[dict[str, Any], int, int]:
    """The header, where the data begins, and the file's size."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        if length > min(_MOST_HEADER, size - 8):
            raise ValueError(f"a header of {length} bytes")
        return json.loads(opened.read(length)), 8 + length, size


def _place(file: Path, entry: dict[str, Any], data: int, size: int) -> _Place:
    begin, end = (data + int(offset) for offset in entry["data_offsets"])
    shape = tuple(int(axis) for axis in entry["shape"])
    if not data <= begin <= end <= size or min(shape, default=0) < 0:
        raise ValueError(f"data_offsets {entry['data_offsets']} in {size} bytes")
    kind = str(entry["dtype"])
    if kind in _TYPES and int(np.prod(shape)) * np.dtype(_TYPES[kind]).itemsize != end - begin:
        raise ValueError(f"{end - begin} bytes for {kind} of shape {list(shape)}")
    return _Place(file, kind, shape, begin, end)


def _read(place: _Place) -> Array:
    with place.file.open("rb") as file:
        file.seek(place.begin)
        raw = np.frombuffer(file.read(place.end - place.begin), _TYPES[place.type])
    if place.type == _BFLOAT16:
        raw = (raw.astype("<u4") << 16).view("<f4")
    return raw.astype(np.float32, copy=False).reshape(place.shape)
