"""Arrays in `.npz` and `.npy` files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ds_engines.base import Array, Tensors
from ds_quantize.errors import DataError
from ds_quantize.loaders.rows import Row, RowData, split

LABELS = ("labels", "label")
BAD_FILE = (OSError, ValueError, EOFError, KeyError)
"""What numpy raises for a file that is none of its own, is cut short, or holds objects."""


def npz(source: str) -> RowData:
    """One file: arrays by name, and `labels`."""
    arrays = _read_npz(Path(source).expanduser())
    inputs, labels = _apart(arrays)
    return RowData(source, lambda: split(inputs, labels, ""))


def folder(source: str) -> RowData:
    """A folder of `.npz` files, one after the other, or of one `.npy` file for each input."""
    path = Path(source).expanduser()
    files = sorted(file for file in path.iterdir() if file.suffix in (".npz", ".npy"))
    endings = {file.suffix for file in files}
    if not files:
        raise DataError(f"{source} holds no .npz and no .npy file")
    if len(endings) > 1:
        raise DataError(
            f"{source} holds .npz and .npy files; it must be one kind, .npz files with rows, or "
            "one .npy file for each input"
        )
    if endings == {".npz"}:
        return RowData(source, lambda: _all_rows(files))
    inputs, labels = _apart({file.stem: _mapped(file) for file in files})
    return RowData(source, lambda: split(inputs, labels, ""))


def _all_rows(files: Sequence[Path]) -> Iterator[Row]:
    for file in files:
        inputs, labels = _apart(_read_npz(file))
        yield from split(inputs, labels, f"{file.name}, ")


def _apart(arrays: Tensors) -> tuple[Tensors, Array | None]:
    """Inputs and labels."""
    inputs = {name: array for name, array in arrays.items() if name not in LABELS}
    labels = next((arrays[name] for name in LABELS if name in arrays), None)
    return inputs, labels


def _read_npz(path: Path) -> Tensors:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: _readable(path, file, name) for name in file.files}
    except BAD_FILE as error:
        raise DataError(f"{path} cannot be read as .npz: {error}") from error


def _readable(path: Path, file: np.lib.npyio.NpzFile, name: str) -> Array:
    try:
        array: Array = file[name]
    except BAD_FILE as error:
        raise DataError(f"{path}: array {name!r} cannot be read: {error}") from error
    return array


def _mapped(path: Path) -> Array:
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except BAD_FILE as error:
        raise DataError(f"{path} cannot be read as .npy: {error}") from error
    return array
