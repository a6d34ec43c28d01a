"""Latency and throughput of several engines, which take turns so that all see the same machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import Protocol, TypeVar

import numpy as np

from ds_quantize.evaluate.results import Timing

WARM_UP = 3
"""Runs before the first that counts; one where it takes longer than a turn."""


MOST = 100_000

Given_contra = TypeVar("Given_contra", contravariant=True)
Given = TypeVar("Given")


class Runs(Protocol[Given_contra]):
    """An engine, or whatever else is to be timed."""

    def run(self, batch: Given_contra, /) -> object:
        """One batch."""


def timings(
    engines: Sequence[Runs[Given]],
    inputs: Sequence[Given],
    batch: int,
    seconds: float,
    turns: int,
) -> list[Timing]:
    """One Timing for each engine, on its own inputs of `batch` rows."""
    for engine, given in zip(engines, inputs, strict=True):
        _turn(engine, given, seconds / turns, WARM_UP)
    runs: list[list[list[float]]] = [[] for _ in engines]
    for turn in range(turns):
        order = list(range(len(engines)))
        for index in order if turn % 2 == 0 else reversed(order):
            runs[index].append(_turn(engines[index], inputs[index], seconds / turns))
    return [_timing(batch, own) for own in runs]


def _turn(engine: Runs[Given], given: Given, seconds: float, most: int = MOST) -> list[float]:
    """Seconds of each run, of which there is one at least."""
    found: list[float] = []
    until = time.perf_counter() + seconds
    while not found or (len(found) < most and time.perf_counter() < until):
        begun = time.perf_counter()
        engine.run(given)
        found.append(time.perf_counter() - begun)
    return found


def _timing(batch: int, turns: Sequence[Sequence[float]]) -> Timing:
    medians = [1000 * median(turn) for turn in turns]
    latency = median(medians)
    every = np.concatenate([np.asarray(turn) for turn in turns])
    return Timing(
        batch=batch,
        latency_ms=latency,
        latency_p99_ms=float(1000 * np.quantile(every, 0.99)),
        rows_per_s=1000 * batch / latency,
        lowest_ms=min(medians),
        highest_ms=max(medians),
    )
