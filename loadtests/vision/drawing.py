"""What is on a board: components, traces, text, and what should not be."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from loadtests.vision import BRIDGE, COPPER, HOLE, MISSING, SCRATCH

Point = tuple[float, float]
Colour = tuple[int, ...]

MASKS = ((28, 104, 62), (22, 66, 120), (118, 34, 40), (36, 92, 40), (30, 120, 96))
METALS = ((206, 204, 198), (212, 182, 104), (186, 190, 196))
PITCH = 15
"""Pixels from one pin of a chip to the next."""


@dataclass(frozen=True)
class Defect:
    """`outline`: points that its box encloses, with `room` pixels around them."""

    kind: int
    outline: tuple[Point, ...]
    room: float = 2.0


@dataclass
class Drawing:
    """A board that is being drawn. All that is random comes from `chance`."""

    image: Image.Image
    chance: random.Random
    mask: Colour
    trace: Colour
    metal: Colour
    defects: list[Defect] = field(default_factory=list)

    @property
    def pen(self) -> ImageDraw.ImageDraw:
        return ImageDraw.Draw(self.image)

    def near(self, colour: Colour, by: int) -> Colour:
        """The colour, somewhat lighter or darker."""
        return _near(colour, by, self.chance)


def begun(width: int, height: int, chance: random.Random) -> Drawing:
    """An empty board, in colours of its own."""
    mask, metal = _near(chance.choice(MASKS), 14, chance), _near(chance.choice(METALS), 14, chance)
    trace = tuple(part + chance.randint(18, 40) for part in mask)
    return Drawing(Image.new("RGB", (width, height), mask), chance, mask, trace, metal)


def _near(colour: Colour, by: int, chance: random.Random) -> Colour:
    shift = chance.randint(-by, by)
    return tuple(min(255, max(0, part + shift)) for part in colour)


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def traces(drawing: Drawing, count: int) -> None:
    """Lines across the board, straight and at 45 degrees, some of them several side by side."""
    width, height = drawing.image.size
    for _ in range(count):
        chance = drawing.chance
        x, y = chance.uniform(0, width), chance.uniform(0, height)
        points = [(x, y)]
        heading = chance.randrange(8)
        for _ in range(chance.randint(2, 5)):
            length = chance.uniform(60, 360)
            x += length * math.cos(heading * math.pi / 4)
            y += length * math.sin(heading * math.pi / 4)
            points.append((x, y))
            heading += chance.choice((-1, 1))
        wide = chance.randint(4, 8)
        for lane in range(chance.choice((1, 1, 2, 4))):
            moved = [(px + lane * 15, py + lane * 15) for px, py in points]
            drawing.pen.line(moved, fill=drawing.trace, width=wide, joint="curve")


def text(drawing: Drawing, x: float, y: float) -> None:
    said = f"{drawing.chance.choice('RCLUQD')}{drawing.chance.randint(1, 199)}"
    size = drawing.chance.randint(13, 22)
    drawing.pen.text((x, y), said, fill=drawing.near((222, 224, 218), 16), font=font(size))


def via(drawing: Drawing, x: float, y: float) -> None:
    """A drilled hole with a ring of metal, as it should be."""
    ring = drawing.chance.uniform(9, 14)
    drill = ring * drawing.chance.uniform(0.4, 0.6)
    drawing.pen.ellipse((x - ring, y - ring, x + ring, y + ring), fill=drawing.metal)
    drawing.pen.ellipse((x - drill, y - drill, x + drill, y + drill), fill=(18, 18, 20))


def fiducial(drawing: Drawing, x: float, y: float) -> None:
    drawing.pen.ellipse((x - 22, y - 22, x + 22, y + 22), fill=(58, 52, 40))
    drawing.pen.ellipse((x - 11, y - 11, x + 11, y + 11), fill=drawing.metal)


def chip(drawing: Drawing, x: float, y: float, bridged: bool = False) -> None:
    """A black body with pins on both sides, or above and below."""
    chance = drawing.chance
    pins, lying = chance.randint(4, 6), chance.random() < 0.5
    half, long = chance.uniform(24, 34), pins * PITCH / 2
    placed = _turned if lying else _upright

    def box(left: float, top: float, right: float, bottom: float) -> tuple[float, ...]:
        (a, b), (c, d) = placed(x, y, left, top), placed(x, y, right, bottom)
        return min(a, c), min(b, d), max(a, c), max(b, d)

    ends = [-long + (number + 0.5) * PITCH for number in range(pins)]
    for end in ends:
        for side in (-1, 1):
            near, far = sorted((side * (half - 2), side * (half + 14)))
            drawing.pen.rectangle(box(near, end - 3.5, far, end + 3.5), fill=drawing.metal)
    drawing.pen.rectangle(box(-half, -long, half, long), fill=drawing.near((38, 38, 42), 10))
    mark = placed(x, y, -half + 7, -long + 7)
    drawing.pen.ellipse((mark[0] - 3, mark[1] - 3, mark[0] + 3, mark[1] + 3), fill=(96, 96, 98))
    said = f"{chance.choice(('LM', 'TL', 'MX'))}{chance.randint(10, 99)}"
    drawing.pen.text((x - 15, y - 8), said, fill=(150, 150, 150), font=font(14))
    if bridged:
        first, side = chance.choice(ends[:-1]), chance.choice((-1, 1))
        out = side * (half + chance.uniform(4, 10))
        _solder(drawing, *placed(x, y, out, first + PITCH / 2), lying)


def _upright(x: float, y: float, across: float, along: float) -> Point:
    return x + across, y + along


def _turned(x: float, y: float, across: float, along: float) -> Point:
    return x + along, y + across


def _solder(drawing: Drawing, x: float, y: float, lying: bool) -> None:
    """Between two pins; a little over both."""
    across, along = drawing.chance.uniform(4.5, 7), drawing.chance.uniform(7, 10)
    wide, high = (along, across) if lying else (across, along)
    outline = _lump(drawing.chance, x, y, wide, high, 9)
    drawing.pen.polygon(outline, fill=drawing.near(drawing.metal, 8))
    drawing.defects.append(Defect(BRIDGE, tuple(outline)))


def _lump(
    chance: random.Random, x: float, y: float, wide: float, high: float, corners: int
) -> list[Point]:
    """A polygon that is somewhat round."""
    outline = []
    for number in range(corners):
        angle = 2 * math.pi * (number + chance.uniform(-0.25, 0.25)) / corners
        size = chance.uniform(0.75, 1.1)
        outline.append((x + wide * size * math.cos(angle), y + high * size * math.sin(angle)))
    return outline


def passive(drawing: Drawing, x: float, y: float, missing: bool = False) -> None:
    """A resistor or a capacitor between two pads, in a printed frame; or the frame and the pads."""
    chance = drawing.chance
    long, short = chance.uniform(20, 28), chance.uniform(10, 14)
    lying = chance.random() < 0.5
    placed = _turned if lying else _upright

    def box(across: float, begin: float, end: float) -> tuple[Point, Point]:
        (a, b), (c, d) = placed(x, y, -across, begin), placed(x, y, across, end)
        return (min(a, c), min(b, d)), (max(a, c), max(b, d))

    frame = box(short + 5, -long - 5, long + 5)
    drawing.pen.rectangle(frame, outline=drawing.near((214, 216, 210), 16), width=2)
    for begin, end in ((-long, -long + 15), (long - 15, long)):
        drawing.pen.rectangle(box(short, begin, end), fill=drawing.metal)
    if missing:
        drawing.defects.append(Defect(MISSING, _corners(*frame), room=1.0))
        return
    body = chance.choice(((40, 40, 44), (150, 122, 86), (104, 84, 62), (66, 58, 96)))
    drawing.pen.rectangle(box(short - 1, -long + 7, long - 7), fill=drawing.near(body, 14))
    drawing.pen.text(
        (x - 9, y - 7), f"{chance.randint(10, 99)}", fill=(190, 190, 190), font=font(12)
    )


def _corners(first: Point, last: Point) -> tuple[Point, ...]:
    return first, (last[0], first[1]), last, (first[0], last[1])


def scratch(drawing: Drawing, x: float, y: float) -> None:
    """A thin, light line with a slight bend."""
    chance = drawing.chance
    length, heading = chance.uniform(30, 76), chance.uniform(0, math.pi)
    bend = chance.uniform(-0.006, 0.006)
    outline = []
    for step in range(9):
        along = (step / 8 - 0.5) * length
        off = bend * (along**2 - length**2 / 8)
        px = x + along * math.cos(heading) - off * math.sin(heading)
        outline.append((px, y + along * math.sin(heading) + off * math.cos(heading)))
    colour = drawing.near((196, 186, 152), 22)
    drawing.pen.line(outline, fill=colour, width=chance.randint(2, 3), joint="curve")
    drawing.defects.append(Defect(SCRATCH, tuple(outline), room=5.0))


def copper(drawing: Drawing, x: float, y: float) -> None:
    """A patch where the artwork has none."""
    chance = drawing.chance
    wide, high = chance.uniform(8, 22), chance.uniform(8, 22)
    outline = _lump(chance, x, y, wide, high, chance.randint(6, 10))
    share = chance.uniform(0.35, 1)
    colour = tuple(
        round(a + share * (b - a)) for a, b in zip(drawing.trace, (196, 128, 78), strict=True)
    )
    drawing.pen.polygon(outline, fill=colour)
    drawing.defects.append(Defect(COPPER, tuple(outline)))


def hole(drawing: Drawing, x: float, y: float) -> None:
    """Dark, and without a ring."""
    size = drawing.chance.uniform(6, 12)
    outline = _lump(drawing.chance, x, y, size, size, 11)
    drawing.pen.polygon(outline, fill=drawing.near((20, 19, 18), 8))
    drawing.defects.append(Defect(HOLE, tuple(outline)))
