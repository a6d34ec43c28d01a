"""Texts out of a recognizer's probabilities, and how far one text is from another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from ds_engines.base import Array, Tensors
from ds_quantize.errors import DataError
from ds_quantize.evaluate.outputs import main_output

Decode = Callable[[Tensors], list[str]]
METADATA = "character"
"""Under this name PaddleOCR's exports keep their characters, one a line, without CTC's blank."""


def ctc(path: Path) -> Decode:
    """A decoder of `[rows, time, characters]`, with the characters that the ONNX file names."""
    properties = onnx.load(path, load_external_data=False).metadata_props
    text = next((item.value for item in properties if item.key == METADATA), None)
    if text is None:
        raise DataError(
            f"{path} names no characters in its metadata ({METADATA!r}); give a decoder, as metric "
            "character-error-rate:FILE.py:FUNCTION"
        )
    characters = ["", *text.split("\n"), " "]

    def decode(outputs: Tensors) -> list[str]:
        return [_line(row, characters) for row in main_output(outputs, "")]

    return decode


def _line(scores: Array, characters: list[str]) -> str:
    """Repeats count once, and number 0 is no character."""
    best = scores.argmax(-1)
    kept = best[np.insert(best[1:] != best[:-1], 0, True) & (best != 0)]
    return "".join(characters[number] for number in kept if number < len(characters))


def edits(read: str, wanted: str) -> int:
    """The fewest insertions, deletions and replacements (Levenshtein) between two texts."""
    before = list(range(len(wanted) + 1))
    for row, character in enumerate(read, 1):
        now = [row]
        for column, other in enumerate(wanted, 1):
            replaced = before[column - 1] + (character != other)
            now.append(min(replaced, before[column] + 1, now[-1] + 1))
        before = now
    return before[-1]
