"""The report's pictures, as SVG that a page can hold."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ds_quantize.report.values import TIMES, number, size

if TYPE_CHECKING:
    from ds_quantize.evaluate.results import Estimate, Evaluation, LayerError

BEFORE, AFTER, BAD, GRID, TEXT = "#94a3b8", "#2563eb", "#dc2626", "#e2e8f0", "#334155"
NAMES = ("original", "candidate")
LOOKS: dict[Any, Any] = {
    # Text stays text: the page's font, small files, words that can be found.
    "svg.fonttype": "none",
    "svg.hashsalt": "ds-quantize",
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Segoe UI", "Helvetica Neue", "Arial", "DejaVu Sans"],
    "font.size": 10,
    "text.color": TEXT,
    "axes.edgecolor": GRID,
    "axes.labelcolor": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}
WORST = 12
"""Layers that are named in the picture of their sensitivity."""

LONGEST = 34


def quality(evaluation: Evaluation) -> str:
    """Each metric, the agreement and the cosine with their intervals, one small picture each."""
    parts: list[tuple[str, list[tuple[str, Estimate, str]]]] = [
        (
            q.metric,
            [
                (name, e, color)
                for name, e, color in zip(
                    NAMES, (q.baseline, q.candidate), (BEFORE, AFTER), strict=True
                )
                if e is not None
            ],
        )
        for q in evaluation.metrics
    ]
    shown = {q.metric for q in evaluation.metrics}
    for name in ("agreement", "cosine"):
        found = getattr(evaluation, name)
        if found is not None and name not in shown:
            parts.append((f"{name} with the original", [("candidate", found, AFTER)]))
    with mpl.rc_context(LOOKS):
        figure = Figure((9, 2.1), layout="constrained")
        axes = figure.subplots(1, len(parts), squeeze=False)[0]
        for axis, (title, estimates) in zip(axes, parts, strict=True):
            _intervals(axis, title, estimates)
        return svg(figure)


def _intervals(axis: Axes, title: str, estimates: Sequence[tuple[str, Estimate, str]]) -> None:
    for place, (_, found, color) in enumerate(reversed(estimates)):
        around = [[max(0.0, found.value - found.low)], [max(0.0, found.high - found.value)]]
        axis.errorbar(
            [found.value], [place], xerr=around, fmt="o", color=color, capsize=4, lw=2, ms=7
        )
        axis.annotate(
            number(found.value), (found.value, place), (0, 9), textcoords="offset points",
            ha="center", color=color, weight="bold",
        )  # fmt: skip
    axis.set_yticks(range(len(estimates)), [name for name, _, _ in reversed(estimates)])
    axis.set_ylim(-0.6, len(estimates) - 0.25)
    axis.set_title(title)
    axis.grid(axis="x", color=GRID)
    axis.spines["left"].set_visible(False)
    _spread(axis, estimates)


def _spread(axis: Axes, estimates: Sequence[tuple[str, Estimate, str]]) -> None:
    """Some room around, and never so near that noise looks like news."""
    low = min(found.low for _, found, _ in estimates)
    high = max(found.high for _, found, _ in estimates)
    room = max(high - low, 0.004 * max(abs(high), abs(low)), 1e-6)
    axis.set_xlim(low - 0.35 * room, high + 0.35 * room)
    axis.locator_params(axis="x", nbins=4)
    if high <= 1:
        ticks = [tick for tick in axis.get_xticks() if low - room <= tick <= 1]
        axis.set_xticks(ticks)


def speed(evaluation: Evaluation) -> str:
    """Latency and throughput of both at each batch size; the bars' whiskers are the turns'."""
    sides = (evaluation.baseline, evaluation.candidate)
    with mpl.rc_context(LOOKS):
        figure = Figure((9, 2.9), layout="constrained")
        latency, rate = figure.subplots(1, 2)
        batches = [timing.batch for timing in sides[0].timings]
        for offset, side, color, name in zip(
            (-0.2, 0.2), sides, (BEFORE, AFTER), NAMES, strict=True
        ):
            at = [place + offset for place in range(len(batches))]
            times = [timing.latency_ms for timing in side.timings]
            around = [
                [timing.latency_ms - timing.lowest_ms for timing in side.timings],
                [timing.highest_ms - timing.latency_ms for timing in side.timings],
            ]
            latency.bar(at, times, 0.38, color=color, label=name, yerr=around, ecolor=TEXT,
                        error_kw={"lw": 1, "capsize": 2})  # fmt: skip
            rates = [timing.rows_per_s for timing in side.timings]
            bars = rate.bar(at, rates, 0.38, color=color, label=name)
            rate.bar_label(bars, [number(value) for value in rates], fontsize=8.5, padding=2)
        _batch_axis(latency, batches, "latency of a batch, ms (log)")
        latency.set_yscale("log")
        _batch_axis(rate, batches, "throughput, rows/s")
        _speedups(latency, evaluation)
        rate.margins(y=0.15)
        handles, labels = latency.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False)
        return svg(figure)


def _batch_axis(axis: Axes, batches: Sequence[int], title: str) -> None:
    axis.set_xticks(range(len(batches)), [f"batch {batch}" for batch in batches])
    axis.set_title(title)
    axis.grid(axis="y", color=GRID)


def _speedups(axis: Axes, evaluation: Evaluation) -> None:
    own = {timing.batch: timing.highest_ms for timing in evaluation.candidate.timings}
    for place, (batch, ratio) in enumerate(evaluation.speedups.items()):
        axis.annotate(
            f"{ratio:.2f}{TIMES}", (place + 0.2, own[batch]), (0, 5), textcoords="offset points",
            ha="center", fontsize=9, color=AFTER, weight="bold",
        )  # fmt: skip
    axis.margins(y=0.3)


def space(evaluation: Evaluation) -> str:
    """Bytes on disk and in memory."""
    sides = (evaluation.baseline, evaluation.candidate)
    kinds = [("size on disk", [side.size_bytes for side in sides])]
    memory = [side.memory_bytes for side in sides if side.memory_bytes is not None]
    if len(memory) == len(sides):
        kinds.append(("memory, at its peak", memory))
    with mpl.rc_context(LOOKS):
        figure = Figure((9, 1.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        right.set_visible(len(kinds) == 2)
        for axis, (title, values) in zip((left, right), kinds, strict=False):
            bars = axis.barh(NAMES[::-1], values[::-1], 0.6, color=(AFTER, BEFORE))
            axis.bar_label(bars, [size(value) for value in values[::-1]], padding=4)
            axis.set_title(title)
            axis.set_xticks([])
            axis.margins(x=0.2)
            axis.spines["bottom"].set_visible(False)
        return svg(figure)


def layers(found: Sequence[LayerError]) -> str:
    """The error through the network, and the layers where most of it comes in."""
    worst = sorted(found, key=lambda layer: layer.rank)[:WORST]
    with mpl.rc_context(LOOKS):
        figure = Figure((9, 0.9 + 0.24 * max(6, len(worst))), layout="constrained")
        through, own = figure.subplots(1, 2, width_ratios=(1.1, 1))
        _through(through, found, worst)
        names = [_short(layer.name) for layer in worst][::-1]
        places = list(range(len(worst)))
        own.barh(places, [100 * layer.own for layer in worst][::-1], 0.65, color=AFTER)
        own.set_yticks(places, names, fontsize=8.5)
        own.set_title("most sensitive layers: own error, %")
        own.grid(axis="x", color=GRID)
        return svg(figure)


def _through(axis: Axes, found: Sequence[LayerError], worst: Sequence[LayerError]) -> None:
    places = list(range(len(found)))
    axis.fill_between(places, [100 * layer.error for layer in found], color=AFTER, alpha=0.12, lw=0)
    axis.plot(places, [100 * layer.error for layer in found], color=AFTER, lw=1.5)
    marked = [(place, layer) for place, layer in enumerate(found) if layer in worst[:5]]
    axis.plot(
        [place for place, _ in marked], [100 * layer.error for _, layer in marked], "o",
        color=BAD, ms=5,
    )  # fmt: skip
    axis.set_title("error of each layer's output, %; dots: the most sensitive")
    axis.set_xlabel("layers, in the graph's order")
    axis.set_ylim(bottom=0)
    axis.grid(axis="y", color=GRID)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"…{name[-LONGEST + 1 :]}"


def svg(figure: Figure) -> str:
    """Without the XML head, and as wide as the page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    text = file.getvalue()
    return text[text.index("<svg") :]
