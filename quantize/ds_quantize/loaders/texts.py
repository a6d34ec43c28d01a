"""Text files: one row a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ds_engines.base import Array
from ds_quantize.errors import DataError
from ds_quantize.loaders.rows import Row, RowData, as_array, as_label

LABELS = ("label", "labels")


def txt(source: str) -> RowData:
    """One text a line, as input `text`; blank lines are left out."""
    path = Path(source).expanduser()
    return RowData(source, lambda: _texts(path), kept=True)


def jsonl(source: str) -> RowData:
    """One object a line: values by input, and `label`."""
    path = Path(source).expanduser()
    return RowData(source, lambda: _objects(path), kept=True)


def _texts(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        yield Row({"text": as_array(line)}, None, f"line {number}")


def _objects(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        where = f"line {number}"
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}: {where} is not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise DataError(f"{path}: {where} is not an object, such as {{'text': 'a text'}}")
        label = next((fields[name] for name in LABELS if name in fields), None)
        inputs = {
            name: _value(value, f"{path}: {where}: {name!r}")
            for name, value in fields.items()
            if name not in LABELS
        }
        yield Row(inputs, None if label is None else as_label(label), where)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}") from None


def _value(value: Any, where: str) -> Array:
    """Texts, numbers and lists of either; what is deeper, such as a chat's messages, as JSON."""
    if isinstance(value, dict) or (isinstance(value, list) and any(map(_is_dict, value))):
        return as_array(json.dumps(value, ensure_ascii=False))
    try:
        array = as_array(value)
    except ValueError:
        raise DataError(f"{where} is a list whose rows differ in length") from None
    if value is None or (array.dtype == np.object_ and not all(map(_is_bytes, array.flat))):
        raise DataError(f"{where} is {value!r}; it must be texts, or numbers, or lists of them")
    return array


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def _is_bytes(value: object) -> bool:
    return isinstance(value, bytes)
