"""Statistics of the stages of many requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ds_profile.traces import NETWORK, STAGES, Stage, Trace

PERCENTILES = (50, 95, 99)
NEIGHBOURS = 0.02
"""Share of all requests that stands for a percentile: its neighbours by total time."""


@dataclass(frozen=True)
class Row:
    """One stage over all requests, in microseconds. `share` is of the mean total."""

    stage: Stage
    mean: float
    percentiles: tuple[float, ...]
    share: float


@dataclass(frozen=True)
class Typical:
    """How requests around a percentile of the total spent it: microseconds by stage."""

    label: str
    stages: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.stages.values())


@dataclass(frozen=True)
class Stages:
    """Of one model and protocol. `total` is a row too, of all stages together."""

    model: str
    protocol: str
    count: int
    rows: tuple[Row, ...]
    total: Row
    typical: tuple[Typical, ...]

    def share(self, *names: str) -> float:
        """What these stages take of the mean total, 0 to 1."""
        return sum(row.share for row in self.rows if row.stage.name in names)

    def mean(self, name: str) -> float:
        """Microseconds; 0 for a stage that no request has."""
        return next((row.mean for row in self.rows if row.stage.name == name), 0.0)


TOTAL = Stage("total", "", (), (), "all stages together")


def summarise(traces: Sequence[Trace], client: Mapping[str, int] | None = None) -> list[Stages]:
    """Statistics by model and protocol, the most frequent first.

    `client`: nanoseconds that the client waited, by request id; what is beyond the server's
    stages becomes the stage `network`.
    """
    groups: dict[tuple[str, str], list[dict[str, int]]] = {}
    for trace in traces:
        durations = trace.durations()
        waited = (client or {}).get(trace.request_id)
        if client is not None:
            if waited is None:
                continue
            durations[NETWORK.name] = max(0, waited - sum(durations.values()))
        groups.setdefault((trace.model, trace.protocol), []).append(durations)
    found = [_stages(model, protocol, many) for (model, protocol), many in groups.items()]
    return sorted(found, key=lambda stages: -stages.count)


def _stages(model: str, protocol: str, many: Sequence[Mapping[str, int]]) -> Stages:
    known = [s for s in (*STAGES, NETWORK) if any(s.name in one for one in many)]
    table = np.array([[one.get(s.name, 0) for s in known] for one in many]) / 1e3
    totals = table.sum(axis=1)
    whole = max(float(totals.mean()), 1e-9)
    rows = tuple(_row(stage, table[:, i], whole) for i, stage in enumerate(known))
    typical = [_typical("mean", known, table)]
    order = np.argsort(totals, kind="stable")
    for percentile in PERCENTILES:
        near = _near(len(many), percentile)
        typical.append(_typical(f"p{percentile}", known, table[order[near]]))
    total = _row(TOTAL, totals, whole)
    return Stages(model, protocol, len(many), rows, total, tuple(typical))


def _row(stage: Stage, values: np.ndarray[tuple[int], np.dtype[np.float64]], whole: float) -> Row:
    mean = float(values.mean())
    percentiles = tuple(float(p) for p in np.percentile(values, PERCENTILES))
    return Row(stage, mean, percentiles, mean / whole)


def _near(count: int, percentile: float) -> slice:
    """The requests around a percentile, in the order of their total times."""
    middle = (count - 1) * percentile / 100
    reach = count * NEIGHBOURS / 2
    first = max(0, round(middle - reach))
    return slice(first, max(first + 1, min(count, round(middle + reach) + 1)))


def _typical(
    label: str, known: Sequence[Stage], table: np.ndarray[tuple[int, int], np.dtype[np.float64]]
) -> Typical:
    means = table.mean(axis=0)
    return Typical(label, {s.name: float(v) for s, v in zip(known, means, strict=True)})
