"""Measurements to a table: on the terminal, and between two marks in a Markdown page."""

from __future__ import annotations

import os
import platform
import shlex
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

from rich.table import Table

from loadtests.perf_analyzer import BenchmarkError, Point

COLUMNS = ("what", "at once", "rows/s", "lowest", "highest", "p50 ms", "p99 ms", "of engine")


@dataclass(frozen=True)
class Line:
    """One line of the table: what was measured, with how many requests or rows at once."""

    what: str
    at_once: int
    points: tuple[Point, ...]

    @property
    def rate(self) -> float:
        return median(point.rate for point in self.points)

    def cells(self, engine: Line) -> tuple[str, ...]:
        """Medians of the repeats, and the slowest and the fastest repeat."""
        rates = [point.rate for point in self.points]
        return (
            self.what,
            str(self.at_once),
            f"{self.rate:,.0f}",
            f"{min(rates):,.0f}",
            f"{max(rates):,.0f}",
            f"{median(point.p50 for point in self.points) / 1000:.2f}",
            f"{median(point.p99 for point in self.points) / 1000:.2f}",
            f"{self.rate / engine.rate:.3g}",
        )


def table(lines: Sequence[Line]) -> Table:
    """For a terminal. The first line is the engine that the others are compared with."""
    shown = Table(title="a tiny model, alone and behind each protocol")
    for index, column in enumerate(COLUMNS):
        shown.add_column(column, justify="right" if index else "left")
    for line in lines:
        shown.add_row(*line.cells(lines[0]))
    return shown


def markdown(lines: Sequence[Line], about: str) -> str:
    rows = [COLUMNS, ("---", *["---:"] * (len(COLUMNS) - 1))]
    rows += [line.cells(lines[0]) for line in lines]
    return about + "\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def machine(tools: dict[str, str], cores: frozenset[int] | None = None) -> str:
    """One paragraph: processor, memory, versions, date, and how busy the machine was before.

    `cores` are those that are used, where not all are.
    """
    ours = frozenset(os.sched_getaffinity(0))
    load = (
        f"{'busy with other work, ' if busy() else ''}"
        f"load average {os.getloadavg()[0]:.1f} before the start; "
    )
    names = ("onnxruntime", "grpcio", "uvicorn", "numpy")
    versions = [f"{name} {version(name)}" for name in names]
    versions += [f"{name} {number}" for name, number in tools.items()]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, ds-serve {version('ds-serve')}: {processor()}, "
        f"{len(cores or ours)} cores for server, engine and load generator together, "
        f"{memory:.0f} GiB, {platform.system()} {platform.release().partition('-')[0]}, "
        f"{load if len(cores or ours) == os.cpu_count() else ''}"
        f"Python {platform.python_version()}{_plain()}, {', '.join(versions)}."
    )


def _plain() -> str:
    """A Python built without profile-guided optimization is up to a half slower.

    Distributions build theirs with it, and do not say so.
    """
    options = shlex.split(sysconfig.get_config_var("CONFIG_ARGS") or "")
    optimized = not {"--enable-optimizations", "--prefix=/usr"}.isdisjoint(options)
    return "" if optimized else " (built without optimizations, which makes it slower)"


def busy() -> bool:
    """Whether other programs keep the machine at work, so that figures mean little."""
    return os.getloadavg()[0] > len(os.sched_getaffinity(0)) / 2


def write(path: Path, name: str, text: str) -> None:
    """Replace what is between the marks of `name`. Raises BenchmarkError where they are not."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    page = path.read_text()
    head, first, rest = page.partition(begin)
    _, last, tail = rest.partition(end)
    if not first or not last:
        raise BenchmarkError(f"{path} has no place for the table: {begin} and {end} mark one")
    path.write_text(f"{head}{begin}\n{text}\n{end}{tail}")


def processor() -> str:
    """The name of its model."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
