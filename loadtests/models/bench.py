"""What a row of a scenario's requests costs ONNX Runtime, with no server around it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from loadtests.models.reference import Arrays, Reference
from loadtests.scenarios import fraud, recommender

SCENARIOS = {"fraud": fraud, "recommender": recommender}
BATCHES = (1, 4, 16, 64)
COLUMNS = ("rows at once", "µs a row", "rows/s", "p50 ms a call", "p99 ms a call")
DISTINCT_ROWS = 1024


@dataclass(frozen=True)
class Cost:
    """Of calls with `batch` rows, in seconds."""

    batch: int
    median: float
    p99: float

    def cells(self) -> tuple[str, ...]:
        return (
            str(self.batch),
            f"{self.median / self.batch * 1e6:,.0f}",
            f"{self.batch / self.median:,.0f}",
            f"{self.median * 1e3:.2f}",
            f"{self.p99 * 1e3:.2f}",
        )


def measure(name: str, path: Path, seconds: float = 2.0, threads: int = 1) -> list[Cost]:
    """One call after the other with each of BATCHES, `seconds` long after a short warm-up."""
    engine = Reference(path, threads)
    rows = list(islice(SCENARIOS[name].requests(0), DISTINCT_ROWS))
    return [_cost(engine, rows, batch, seconds) for batch in BATCHES]


def markdown(costs: list[Cost]) -> str:
    lines = [COLUMNS, ["---:"] * len(COLUMNS), *(cost.cells() for cost in costs)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cost(engine: Reference, rows: list[Arrays], batch: int, seconds: float) -> Cost:
    feeds = _batches(rows, batch)
    warm = time.perf_counter() + seconds / 4
    while time.perf_counter() < warm:
        engine.run(next(feeds))
    took = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        feed = next(feeds)
        begun = time.perf_counter()
        engine.run(feed)
        took.append(time.perf_counter() - begun)
    return Cost(batch, float(np.median(took)), float(np.percentile(took, 99)))


def _batches(rows: list[Arrays], batch: int) -> Iterator[Arrays]:
    """Rows joined to batches, over and over."""
    groups = [rows[at : at + batch] for at in range(0, len(rows), batch)]
    joined = [{key: np.concatenate([row[key] for row in some]) for key in some[0]}
              for some in groups]  # fmt: skip
    while True:
        yield from joined
