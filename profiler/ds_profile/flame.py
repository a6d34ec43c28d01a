"""Flame-like pictures as SVG: boxes as wide as the time they took, what they consist of below."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape

from ds_engines.layers import Layer, LayerProfile
from ds_profile.stages import Stages, Typical
from ds_profile.traces import GATEWAY, NETWORK, STAGES, WORKER, Stage

WIDTH = 1160
BOX = 22
BAR = 30
LETTER = 6.4
"""Width of a letter on average, in the pictures' units."""

HAIRLINE = 0.25
"""Narrower boxes are left out; a picture of 5,000 layers would be unreadable and slow."""

COLOURS = {
    "request": "#8d99ae",
    "gateway": "#6c8ebf",
    "worker": "#b07aa1",
    "network": "#bab0ac",
    "receive": "#a0cbe8",
    "parse": "#76b7d9",
    "hand over": "#4e93c4",
    "queue": "#f28e2b",
    "join": "#ffd166",
    "compute": "#59a14f",
    "split": "#b6d15a",
    "hand back": "#4e79a7",
    "encode": "#7b8fc7",
    "send": "#b3bfe2",
}


@dataclass
class Box:
    """`us`: microseconds, of all that is inside too. `note` is shown beside the time."""

    name: str
    us: float
    colour: str
    note: str = ""
    inside: list[Box] = field(default_factory=list)


def request_box(typical: Typical, layers: LayerProfile | None) -> Box:
    """A request: where it was, in which stage, and the layers inside of compute."""
    root = Box("request", typical.total, COLOURS["request"], typical.label)
    for stage in (*STAGES, NETWORK):
        us = typical.stages.get(stage.name)
        if us is None:
            continue
        box = Box(stage.name, us, COLOURS[stage.name], stage.what)
        if stage.name == "compute" and layers is not None:
            box.inside = _scaled(layers_box(layers), us).inside
        _place(root, stage).append(box)
    for place in root.inside:
        if place.inside and place.name in (GATEWAY, WORKER):
            place.us = sum(box.us for box in place.inside)
    return root


def _place(root: Box, stage: Stage) -> list[Box]:
    """Where a stage's box belongs: the process, which a request enters and leaves in turn."""
    if stage.part not in (GATEWAY, WORKER):
        return root.inside
    if not root.inside or root.inside[-1].name != stage.part:
        root.inside.append(Box(stage.part, 0.0, COLOURS[stage.part], "process"))
    return root.inside[-1].inside


def layers_box(profile: LayerProfile) -> Box:
    """The layers as a tree by the parts of their names, in the order in which they run."""
    root = Box("model", 0.0, "#8d99ae", profile.engine)
    for layer in profile.layers:
        _insert(root, layer)
    return _without_chains(root)


def _insert(root: Box, layer: Layer) -> None:
    root.us += layer.us
    box = root
    parts = layer.name.split("/")
    for part in parts:
        inside = next((each for each in box.inside if each.name == part), None)
        if inside is None:
            inside = Box(part, 0.0, _hue(part, 20))
            box.inside.append(inside)
        inside.us += layer.us
        box = inside
    box.note, box.colour = layer.op, _hue(layer.op, 55)


def _without_chains(box: Box) -> Box:
    """One box for `a/b/c` where each has only the next inside."""
    while len(box.inside) == 1 and not box.note:
        (only,) = box.inside
        box = Box(f"{box.name}/{only.name}", box.us, only.colour, only.note, only.inside)
    box.inside = [_without_chains(each) for each in box.inside]
    return box


def _scaled(box: Box, us: float) -> Box:
    factor = us / box.us if box.us else 0.0
    inside = [_scaled(each, each.us * factor) for each in box.inside]
    return Box(box.name, us, box.colour, box.note, inside)


def _hue(word: str, saturation: int) -> str:
    """A colour that is the same for a word on every page."""
    return f"hsl({zlib.crc32(word.encode()) % 360} {saturation}% 72%)"


def flame(root: Box, label: str) -> str:
    """The picture; the page's script lets a click on a box widen it to the whole."""
    boxes = list(_boxes(root, 0, 0.0, WIDTH, max(root.us, 1e-9)))
    height = BOX * (1 + max(depth for _, depth in boxes))
    drawn = "".join(each for each, _ in boxes)
    return (
        f'<svg class="flame" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(label)}">{drawn}</svg>'
    )


def _boxes(box: Box, depth: int, x: float, width: float, whole: float) -> Iterator[tuple[str, int]]:
    if width < HAIRLINE:
        return
    yield _drawn(box, depth, x, width, whole), depth
    for each in box.inside:
        share = width * each.us / box.us if box.us else 0.0
        yield from _boxes(each, depth + 1, x, share, whole)
        x += share


def _drawn(box: Box, depth: int, x: float, width: float, whole: float) -> str:
    name = f"{box.name} ({box.note})" if box.note else box.name
    title = f"{name}: {duration(box.us)}, {box.us / whole:.1%}"
    text = f"{box.name} {duration(box.us)}"
    return (
        f'<g data-x="{x:.2f}" data-w="{width:.2f}" data-d="{depth}" data-t="{escape(text)}">'
        f'<title>{escape(title)}</title><rect x="{x:.2f}" y="{depth * BOX}" '
        f'width="{width:.2f}" height="{BOX - 1}" fill="{box.colour}"/>'
        f'<text x="{x + 4:.2f}" y="{depth * BOX + 15}">{escape(shortened(text, width))}</text></g>'
    )


def shortened(text: str, width: float) -> str:
    """As much of the text as fits; nothing where that would say nothing."""
    letters = int((width - 8) / LETTER)
    if letters >= len(text):
        return text
    return text[: letters - 1] + "…" if letters >= 4 else ""


def bars(stages: Stages) -> str:
    """One bar for the mean and for each percentile, on one scale, divided into stages."""
    longest = max(typical.total for typical in stages.typical) or 1.0
    left, right = 54, 90
    scale = (WIDTH - left - right) / longest
    drawn = [
        _bar(typical, index * BAR, left, scale) for index, typical in enumerate(stages.typical)
    ]
    height = BAR * len(stages.typical)
    label = f"stages of {stages.model} over {stages.protocol}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">'
        f"{''.join(drawn)}</svg>"
    )


def _bar(typical: Typical, y: int, x: float, scale: float) -> str:
    middle = y + 19
    parts = [f'<text x="{x - 8}" y="{middle}" text-anchor="end">{typical.label}</text>']
    for stage in (*STAGES, NETWORK):
        us = typical.stages.get(stage.name, 0.0)
        width = us * scale
        if width < HAIRLINE:
            continue
        title = f"{stage.name}: {duration(us)}, {us / (typical.total or 1.0):.1%} ({stage.what})"
        parts.append(
            f'<g><title>{escape(title)}</title><rect x="{x:.2f}" y="{y + 3}" '
            f'width="{width:.2f}" height="{BAR - 7}" fill="{COLOURS[stage.name]}"/>'
            f'<text x="{x + 4:.2f}" y="{middle}">{shortened(stage.name, width)}</text></g>'
        )
        x += width
    parts.append(f'<text x="{x + 6:.2f}" y="{middle}">{duration(typical.total)}</text>')
    return "".join(parts)


def legend(names: Sequence[str]) -> str:
    return "".join(
        f'<span><i style="background:{COLOURS[name]}"></i>{escape(name)}</span>' for name in names
    )


def duration(us: float) -> str:
    """Microseconds, in the unit that suits them."""
    if us >= 1e6:
        return f"{us / 1e6:.2f} s"
    if us >= 1e3:
        return f"{us / 1e3:.2f} ms"
    return f"{us:.0f} µs" if us >= 10 else f"{us:.1f} µs"
