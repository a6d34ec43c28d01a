"""A worker's scheduler under a simulated clock: a slot first, then a batch for it, then the run."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from loadtests.controller.policy import Controller, Setting

NEVER = float("inf")
SOON = 1e-12
"""Seconds that two moments may differ by and be the same."""


@dataclass(frozen=True)
class Engine:
    """A batch of n rows takes `batch` + n * `row` seconds of the processor or accelerator.

    `at_once` batches run together at full speed; more than that share it equally.
    """

    name: str
    batch: float
    row: float
    at_once: float
    most: int = 64

    def seconds(self, rows: int) -> float:
        return self.batch + rows * self.row

    @property
    def highest(self) -> float:
        """Rows a second in full batches, one after the other."""
        return self.most / self.seconds(self.most)


@dataclass
class Simulation:
    """Requests of one row that arrive at the times `arrivals`, in seconds, rising."""

    engine: Engine
    setting: Setting
    arrivals: Sequence[float]
    controller: Controller | None = None
    period: float = 1.0
    now: float = 0.0
    batches: list[list[int]] = field(default_factory=list)
    latency: dict[int, float] = field(default_factory=dict)
    _arrived: int = 0
    _waiting: deque[int] = field(default_factory=deque)
    _running: list[tuple[float, list[int]]] = field(default_factory=list)
    _decided: float = 0.0

    def run(self) -> NDArray[np.float64]:
        """Seconds from arrival to answer, in order of arrival."""
        while len(self.latency) < len(self.arrivals):
            self._advance(max(self.now, self._next()))
            self._control()
            self._arrive()
            self._finish()
            self._start()
        return np.array([self.latency[index] for index in range(len(self.arrivals))])

    def _speed(self) -> float:
        return min(1.0, self.engine.at_once / max(1, len(self._running)))

    def _next(self) -> float:
        """When something happens next."""
        arrival = self.arrivals[self._arrived] if self._arrived < len(self.arrivals) else NEVER
        finish = min((left for left, _ in self._running), default=NEVER) / self._speed() + self.now
        decision = self._decided + self.period if self.controller else NEVER
        return min(arrival, finish, self._due(), decision)

    def _due(self) -> float:
        if not self._waiting or len(self._running) >= self.setting.slots:
            return NEVER
        return self.arrivals[self._waiting[0]] + self.setting.delay

    def _advance(self, to: float) -> None:
        done = (to - self.now) * self._speed()
        self._running = [(left - done, batch) for left, batch in self._running]
        self.now = to

    def _control(self) -> None:
        if self.controller and self.now >= self._decided + self.period - SOON:
            self._decided = self.now
            self.setting = self.controller.decide()

    def _arrive(self) -> None:
        while self._arrived < len(self.arrivals) and self.arrivals[self._arrived] <= self.now:
            self._waiting.append(self._arrived)
            self._arrived += 1

    def _finish(self) -> None:
        for left, batch in self._running:
            if left > SOON:
                continue
            took = {index: self.now - self.arrivals[index] for index in batch}
            self.latency |= took
            if self.controller:
                self.controller.observe(list(took.values()))
        self._running = [each for each in self._running if each[0] > SOON]

    def _start(self) -> None:
        while len(self._waiting) >= self.engine.most or self._due() <= self.now + SOON:
            if len(self._running) >= self.setting.slots:
                return
            size = min(self.engine.most, len(self._waiting))
            batch = [self._waiting.popleft() for _ in range(size)]
            self.batches.append(batch)
            self._running.append((self.engine.seconds(size), batch))
