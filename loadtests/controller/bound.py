"""What a controller could win at most, and what one does, under the simulated clock.

At each step of the rate the best of all fixed settings is found. No controller that moves delay and
slots can be better than that, but for what the time between the settings allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtests.controller.arrivals import steps
from loadtests.controller.policy import Controller, Setting
from loadtests.controller.simulation import Engine, Simulation

ENGINES = (
    Engine("a tiny network, one processor", 0.00015, 0.00003, 1),
    Engine("an encoder on 2 processors", 0.002, 0.010, 1.3),
    Engine("an accelerator", 0.008, 0.0001, 1),
    Engine("an accelerator, runs overlap by half", 0.008, 0.0001, 1.5),
)
LOADS = (0.1, 0.5, 0.85)
"""The steps: shares of the rate that full batches one after the other would reach."""

DELAYS = (0.0, 0.25, 0.5, 1.0, 2.0)
"""In times of a batch of one row."""

DEFAULT = Setting(0.0, 1)
REQUESTS = 6000
"""In the middle step."""

DECISIONS = 40
"""Of the controller, in each step of the rate."""


@dataclass(frozen=True)
class Case:
    engine: Engine
    burst: int
    repeat: int = 0

    @property
    def rates(self) -> tuple[float, ...]:
        return tuple(self.engine.highest * load for load in LOADS)

    @property
    def seconds(self) -> float:
        return REQUESTS / self.rates[1]

    def p99(self, setting: Setting, controller: Controller | None = None) -> NDArray[np.float64]:
        """Seconds, for each step: of its second half, so that a controller has had time."""
        times, step = steps(self.rates, self.seconds, self.repeat, self.burst)
        period = self.seconds / DECISIONS
        took = Simulation(self.engine, setting, times, controller, period).run()
        settled = np.array(times) % self.seconds > self.seconds / 2
        chosen = [took[(step == index) & settled] for index in range(len(LOADS))]
        return np.array([np.percentile(each, 99) for each in chosen])

    def settings(self) -> list[Setting]:
        """The fixed ones; the first is the server's default."""
        unit = self.engine.seconds(1)
        return [Setting(share * unit, slots) for slots in (1, 2) for share in DELAYS]

    def controlled(self, begin: Setting, target: float) -> NDArray[np.float64]:
        longest = DELAYS[-1] * self.engine.seconds(1)
        return self.p99(begin, Controller(target, longest, 2, begin))


@dataclass(frozen=True)
class Row:
    """p99 in seconds at each step."""

    what: str
    p99: NDArray[np.float64]


def rows(engine: Engine, burst: int, repeats: int) -> Iterator[Row]:
    """Medians over the repeats. The first is the default, that others are compared with."""
    cases = [Case(engine, burst, repeat) for repeat in range(repeats)]
    fixed = {
        setting: np.median([case.p99(setting) for case in cases], axis=0)
        for setting in cases[0].settings()
    }
    default = fixed[DEFAULT]
    two = Setting(0.0, 2)
    best = min(fixed, key=lambda setting: float(np.mean(fixed[setting] / default)))
    yield Row(f"default: {DEFAULT}", default)
    yield Row(f"as given: {two}", fixed[two])
    yield Row(f"best of the fixed: {best}", fixed[best])
    yield Row("best at each rate: the most to win", np.min(list(fixed.values()), axis=0))
    reachable = float(np.median(np.min(list(fixed.values()), axis=0))) * 1.2
    for begin in (DEFAULT, two):
        seen = [case.controlled(begin, reachable) for case in cases]
        yield Row(f"controller from {begin}", np.median(seen, axis=0))
