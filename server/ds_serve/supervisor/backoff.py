"""When to start a crashed process again, and when to give up."""

from __future__ import annotations

FIRST_DELAY = 0.25
LONGEST_DELAY = 15.0
STEADY_AFTER = 60.0
"""Seconds of service after which earlier crashes are forgotten."""

MOST_CRASHES = 6


class Backoff:
    """Delays double from crash to crash: 0.25 s, 0.5 s, ... 15 s at most."""

    def __init__(self) -> None:
        self.crashes = 0

    def after(self, served: float) -> float | None:
        """Seconds to wait before the next start; None to give up.

        `served`: how many seconds the process was ready before it ended.
        """
        if served >= STEADY_AFTER:
            self.crashes = 0
        self.crashes += 1
        if self.crashes >= MOST_CRASHES:
            return None
        return min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** (self.crashes - 1))
