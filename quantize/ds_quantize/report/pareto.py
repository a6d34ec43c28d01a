"""What a search has tried: which results are better than all others in something."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ds_quantize.report.plots import AFTER, BAD, BEFORE, GRID, LOOKS, svg
from ds_quantize.report.values import TIMES, number

if TYPE_CHECKING:
    from ds_quantize.forms import Measured

HEAD = ("recipe", "result", "#metric", "#drop", "#size", "#speedup")

Tried = dict[str, Any]


def picture(search: Measured) -> str:
    """The drop of the metric against size and against speed, with the Pareto front; empty where
    nothing was measured.
    """
    found = [each for each in search["tried"] if "drop" in each]
    if not found:
        return ""
    with mpl.rc_context(LOOKS):
        figure = Figure((9, 3.4), layout="constrained")
        size, speed = figure.subplots(1, 2)
        _panel(size, found, search["chosen"], "size", "size, share of the original")
        _panel(speed, found, search["chosen"], "speedup", "speedup")
        return svg(figure)


def rows(search: Measured) -> Iterator[Sequence[str]]:
    """Cells of the table, as HTML."""
    for each in search["tried"]:
        name = html.escape(each["recipe"])
        name = f"<b>{name}</b>" if each["recipe"] == search["chosen"] else name
        if "drop" not in each:
            yield name, html.escape(each.get("skipped") or each["failed"]), "", "", "", ""
            continue
        yield (
            name,
            "passed" if each["passed"] else html.escape("; ".join(each["reasons"])),
            number(each["value"]),
            f"{each['drop']:+.4f}",
            f"{100 * each['size']:.0f} %",
            f"{each['speedup']:.2f}{TIMES}",
        )


def front(found: Sequence[Tried], gain: str) -> list[Tried]:
    """Those that no other beats in both, the metric's drop and `gain`, by `gain`."""
    sign = -1 if gain == "speedup" else 1
    best: list[Tried] = []
    for each in sorted(found, key=lambda one: (sign * one[gain], one["drop"])):
        if not best or each["drop"] < best[-1]["drop"]:
            best.append(each)
    return best


def _panel(axis: Axes, found: Sequence[Tried], chosen: str, gain: str, label: str) -> None:
    line = front(found, gain)
    axis.plot([e[gain] for e in line], [e["drop"] for e in line], color=GRID, lw=2, zorder=0)
    for each in found:
        color = AFTER if each["passed"] else BAD
        marker = "*" if each["recipe"] == chosen else "o"
        axis.plot([each[gain]], [each["drop"]], marker, color=color, ms=13 if marker == "*" else 7)
    axis.plot([1.0], [0], "o", color=BEFORE, ms=7)
    for (across, up), names in _names(found, gain).items():
        axis.annotate(names, (across, up), (6, 6), textcoords="offset points", fontsize=8.5)
    axis.annotate("original", (1.0, 0), (6, -12), textcoords="offset points", fontsize=8.5)
    axis.set_xlabel(label)
    axis.set_title("drop of the metric; star: chosen")
    axis.grid(color=GRID)
    axis.margins(0.18)


def _names(found: Sequence[Tried], gain: str) -> dict[tuple[float, float], str]:
    """Those that lie on one another share a label."""
    names: dict[tuple[float, float], str] = {}
    for each in found:
        place = (round(each[gain], 2), round(each["drop"], 4))
        names[place] = f"{names[place]}, {each['recipe']}" if place in names else each["recipe"]
    return names
