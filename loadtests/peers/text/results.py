"""Answers to figures, figures to a table with ratios to ds-serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
from rich.table import Table

from loadtests.peers.text.client import Seen

COLUMNS = (
    "server",
    "clients",
    "req/s",
    "output tokens/s",
    "lowest to highest",
    "first token p50 ms",
    "p99 ms",
    "between tokens p50 ms",
    "tokens in / out",
    "MiB",
    "ds-serve is",
)
MIB = 2**20


@dataclass(frozen=True)
class TextSample:
    """One measurement of one server. Rates a second, times in milliseconds, memory in bytes.

    `others` is the part of the machine, 0 to 1, that neither server nor client took meanwhile.
    """

    requests: float
    tokens: float
    first_p50: float
    first_p99: float
    between_p50: float
    tokens_in: float
    tokens_out: float
    memory: int
    others: float


def sample(seen: Sequence[Seen], memory: int, others: float) -> TextSample:
    """What the answers come to, from the first request's beginning to the last answer's end."""
    took = max(each.ended for each in seen) - min(each.began for each in seen)
    first = np.array([each.first - each.began for each in seen]) * 1000
    gaps = np.array([gap for each in seen for gap in each.gaps] or [0.0]) * 1000
    return TextSample(
        requests=len(seen) / took,
        tokens=sum(each.tokens for each in seen) / took,
        first_p50=float(np.percentile(first, 50)),
        first_p99=float(np.percentile(first, 99)),
        between_p50=float(np.percentile(gaps, 50)),
        tokens_in=float(np.mean([each.usage[0] if each.usage else 0 for each in seen])),
        tokens_out=float(np.mean([each.tokens for each in seen])),
        memory=memory,
        others=others,
    )


@dataclass(frozen=True)
class TextRow:
    """A server with so many clients."""

    server: str
    clients: int
    samples: tuple[TextSample, ...]

    def middle(self, name: str) -> float:
        return float(median(getattr(each, name) for each in self.samples))

    def cells(self, base: TextRow | None) -> tuple[str, ...]:
        rates = [each.tokens for each in self.samples]
        ratio = base.middle("tokens") / self.middle("tokens") if base else None
        return (
            self.server,
            str(self.clients),
            f"{self.middle('requests'):.2f}",
            f"{self.middle('tokens'):,.0f}",
            f"{min(rates):,.0f} to {max(rates):,.0f}",
            f"{self.middle('first_p50'):,.0f}",
            f"{self.middle('first_p99'):,.0f}",
            f"{self.middle('between_p50'):,.1f}",
            f"{self.middle('tokens_in'):.0f} / {self.middle('tokens_out'):.0f}",
            f"{self.middle('memory') / MIB:,.0f}",
            "-" if ratio is None else f"{ratio:.2f} times",
        )


def cells(rows: Sequence[TextRow], base: str) -> list[tuple[str, ...]]:
    """Sorted by clients; each beside the server `base` with as many."""
    bases = {row.clients: row for row in rows if row.server == base}
    return [row.cells(bases.get(row.clients)) for row in sorted(rows, key=lambda r: r.clients)]


def table(rows: Sequence[TextRow], base: str) -> Table:
    """For a terminal."""
    shown = Table(title="chats, streamed")
    for index, column in enumerate(COLUMNS):
        shown.add_column(column, justify="right" if index else "left", no_wrap=not index)
    for row in cells(rows, base):
        shown.add_row(*row)
    return shown


def markdown(rows: Sequence[TextRow], base: str, about: str) -> str:
    ruler = ("---", *["---:"] * (len(COLUMNS) - 1))
    lines = [f"| {' | '.join(line)} |" for line in (COLUMNS, ruler, *cells(rows, base))]
    return "\n".join([about, "", *lines])


def as_json(rows: Sequence[TextRow], refusals: Sequence[str], about: str) -> dict[str, Any]:
    return {"about": about, "rows": [asdict(row) for row in rows], "refused": list(refusals)}
