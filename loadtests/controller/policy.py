"""A controller of delay and slots, as it would run in a worker: told latencies, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

LEAST = 50
"""Latencies that a p99 is taken of, at least."""

CLEAR = 0.05
"""A p99 that differs by less than this share has not changed."""

STEPS = 8
"""From no delay to the longest."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Seconds that the oldest request may wait for others, and the slots in use."""

    delay: float
    slots: int

    def __str__(self) -> str:
        return f"{self.slots} slot{'s' * (self.slots > 1)}, {self.delay * 1e3:.3g} ms"


@dataclass
class Controller:
    """Climbs towards a p99 of `target` seconds, one step of one knob at a time.

    A step is kept while p99 does not get worse by it; otherwise it is taken back, and the next
    knob or direction is tried. Within the target nothing moves. The delay stays within 0 and
    `most_delay`, the slots within 1 and `most_slots`.
    """

    target: float
    most_delay: float
    most_slots: int
    setting: Setting
    _latencies: list[float] = field(default_factory=list)
    _before: tuple[Setting, float] | None = None
    _turn: int = 0

    def observe(self, latencies: Sequence[float]) -> None:
        """Seconds from arrival to answer, of each request of a batch."""
        self._latencies.extend(latencies)

    def decide(self) -> Setting:
        """The setting from now on; as it was where too little has been seen since the last."""
        if len(self._latencies) < LEAST:
            return self.setting
        p99 = _p99(self._latencies)
        self._latencies.clear()
        before, self._before = self._before, None
        if before is not None and p99 > before[1] * (1 + CLEAR):
            self.setting = before[0]
            self._turn += 1
        elif p99 > self.target:
            self._before = (self.setting, p99)
            self.setting = self._step()
        return self.setting

    def _step(self) -> Setting:
        delay, slots = self.setting.delay, self.setting.slots
        step = self.most_delay / STEPS
        ways = (
            Setting(min(self.most_delay, delay + step), slots),
            Setting(delay, max(1, slots - 1)),
            Setting(max(0.0, delay - step), slots),
            Setting(delay, min(self.most_slots, slots + 1)),
        )
        for turn in range(self._turn, self._turn + len(ways)):
            if ways[turn % len(ways)] != self.setting:
                self._turn = turn
                break
        return ways[self._turn % len(ways)]


def _p99(latencies: Sequence[float]) -> float:
    return sorted(latencies)[ceil(0.99 * len(latencies)) - 1]
