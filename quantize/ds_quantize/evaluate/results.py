"""What an evaluation says; the report, the gate and the manifest read it."""

from __future__ import annotations

import math
from statistics import geometric_mean
from typing import Literal

import msgspec

Better = Literal["higher", "lower"]


class Estimate(msgspec.Struct, frozen=True):
    """A value with its 95 % interval over `rows` rows. `method` is how the interval was found:
    `wilson`, `bootstrap`, `agresti-min` for a difference of proportions, or `exact` for none.
    """

    value: float
    low: float
    high: float
    rows: int
    method: str = "bootstrap"


class Quality(msgspec.Struct, frozen=True):
    """One metric of both models. `change` is candidate less baseline, row by row the same data.

    `better` tells which way is good. `baseline` is None for a metric that compares the candidate
    with the baseline itself, as cosine and agreement do; a perfect candidate then has `perfect`.
    """

    metric: str
    better: Better
    candidate: Estimate
    baseline: Estimate | None = None
    change: Estimate | None = None
    perfect: float = 1.0

    @property
    def drop(self) -> float:
        """How much worse the candidate is, absolute; below zero where it is better."""
        reference = self.perfect if self.baseline is None else self.baseline.value
        worse = reference - self.candidate.value
        return worse if self.better == "higher" else -worse


class OutputError(msgspec.Struct, frozen=True):
    """How far an output of the candidate is from the baseline's, over all rows: the mean cosine of
    a row, the mean squared error, and the largest difference of an element.
    """

    name: str
    cosine: float
    mse: float
    largest: float


class Timing(msgspec.Struct, frozen=True):
    """One engine at one batch size: medians over interleaved repeats, and the 99th percentile of
    all runs, in milliseconds a batch; `rows_per_s` with one batch at a time.
    """

    batch: int
    latency_ms: float
    latency_p99_ms: float
    rows_per_s: float
    lowest_ms: float
    highest_ms: float


class Side(msgspec.Struct, frozen=True):
    """One of the two models, as its engine has it.

    `size_bytes` is what it takes on disk. `memory_bytes` is by how much a process grows, at its
    peak, that loads it and runs the largest batch; None where that was not measured.
    """

    path: str
    engine: str
    size_bytes: int
    memory_bytes: int | None = None
    timings: tuple[Timing, ...] = ()


class LayerError(msgspec.Struct, frozen=True):
    """A layer of the original against the same one of the candidate, both fed from the inputs.

    `error` is the L2 norm of the difference over that of the original. `own` is the part that came
    in at this layer, sqrt(max(0, error**2 - e**2)) with `e` the largest error of its inputs: the
    higher, the more there is to gain by keeping the layer as it was. `rank` 1 is the highest.
    `finite` is False where the candidate has NaN or infinities and the original has none.
    """

    name: str
    op: str
    tensor: str
    error: float
    own: float
    cosine: float
    finite: bool = True
    rank: int = 0


class Evaluation(msgspec.Struct, frozen=True):
    """A candidate against its baseline, both as built engines, on the same rows.

    `metrics`: the one that was asked for first. `agreement`: the share of rows, or of positions,
    where both give the same answer. `cosine`: of the output that is furthest off. `faults`: what
    is wrong by itself (an output that is constant, or not finite); a gate never passes one.
    `notes`: what the reader should know. `joined_rows`: so many rows are a batch at most, as the
    candidate's rounding makes them change one another; 0 where they do not, or no batch is formed.
    `stand_in`: what was measured in the candidate's place, where nothing here runs that.
    """

    data: str
    digest: str
    rows: int
    threads: int
    baseline: Side
    candidate: Side
    metrics: tuple[Quality, ...]
    agreement: Estimate | None = None
    cosine: Estimate | None = None
    outputs: tuple[OutputError, ...] = ()
    layers: tuple[LayerError, ...] = ()
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    joined_rows: int = 0
    stand_in: str = ""

    @property
    def remarks(self) -> tuple[str, ...]:
        """All that the reader should know."""
        return (self.stand_in, *self.notes) if self.stand_in else self.notes

    @property
    def quality(self) -> Quality:
        """The metric that was asked for."""
        return self.metrics[0]

    def metric(self, name: str) -> Quality | None:
        """The metric of that name, None where it was not measured."""
        return next((quality for quality in self.metrics if quality.metric == name), None)

    @property
    def size(self) -> float:
        """The candidate's size as a share of the baseline's."""
        return self.candidate.size_bytes / max(1, self.baseline.size_bytes)

    @property
    def speedups(self) -> dict[int, float]:
        """The baseline's latency over the candidate's, by batch size."""
        own = {timing.batch: timing.latency_ms for timing in self.candidate.timings}
        return {
            timing.batch: timing.latency_ms / own[timing.batch]
            for timing in self.baseline.timings
            if timing.batch in own
        }

    @property
    def speedup(self) -> float:
        """The geometric mean of the speedups over the batch sizes; NaN where none was timed."""
        found = self.speedups
        return geometric_mean(found.values()) if found else math.nan

    @property
    def latency_ms(self) -> float:
        """Of the candidate at the smallest batch; NaN where none was timed."""
        timings = self.candidate.timings
        return min(timings, key=lambda timing: timing.batch).latency_ms if timings else math.nan
