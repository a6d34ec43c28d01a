"""Calibration and evaluation data: what they are, and reading them from files.

| source | rows |
|---|---|
| `file.npz` | arrays by the names of the model's inputs, rows along the first axis, and `labels` |
| a folder of `.npz` | such files one after the other, in the order of their names |
| a folder of `.npy` | one file for each input, and `labels.npy`; they are not read into memory |
| `file.jsonl` | one object a line: values by input (texts, numbers, lists), and `label` |
| `file.txt` | one text a line, as input `text` |
| `file.py:function` | what the function yields: dicts, pairs of a dict and a label, or `Batch`es |

A dict of a function is one row, without the batch axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ds_quantize.errors import DataError

if TYPE_CHECKING:
    from ds_engines.base import Array, Tensors
    from ds_engines.spec import ModelSpec


@dataclass(frozen=True)
class Batch:
    """Some rows: `inputs` by name, each with its rows along the model's batch axis (the first,
    where the model does not say otherwise), and a label for each row where there are labels.
    """

    inputs: Tensors
    labels: Array | None = None


class Data(Protocol):
    """Rows that are read again and again, always in the same order.

    `source` is as the user gave it, `digest` a SHA-256 over the contents, `rows` how many rows
    there are.
    """

    source: str
    digest: str
    rows: int
    labelled: bool

    def batches(self, size: int) -> Iterator[Batch]:
        """All rows, `size` at a time, fewer in the last batch and before a row of another shape."""


LOADERS = {
    ".npz": "ds_quantize.loaders.arrays:npz",
    "folder": "ds_quantize.loaders.arrays:folder",
    ".jsonl": "ds_quantize.loaders.texts:jsonl",
    ".txt": "ds_quantize.loaders.texts:txt",
    ".py": "ds_quantize.loaders.function:rows",
}
"""Kind of source to `module:function`."""


def load(source: str) -> Data:
    """The data of a file, folder or function; see the top of this module.

    Reads all of it once. Raises DataError that names the file, the array and the row.
    """
    loader: Callable[[str], Data] = _named(LOADERS[_kind(source)])
    data = loader(source)
    if data.rows == 0:
        raise DataError(f"{source} holds no rows")
    return data


def fit(data: Data, spec: ModelSpec, finite: bool = True) -> Data:
    """The data in the layout of the model: rows along its batch axes, its datatypes.

    `spec` is that of a loaded engine. All rows are checked at once: raises DataError that names
    source, input and row for names, shapes and types that the model does not take, and, with
    `finite`, for NaN and infinities.
    """
    fitted: Callable[[Data, ModelSpec, bool], Data] = _named("ds_quantize.loaders.fitting:fitted")
    return fitted(data, spec, finite)


def _named(reference: str) -> Callable[..., Data]:
    """Loaders import numpy, which a mere look at a recipe does not need."""
    module, _, function = reference.partition(":")
    found: Callable[..., Data] = getattr(import_module(module), function)
    return found


def _kind(source: str) -> str:
    file, colon, _ = source.rpartition(":")
    if colon and file.endswith(".py"):
        return ".py"
    path = Path(source).expanduser()
    if path.is_dir():
        return "folder"
    if path.suffix == ".py":
        raise DataError(f"{source} names no function; give {source}:FUNCTION")
    if path.suffix not in LOADERS:
        raise DataError(
            f"{source} is not data that can be read; give a .npz, .jsonl or .txt file, "
            "a folder of .npz or .npy files, or FILE.py:FUNCTION"
        )
    if not path.is_file():
        raise DataError(f"there is no file {source}")
    return path.suffix
