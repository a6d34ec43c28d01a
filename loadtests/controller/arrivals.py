"""When requests arrive: at random around a rate that changes in steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SPREAD = 0.001
"""Seconds within which the requests of a burst arrive."""


def steps(
    rates: Sequence[float], seconds: float, seed: int, burst: int = 1
) -> tuple[list[float], NDArray[np.int64]]:
    """Times of arrival, rising, and the step that each is in; `seconds` at each rate.

    Bursts are as random as single requests, and hold `burst` requests each.
    """
    random = np.random.default_rng(seed)
    times: list[float] = []
    for index, rate in enumerate(rates):
        count = random.poisson(rate * seconds / burst)
        first = np.repeat(random.uniform(0, seconds, count), burst)
        times += (index * seconds + first + _within(random, len(first), burst)).tolist()
    times.sort()
    phase = np.minimum(np.array(times) // seconds, len(rates) - 1).astype(np.int64)
    return times, phase


def _within(random: np.random.Generator, count: int, burst: int) -> NDArray[np.float64]:
    return random.uniform(0, SPREAD if burst > 1 else 0, count)
