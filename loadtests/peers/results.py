"""Samples to rows, rows to tables: medians, spread, and ratios to ds-serve."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rich.table import Table

COLUMNS = (
    "server",
    "protocol",
    "at once",
    "req/s",
    "lowest to highest",
    "p50 ms",
    "p99 ms",
    "CPU s/1k",
    "MiB",
    "MiB/1k/s",
    "ds-serve is",
)
IN_PROCESS = "in process"
NOTHING = "-"
MIB = 2**20


@dataclass(frozen=True)
class Sample:
    """One measurement of one server.

    `rate` is in requests per second, `p50` and `p99` in microseconds. `cpu` is in CPU seconds of
    the server for 1,000 requests, None where their number is not known; `memory` in bytes
    resident (PSS of all its processes) after the measurement. `others` is the part of the
    machine, 0 to 1, that neither server nor client took meanwhile.
    """

    rate: float
    p50: float
    p99: float
    cpu: float | None
    memory: int | None
    others: float


@dataclass(frozen=True)
class Key:
    """What is measured: a workload by a server over a protocol with so many at once."""

    workload: str
    server: str
    protocol: str
    at_once: int


@dataclass(frozen=True)
class Refusal:
    """What gets no row, and why. None, and 0 at once, stand for all."""

    workload: str | None
    server: str | None
    protocol: str | None
    why: str
    at_once: int = 0

    def __str__(self) -> str:
        parts = [part for part in (self.server, self.workload, self.protocol) if part]
        parts += [f"{self.at_once} at once"] if self.at_once else []
        return f"{', '.join(parts) or 'nothing measured'}: {self.why}"

    def covers(self, key: Key) -> bool:
        pairs = (
            (self.workload, key.workload),
            (self.server, key.server),
            (self.protocol, key.protocol),
            (self.at_once or None, key.at_once),
        )
        return all(ours is None or ours == its for ours, its in pairs)


@dataclass(frozen=True)
class Crash:
    """A server that ended by itself between two measurements, and was started again."""

    workload: str
    server: str
    why: str


@dataclass(frozen=True)
class Row:
    key: Key
    samples: tuple[Sample, ...]

    @property
    def rate(self) -> float:
        return median(sample.rate for sample in self.samples)

    @property
    def cpu(self) -> float | None:
        known = [sample.cpu for sample in self.samples if sample.cpu is not None]
        return median(known) if known else None

    @property
    def memory(self) -> float | None:
        known = [sample.memory for sample in self.samples if sample.memory is not None]
        return median(known) if known else None

    def ratio(self, base: Row | None) -> float | None:
        """How many times as many requests ds-serve answered, by the medians."""
        return base.rate / self.rate if base else None

    def cells(self, base: Row | None) -> tuple[str, ...]:
        rates = [sample.rate for sample in self.samples]
        memory = self.memory
        return (
            self.key.server,
            self.key.protocol,
            str(self.key.at_once),
            f"{self.rate:,.0f}",
            f"{min(rates):,.0f} to {max(rates):,.0f}",
            f"{median(sample.p50 for sample in self.samples) / 1000:.2f}",
            f"{median(sample.p99 for sample in self.samples) / 1000:.2f}",
            _number(self.cpu, ".2f"),
            _number(memory and memory / MIB, ",.0f"),
            _number(memory and memory / MIB / self.rate * 1000, ",.0f"),
            _number(self.ratio(base), ".2f", " times"),
        )


@dataclass
class Results:
    """All that was measured, and all that was refused."""

    samples: dict[Key, list[Sample]]
    refusals: list[Refusal]
    crashes: list[Crash]

    def crashed(self, workload: str) -> str:
        """A sentence for each server that did, for below the table."""
        found = [crash for crash in self.crashes if crash.workload == workload]
        counts = Counter((crash.server, crash.why.partition(":")[0]) for crash in found)
        return " ".join(
            f"{server} was started again {count} time{'s' if count > 1 else ''}: {why} while or "
            "after it was measured."
            for (server, why), count in counts.items()
        )

    def remarks(self, workload: str) -> str:
        """What a reader of its table must know: servers started again, rows that are missing."""
        missing = [each for each in self.refusals if each.workload in (None, workload)]
        refused = [f"No row for {str(each).splitlines()[0]}." for each in missing]
        counts = {len(row.samples) for row in self.rows(workload)}
        times = " to ".join(map(str, sorted(counts)[:: max(1, len(counts) - 1)]))
        repeats = f"Medians of {times} interleaved repeats." if counts else ""
        return " ".join(filter(None, [repeats, self.crashed(workload), *dict.fromkeys(refused)]))

    def refused(self, key: Key) -> bool:
        return any(refusal.covers(key) for refusal in self.refusals)

    def rows(self, workload: str) -> list[Row]:
        """Of one workload, without what was refused, side by side as they are compared."""
        kept = [key for key in self.samples if key.workload == workload and not self.refused(key)]
        protocols = list(dict.fromkeys(key.protocol for key in kept))
        servers = list(dict.fromkeys(key.server for key in kept))

        def order(key: Key) -> tuple[int, int, int]:
            return protocols.index(key.protocol), key.at_once, servers.index(key.server)

        return [Row(key, tuple(self.samples[key])) for key in sorted(kept, key=order)]

    def refuse_noise(self, workload: str, quiet: float) -> None:
        """A table where other programs had more than `quiet` of the machine tells nothing."""
        shares = [
            sample.others
            for key, samples in self.samples.items()
            if key.workload == workload
            for sample in samples
        ]
        if shares and median(shares) > quiet:
            why = f"other programs took {median(shares):.0%} of the machine; --anyway shows it"
            self.refusals.append(Refusal(workload, None, None, why))


def cells(rows: Sequence[Row], base: str) -> list[tuple[str, ...]]:
    """Each row with its ratio to the server `base` over the same protocol."""
    bases = {(row.key.protocol, row.key.at_once): row for row in rows if row.key.server == base}
    return [row.cells(bases.get((row.key.protocol, row.key.at_once))) for row in rows]


def table(title: str, rows: Sequence[Row], base: str) -> Table:
    """For a terminal."""
    shown = Table(title=title)
    for index, column in enumerate(COLUMNS):
        shown.add_column(column, justify="right" if index > 1 else "left", no_wrap=True)
    for row in cells(rows, base):
        shown.add_row(*row)
    return shown


def markdown(rows: Sequence[Row], base: str, about: str) -> str:
    ruler = ("---", "---", *["---:"] * (len(COLUMNS) - 2))
    lines = [COLUMNS, ruler, *cells(rows, base)]
    return about + "\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_json(results: Results, base: str, about: dict[str, Any]) -> dict[str, Any]:
    """For later comparison: every sample, the medians, and what was refused."""
    listed = []
    for workload in dict.fromkeys(key.workload for key in results.samples):
        rows = results.rows(workload)
        bases = {(row.key.protocol, row.key.at_once): row for row in rows if row.key.server == base}
        for row in rows:
            listed.append(
                {
                    **asdict(row.key),
                    "rate": row.rate,
                    "p50": median(sample.p50 for sample in row.samples),
                    "p99": median(sample.p99 for sample in row.samples),
                    "cpu": row.cpu,
                    "memory": row.memory,
                    "ratio": row.ratio(bases.get((row.key.protocol, row.key.at_once))),
                    "samples": [asdict(sample) for sample in row.samples],
                }
            )
    return {
        "about": about,
        "rows": listed,
        "refused": [asdict(refusal) for refusal in results.refusals],
        "crashes": [asdict(crash) for crash in results.crashes],
    }


def from_json(parts: Iterable[dict[str, Any]]) -> Results:
    """What `as_json` gave, of several runs, as one. Raises KeyError, TypeError."""
    whole = Results({}, [], [])
    for part in parts:
        for row in part["rows"]:
            key = Key(row["workload"], row["server"], row["protocol"], row["at_once"])
            samples = [Sample(**sample) for sample in row["samples"]]
            whole.samples.setdefault(key, []).extend(samples)
        whole.refusals += [Refusal(**each) for each in part["refused"]]
        whole.crashes += [Crash(**each) for each in part["crashes"]]
    return whole


def _number(value: float | None, form: str, unit: str = "") -> str:
    return NOTHING if value is None else f"{value:{form}}{unit}"
