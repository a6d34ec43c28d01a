"""Rows that a function of a user's Python file yields."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ds_engines.base import Tensors
from ds_engines.errors import ServeError
from ds_quantize.data import Batch
from ds_quantize.errors import DataError
from ds_quantize.loaders.rows import Row, RowData, as_array, as_label, split
from ds_quantize.python_file import function


def rows(source: str) -> RowData:
    """Calls the function once for each pass; it must yield the same rows every time."""
    made = function(source)
    return RowData(source, lambda: _rows(source, made), kept=True)


def _rows(source: str, made: Callable[[], Any]) -> Iterator[Row]:
    number = 0
    try:
        for item in made():
            for row in _of(source, item, number):
                yield row
                number += 1
    except ServeError:
        raise
    except Exception as error:
        raise DataError(
            f"{source} fails at row {number}: {type(error).__name__}: {error}"
        ) from error


def _of(source: str, item: Any, number: int) -> Iterator[Row]:
    """One yielded thing: a row, or the rows of a Batch."""
    if isinstance(item, Batch):
        labels = None if item.labels is None else np.asarray(item.labels)
        yield from split(item.inputs, labels, "", number)
        return
    inputs, label = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
    if not isinstance(inputs, dict) or not inputs:
        raise DataError(
            f"{source} yields a {type(item).__name__} as row {number}; it must yield dicts of "
            "arrays by input, pairs of such a dict and a label, or ds_quantize.data.Batch"
        )
    arrays: Tensors = {str(name): as_array(value) for name, value in inputs.items()}
    yield Row(arrays, None if label is None else as_label(label), f"row {number}")
