"""From runs to the table: ratios, efficiencies, and what had no time left."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import mean, median

from rich.table import Table

from loadtests.scaling.measure import Sample

COLUMNS = (
    "models",
    "gateways",
    "req/s",
    "lowest",
    "highest",
    "ratio",
    "efficiency",
    "of the best",
    "a gateway's CPU",
    "a worker's CPU",
    "server's CPUs",
    "wrk's CPUs",
    "p50 ms",
    "p99 ms",
    "at its limit",
)
SHOWN = (*COLUMNS[:3], *COLUMNS[5:10], *COLUMNS[11:])
FULL = 0.9
"""Of a processor. Requests come in turns, so a process that is the limit waits now and then."""


@dataclass
class Line:
    """All runs with so many models and gateways."""

    models: int
    gateways: int
    samples: list[Sample] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return median(sample.point.rate for sample in self.samples)

    def efficiency(self, base: Line) -> float:
        """The rate of each gateway beside that in `base`."""
        return self.rate / base.rate * base.gateways / self.gateways

    @property
    def limit(self) -> str:
        """What had no time left, by the medians. Gateways are alike, so their mean counts."""
        shares = {
            "gateways": median(mean(sample.gateways) for sample in self.samples),
            "worker": median(max(sample.workers) for sample in self.samples),
            "server's CPUs": median(sample.server for sample in self.samples),
            "wrk": median(sample.client for sample in self.samples),
        }
        return ", ".join(name for name, share in shares.items() if share >= FULL) or "nothing"

    def cells(self, base: Line, best: Line) -> tuple[str, ...]:
        rates = [sample.point.rate for sample in self.samples]
        return (
            str(self.models),
            str(self.gateways),
            f"{self.rate:,.0f}",
            f"{min(rates):,.0f}",
            f"{max(rates):,.0f}",
            f"{self.rate / base.rate:.2f}",
            f"{self.efficiency(base):.0%}",
            f"{self.efficiency(best):.0%}",
            _spread([sample.gateways for sample in self.samples]),
            _spread([sample.workers for sample in self.samples]),
            f"{median(sample.server for sample in self.samples):.0%}",
            f"{median(sample.client for sample in self.samples):.0%}",
            f"{median(sample.point.p50 for sample in self.samples) / 1000:.1f}",
            f"{median(sample.point.p99 for sample in self.samples) / 1000:.1f}",
            self.limit,
        )


def _spread(shares: Iterable[Sequence[float]]) -> str:
    """The least and the most that one of several processes took, medians of the runs."""
    shares = list(shares)
    low, high = median(min(each) for each in shares), median(max(each) for each in shares)
    return f"{low:.0%}" if f"{low:.0%}" == f"{high:.0%}" else f"{low:.0%} to {high:.0%}"


def rows(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    """Each line beside the one with as many models and the fewest gateways, and beside the best
    of the lines with the fewest.
    """
    fewest = min(line.gateways for line in lines)
    bases = {line.models: line for line in lines if line.gateways == fewest}
    best = max(bases.values(), key=lambda line: line.rate)
    return [line.cells(bases[line.models], best) for line in lines]


def table(cells: Sequence[Sequence[str]]) -> Table:
    """For a terminal, which has no room for all columns."""
    kept = [COLUMNS.index(column) for column in SHOWN]
    shown = Table(title="throughput by gateways", box=None)
    for column in SHOWN:
        shown.add_column(column, justify="right")
    for row in cells:
        shown.add_row(*(row[index] for index in kept))
    return shown


def markdown(cells: Sequence[Sequence[str]], about: str) -> str:
    written = [COLUMNS, ["---:"] * len(COLUMNS), *cells]
    return about + "\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in written)
