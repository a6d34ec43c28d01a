"""How the load goes up and down: the share of full load at each moment of a run."""

from __future__ import annotations

import math
from typing import Literal

Shape = Literal["constant", "step", "spike", "soak"]

STEP_AT = 1 / 3
SPIKE = (0.4, 0.6)


def share(shape: Shape, passed: float, low: float) -> float:
    """Of full load, when `passed` of the run's time (0 to 1) has gone by; `low` is a share too."""
    if shape == "constant":
        return 1.0
    if shape == "soak":
        return low
    start, end = (STEP_AT, 1.0) if shape == "step" else SPIKE
    return 1.0 if start <= passed <= end else low


def users(shape: Shape, passed: float, low: float, most: int) -> int:
    """How many of `most` users are there; one at least."""
    return max(1, math.ceil(share(shape, passed, low) * most - 1e-9))


def counted(shape: Shape, duration: float, warmup: float) -> tuple[float, float]:
    """Seconds from the start between which the rate is taken: the part under full load."""
    start, end = {"step": (STEP_AT, 1.0), "spike": SPIKE}.get(shape, (0.0, 1.0))
    return max(start * duration, warmup), end * duration
