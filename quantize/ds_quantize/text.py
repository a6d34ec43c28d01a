"""Results as tables on a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from ds_quantize.evaluate.results import Estimate, Evaluation, Side

UNITS = ("B", "kB", "MB", "GB", "TB")


def console(*, stderr: bool = False) -> Console:
    """As wide as the terminal; elsewhere as wide as the tables need."""
    found = Console(highlight=False, soft_wrap=True, stderr=stderr)
    wide = Console(highlight=False, soft_wrap=True, stderr=stderr, width=120)
    return found if found.is_terminal else wide


def comparison(evaluation: Evaluation) -> Table:
    """The original beside the candidate."""
    table = Table(title=f"{evaluation.rows:,} rows of {evaluation.data}", title_justify="left")
    table.add_column("", no_wrap=True)
    for name in ("original", "candidate", "change"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in _rows(evaluation):
        table.add_row(*row)
    return table


def _rows(evaluation: Evaluation) -> Iterable[tuple[str, str, str, str]]:
    for quality in evaluation.metrics:
        before, change = quality.baseline, quality.change
        yield (
            quality.metric,
            "" if before is None else estimate(before),
            estimate(quality.candidate),
            ""
            if change is None
            else f"{change.value:+.4f} ({change.low:+.4f} to {change.high:+.4f})",
        )
    asked = {quality.metric for quality in evaluation.metrics}
    if evaluation.agreement is not None and "agreement" not in asked:
        yield "agreement", "", estimate(evaluation.agreement), ""
    if evaluation.cosine is not None and "cosine" not in asked:
        yield "cosine", "", f"{evaluation.cosine.value:.6f}", ""
    before_, after = evaluation.baseline, evaluation.candidate
    yield "size", size(before_.size_bytes), size(after.size_bytes), f"{evaluation.size:.1%}"
    if before_.memory_bytes is not None and after.memory_bytes is not None:
        share = after.memory_bytes / max(1, before_.memory_bytes)
        yield "memory", size(before_.memory_bytes), size(after.memory_bytes), f"{share:.1%}"
    yield from _timings(before_, after, evaluation.speedups)


def _timings(
    before: Side, after: Side, speedups: dict[int, float]
) -> Iterable[tuple[str, str, str, str]]:
    own = {timing.batch: timing for timing in after.timings}
    for timing in before.timings:
        if (other := own.get(timing.batch)) is None:
            continue
        yield (
            f"batch {timing.batch}",
            f"{timing.latency_ms:.3f} ms, {timing.rows_per_s:,.0f} rows/s",
            f"{other.latency_ms:.3f} ms, {other.rows_per_s:,.0f} rows/s",
            f"{speedups[timing.batch]:.2f}x",
        )


def estimate(value: Estimate) -> str:
    """A value with its 95 % interval."""
    return f"{value.value:.4f} ({value.low:.4f} to {value.high:.4f})"


def _change(value: Estimate) -> str:
    return f"{value.value:+.4f} ({value.low:+.4f} to {value.high:+.4f})"


def size(count: float) -> str:
    """Bytes in a unit that keeps the number short."""
    power = min(len(UNITS) - 1, int(math.log(max(1, count), 1000)))
    return f"{count / 1000**power:.3g} {UNITS[power]}"


def settings(values: dict[str, Any]) -> str:
    """Settings in one line, as YAML's short form has them."""
    return ", ".join(f"{name}: {_plain(value)}" for name, value in values.items())


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_plain, value))}]"
    return "none" if value is None or value == "" else str(value)
