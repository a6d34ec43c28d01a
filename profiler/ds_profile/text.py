"""Tables for a terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from ds_engines.layers import LayerProfile
from ds_profile.stages import PERCENTILES, Row, Stages

LAYERS_SHOWN = 12


def console() -> Console:
    """As wide as the terminal; elsewhere as wide as the tables need."""
    found = Console(highlight=False, soft_wrap=True)
    return found if found.is_terminal else Console(highlight=False, soft_wrap=True, width=120)


def stages_table(stages: Stages) -> Table:
    title = f"{stages.model} over {stages.protocol}: {stages.count:,} traces, microseconds"
    table = Table(title=title, title_justify="left")
    table.add_column("stage")
    for name in ("mean", *(f"p{p}" for p in PERCENTILES), "share"):
        table.add_column(name, justify="right")
    table.add_column("what it is")
    for row in stages.rows:
        table.add_row(*_cells(row))
    table.add_section()
    table.add_row(*_cells(stages.total))
    return table


def _cells(row: Row) -> Iterable[str]:
    numbers = [f"{value:,.0f}" for value in (row.mean, *row.percentiles)]
    return (row.stage.name, *numbers, f"{row.share:.1%}", row.stage.what)


def layers_table(profile: LayerProfile, rows: int) -> Table:
    title = (
        f"Layers in {profile.engine}: {profile.run_us:,.0f} microseconds for a batch of {rows}, "
        f"mean of {profile.runs} runs under the profiler"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("layer")
    table.add_column("operator")
    table.add_column("us", justify="right")
    table.add_column("share", justify="right")
    whole = sum(layer.us for layer in profile.layers) or 1.0
    slowest = sorted(profile.layers, key=lambda layer: -layer.us)
    for layer in slowest[:LAYERS_SHOWN]:
        table.add_row(layer.name, layer.op, f"{layer.us:,.1f}", f"{layer.us / whole:.1%}")
    if rest := slowest[LAYERS_SHOWN:]:
        us = sum(layer.us for layer in rest)
        table.add_row(f"{len(rest)} others", "", f"{us:,.1f}", f"{us / whole:.1%}")
    return table


def operators(profile: LayerProfile) -> list[tuple[str, int, float]]:
    """Operator, how many layers are of it, and their microseconds; the slowest first."""
    times: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for layer in profile.layers:
        times[layer.op] += layer.us
        counts[layer.op] += 1
    return sorted(((op, counts[op], us) for op, us in times.items()), key=lambda item: -item[2])


def operators_table(profile: LayerProfile) -> Table:
    table = Table(title="By operator", title_justify="left")
    table.add_column("operator")
    for name in ("layers", "us", "share"):
        table.add_column(name, justify="right")
    found = operators(profile)
    whole = sum(us for _, _, us in found) or 1.0
    for op, count, us in found[:LAYERS_SHOWN]:
        table.add_row(op, str(count), f"{us:,.1f}", f"{us / whole:.1%}")
    return table
