"""Photographs of boards that never were, with the boxes of their defects.

`python -m loadtests.vision.boards FILE.jpg [SEED]` draws one, and prints what is wrong with it.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from loadtests.vision import CLASSES, drawing
from loadtests.vision.drawing import Defect, Drawing

WIDTH, HEIGHT = 2560, 1920
CELL = 160
"""Pixels: the board is laid out in squares of this size, each with things of one kind."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Board:
    """`picture` uint8 [height, width, 3]; `boxes` float32 [n, 4], left, top, right, bottom in
    pixels, none beyond the picture; `classes` int64 [n].
    """

    picture: Array
    boxes: Array
    classes: Array


def board(seed: int, defects: int = 16, width: int = WIDTH, height: int = HEIGHT) -> Board:
    """The same for the same arguments. `defects` are at most as many as it has cells."""
    chance = random.Random(seed)
    made = drawing.begun(width, height, chance)
    drawing.traces(made, width * height // 80_000)
    cells = [
        (x + CELL / 2, y + CELL / 2)
        for y in range(0, height - CELL + 1, CELL)
        for x in range(0, width - CELL + 1, CELL)
    ]
    chance.shuffle(cells)
    for number, (x, y) in enumerate(cells):
        _fill(made, x, y, number < defects)
    return _photograph(made, np.random.default_rng(seed))


def _fill(made: Drawing, x: float, y: float, defective: bool) -> None:
    kinds: dict[Callable[[Drawing, float, float, bool], None], int] = {
        _chip: 1, _passives: 2, _vias: 1, _plain: 1
    }  # fmt: skip
    weights = [1, 1, 1, 2] if defective else list(kinds.values())
    made.chance.choices(list(kinds), weights)[0](made, x, y, defective)


def _chip(made: Drawing, x: float, y: float, defective: bool) -> None:
    drawing.text(made, x - 70, y - 76)
    drawing.chip(made, x + made.chance.uniform(-12, 12), y + made.chance.uniform(-4, 16), defective)


def _passives(made: Drawing, x: float, y: float, defective: bool) -> None:
    """Two or four, one of which may be missing."""
    places = [(-38, -36), (38, 38), (38, -36), (-38, 38)]
    places = places[: made.chance.choice((2, 4))]
    missing = made.chance.randrange(len(places)) if defective else -1
    for number, (right, down) in enumerate(places):
        drawing.passive(made, x + right, y + down, number == missing)
    if len(places) == 2:
        drawing.text(made, x + 12, y - 44)


def _vias(made: Drawing, x: float, y: float, defective: bool) -> None:
    """Some of a grid of holes that should be there; between them one that should not, or copper."""
    for right in (-52, 0, 52):
        for down in (-52, 0, 52):
            if made.chance.random() < 0.5:
                shift = made.chance.uniform(-6, 6)
                drawing.via(made, x + right + shift, y + down)
    if defective:
        wrong = made.chance.choice((drawing.hole, drawing.copper))
        wrong(made, x + made.chance.choice((-26, 26)), y + made.chance.choice((-26, 26)))


def _plain(made: Drawing, x: float, y: float, defective: bool) -> None:
    chance = made.chance
    if chance.random() < 0.5:
        drawing.text(made, x - 66, y - 70)
    if chance.random() < 0.15:
        drawing.fiducial(made, x + 40, y + 40)
    if defective:
        wrong = chance.choice((drawing.scratch, drawing.scratch, drawing.copper, drawing.hole))
        wrong(made, x + chance.uniform(-24, 24), y + chance.uniform(-10, 10))


def _photograph(made: Drawing, random_: np.random.Generator) -> Board:
    """Turned a little, out of focus, in uneven light, with noise."""
    angle = random_.uniform(-2, 2)
    turned = made.image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=(52, 50, 48))
    focused = turned.filter(ImageFilter.GaussianBlur(random_.uniform(0, 1.3)))
    width, height = focused.size
    pixels = np.asarray(focused, np.float32) * light(width, height, random_)
    noise = random_.standard_normal((height, width, 1), np.float32) * random_.uniform(2, 9)
    noise = noise + random_.standard_normal(3, np.float32) * 2
    picture = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    boxes = np.array(
        [_box(defect, partial(_turn, angle, width, height)) for defect in made.defects], np.float32
    ).reshape(-1, 4)
    classes = np.array([defect.kind for defect in made.defects], np.int64)
    return _inside(Board(picture, boxes, classes))


def light(width: int, height: int, random_: np.random.Generator) -> Array:
    """Float32 [height, width, 3], what the pixels are multiplied by: brighter on one side and
    towards a lamp, with a tint.
    """
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None]
    angle, slope = random_.uniform(0, 2 * math.pi), random_.uniform(0, 0.15)
    lamp = random_.uniform(-0.7, 0.7, 2)
    fall = random_.uniform(0, 0.04)
    gain = random_.uniform(0.78, 1.15)
    tint = random_.uniform(0.92, 1.08, 3).astype(np.float32)
    side = slope * (math.cos(angle) * x + math.sin(angle) * y)
    away = fall * ((x - lamp[0]) ** 2 + (y - lamp[1]) ** 2)
    lit: Array = ((gain + side - away) * tint).astype(np.float32)
    return lit


def _turn(angle: float, width: int, height: int, x: float, y: float) -> tuple[float, float]:
    """Where a point is after Pillow has turned the picture counterclockwise about its middle."""
    turn = math.radians(angle)
    right, down = x - width / 2, y - height / 2
    return (
        width / 2 + right * math.cos(turn) + down * math.sin(turn),
        height / 2 - right * math.sin(turn) + down * math.cos(turn),
    )


def _box(defect: Defect, turn: Callable[[float, float], tuple[float, float]]) -> Array:
    points = np.array([turn(x, y) for x, y in defect.outline])
    return np.concatenate([points.min(0) - defect.room, points.max(0) + defect.room])


def _inside(board: Board) -> Board:
    """Without the defects of which the turn has put more than half beyond the picture."""
    height, width = board.picture.shape[:2]
    middle = (board.boxes[:, :2] + board.boxes[:, 2:]) / 2
    kept = ((middle > 0) & (middle < [width, height])).all(1)
    boxes = np.clip(board.boxes[kept], 0, [width, height, width, height])
    return Board(board.picture, boxes.astype(np.float32), board.classes[kept])


if __name__ == "__main__":
    made = board(int(sys.argv[2]) if len(sys.argv) > 2 else 9000)
    Image.fromarray(made.picture).save(sys.argv[1], quality=90)
    for box, kind in zip(made.boxes.tolist(), made.classes.tolist(), strict=True):
        print(f"{CLASSES[kind]:18} {[round(side) for side in box]}")
