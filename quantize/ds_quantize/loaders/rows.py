"""Data as rows, one after the other: what all kinds of sources come to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ds_engines.base import Array, Tensors
from ds_quantize.data import Batch
from ds_quantize.errors import DataError

KEPT_BYTES = 1 << 30
"""Rows that a function makes are kept up to this size, rather than made again on every pass."""


@dataclass(frozen=True)
class Row:
    """One row, without a batch axis. `where` names it in messages."""

    inputs: Tensors
    label: Array | None
    where: str


class RowData:
    """Data out of `rows`, which is called for every pass. `kept`: rows may stay in memory."""

    def __init__(self, source: str, rows: Callable[[], Iterator[Row]], kept: bool = False) -> None:
        self.source = source
        self._rows = rows
        self._kept: list[Row] | None = [] if kept else None
        self.digest, self.rows, self.labelled = self._read()

    def each(self) -> Iterator[Row]:
        """The rows in their order."""
        return self._rows() if self._kept is None else iter(self._kept)

    def batches(self, size: int) -> Iterator[Batch]:
        """Rows stacked along the first axis."""
        for group in grouped(self.each(), size, _kind):
            inputs = {
                name: np.stack([row.inputs[name] for row in group]) for name in group[0].inputs
            }
            yield Batch(inputs, labels(group))

    def _read(self) -> tuple[str, int, bool]:
        """One pass: digest, rows, and whether they have labels."""
        digest = hashlib.sha256()
        rows = labelled = size = 0
        for row in self._rows():
            size += sum(array.nbytes for array in row.inputs.values())
            self._keep(row, size)
            _hash_row(digest, row)
            rows += 1
            labelled += row.label is not None
            if labelled not in (0, rows):
                raise DataError(f"{self.source}: {row.where}: either all rows have labels, or none")
        return digest.hexdigest(), rows, labelled > 0

    def _keep(self, row: Row, size: int) -> None:
        if self._kept is not None and size > KEPT_BYTES:
            self._kept = None
        if self._kept is not None:
            self._kept.append(row)


def grouped(rows: Iterable[Row], size: int, kind: Callable[[Row], object]) -> Iterator[list[Row]]:
    """Up to `size` neighbours of the same kind."""
    group: list[Row] = []
    last: object = None
    for row in rows:
        now = kind(row)
        if group and (len(group) == size or now != last):
            yield group
            group = []
        group.append(row)
        last = now
    if group:
        yield group


def labels(group: list[Row]) -> Array | None:
    """The labels of some rows, None where they have none. Texts are an object array of `str`."""
    found = [row.label for row in group if row.label is not None]
    if not found:
        return None
    try:
        return np.stack(found)
    except ValueError:
        raise DataError(
            f"{group[0].where} and {group[-1].where} have labels of different shapes"
        ) from None


def as_array(value: Any) -> Array:
    """What a user gave as one value; texts become an object array of bytes."""
    array = np.asarray(value)
    if array.dtype.kind in "US":
        texts = [
            text.encode() if isinstance(text, str) else text for text in array.ravel().tolist()
        ]
        found = np.empty(len(texts), np.object_)
        found[:] = texts
        return found.reshape(array.shape)
    return array


def as_label(value: Any) -> Array:
    """A label: a number, an array, or a text, which stays a `str` (trailing zeros are kept)."""
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, str):
        found = np.empty((), np.object_)
        found[()] = value
        return found
    array = np.asarray(value)
    return array.astype(np.object_) if array.dtype.kind == "U" else array


def split(inputs: Tensors, given: Array | None, where: str, start: int = 0) -> Iterator[Row]:
    """The rows of arrays that have them along the first axis; an array of no axis is in each.

    Raises DataError that names the array whose length is another.
    """
    arrays = {name: as_array(array) for name, array in inputs.items()}
    length = _length(arrays, given, where)
    for index in range(length):
        row = {name: array[index] if array.ndim else array for name, array in arrays.items()}
        label = None if given is None else as_label(given[index])
        yield Row({name: np.asarray(a, arrays[name].dtype) for name, a in row.items()}, label,
                  f"{where}row {start + index}")  # fmt: skip


def _length(arrays: Tensors, given: Array | None, where: str) -> int:
    lengths = {name: len(array) for name, array in arrays.items() if array.ndim}
    if not lengths:
        raise DataError(f"{where}there is no array with rows")
    first, expected = next(iter(lengths.items()))
    if given is not None:
        lengths["labels"] = len(given) if given.ndim else 0
    for name, length in lengths.items():
        if length != expected:
            raise DataError(
                f"{where}{name!r} has {length} rows, but {first!r} has {expected}; "
                "the rows are along the first axis"
            )
    return expected


def _kind(row: Row) -> object:
    return [(name, array.shape, array.dtype) for name, array in row.inputs.items()]


def _hash_row(digest: Any, row: Row) -> None:
    for name in sorted(row.inputs):
        _hash_array(digest, name, row.inputs[name])
    if row.label is not None:
        _hash_array(digest, "", row.label)


def _hash_array(digest: Any, name: str, array: Array) -> None:
    """What is hashed does not depend on how the rows are spread over files."""
    digest.update(f"{name}\0{array.dtype.str}{array.shape}\0".encode())
    if array.dtype != np.object_:
        digest.update(np.ascontiguousarray(array).data)
        return
    for item in array.ravel().tolist():
        data = item if isinstance(item, bytes) else str(item).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
