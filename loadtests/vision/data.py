"""Tiles for ds-quantize, and whole photographs as a camera sends them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from loadtests.vision import example
from loadtests.vision.boards import Board, board
from loadtests.vision.matching import NOTHING

Array = npt.NDArray[Any]

CALIBRATION, EVALUATION = 5000, 9000
"""Seeds of the first boards; those of training are others."""

DEFECTS = 16
SEEN = 0.5
"""The share of a defect that must lie in a tile to be looked for there."""


def photographs(seed: int, count: int, defects: int = DEFECTS) -> Iterator[Board]:
    """Boards as JPEG files that were decoded again."""
    for number in range(seed, seed + count):
        made = board(number, defects)
        yield replace(made, picture=example.decoded(example.jpeg(made.picture)))


def tiles(boards: Iterable[Board]) -> dict[str, Array]:
    """The tiles on which there is a defect: `image` uint8 [n, 3, tile, tile], `labels` float32
    [n, most, 5], boxes in the tile with their classes, and NOTHING where there are fewer.
    """
    images, found = [], []
    for made in boards:
        cut, windows = example.cut(made.picture)
        for tile, window in zip(cut, windows, strict=True):
            labels = _labels(made, window)
            if len(labels):
                images.append(tile)
                found.append(labels)
    most = max(map(len, found))
    padded = [np.pad(rows, ((0, most - len(rows)), (0, 0)), constant_values=NOTHING)
              for rows in found]  # fmt: skip
    return {"image": np.stack(images), "labels": np.stack(padded).astype(np.float32)}


def _labels(made: Board, window: Array) -> Array:
    """[n, 5] of the defects that a tile shows enough of."""
    moved = made.boxes - np.tile(window[:2], 2)
    boxes = np.clip(moved, 0, window[2] - window[0])
    share = (boxes[:, 2:] - boxes[:, :2]).prod(1) / (moved[:, 2:] - moved[:, :2]).prod(1)
    labelled = np.concatenate([boxes, made.classes[:, None]], 1)
    kept: Array = labelled[share >= SEEN]
    return kept
