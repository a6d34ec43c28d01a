"""Starts to a table: medians, and ratios to the engine's library called directly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from rich.table import Table

from loadtests.start_up.measure import ENGINE, GATEWAY, REST, Start
from loadtests.start_up.subjects import LIBRARIES, Subject

COLUMNS = (
    "model",
    "file MB",
    "what",
    "cold: ready s",
    "ready s",
    "of which loading s",
    "first answer s",
    "engine MiB",
    "gateway MiB",
    "supervisor MiB",
    "engine / file",
    "start, of alone",
    "memory, of alone",
)
TEXT_COLUMNS = 3
MIB = 2**20
NOTHING = "-"


@dataclass(frozen=True)
class Row:
    """One model started in one way, several times cold and several times warm."""

    subject: Subject
    what: str
    cold: Sequence[Start]
    warm: Sequence[Start]

    @property
    def answered(self) -> float:
        return median(start.answered for start in self.warm)

    @property
    def memory(self) -> float:
        """Bytes of all processes."""
        return median(start.total for start in self.warm)

    def of(self, role: str) -> float | None:
        found = [start.memory[role] for start in self.warm if role in start.memory]
        return median(found) if found else None

    def cells(self, alone: Row) -> tuple[str, ...]:
        engine = self.of(ENGINE) or 0.0
        return (
            self.subject.name,
            f"{self.subject.size / 1e6:,.2f}" if self.subject.size < 1e6 else
            f"{self.subject.size / 1e6:,.0f}",
            self.what,
            f"{median(start.ready for start in self.cold):.2f}" if self.cold else NOTHING,
            f"{median(start.ready for start in self.warm):.2f}",
            f"{median(start.load for start in self.warm):.2f}",
            f"{self.answered:.2f}",
            _mib(engine),
            _mib(self.of(GATEWAY)),
            _mib(self.of(REST)),
            f"{engine / self.subject.size:,.1f}",
            f"{self.answered / alone.answered:.2f}",
            f"{self.memory / alone.memory:.2f}",
        )  # fmt: skip


def pairs(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Cells of each row, compared with the library alone under the same model."""
    alone = {row.subject.name: row for row in rows if row.what in LIBRARIES.values()}
    return [row.cells(alone[row.subject.name]) for row in rows]


def table(rows: Sequence[Row]) -> Table:
    """For a terminal."""
    shown = Table(title="from process start to ready, and memory after the first answer")
    for index, column in enumerate(COLUMNS):
        left = column in ("model", "what")
        shown.add_column(column, justify="left" if left else "right", no_wrap=index < TEXT_COLUMNS)
    for cells in pairs(rows):
        shown.add_row(*cells)
    return shown


def markdown(rows: Sequence[Row]) -> str:
    ruler = tuple("---" if column in ("model", "what") else "---:" for column in COLUMNS)
    return "\n".join(f"| {' | '.join(line)} |" for line in (COLUMNS, ruler, *pairs(rows)))


def _mib(size: float | None) -> str:
    return NOTHING if size is None else f"{size / MIB:,.0f}"
