"""A circuit breaker: a server that fails again and again is left alone for a while."""

from __future__ import annotations

import time
from collections.abc import Callable

FAILURES = 5
"""In a row, after which a server is left alone."""

PAUSE, LONGEST = 5.0, 300.0
"""Seconds for which it is, the first time, and at most: each time it is twice as long."""

CLOSED, HALF_OPEN, OPEN = range(3)


class Breaker:
    """CLOSED lets all requests through, OPEN none. After its pause it is HALF_OPEN: one request
    goes through, and what comes of it decides. `clock` is in seconds. `silent`: what failed
    last was that there was no answer.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.state = CLOSED
        self.silent = False
        self._clock = clock
        self._failures = 0
        self._pause = PAUSE
        self._until = 0.0

    @property
    def wait(self) -> float:
        """Seconds until a request may go through; 0 where one may now, or will be the proof."""
        return max(0.0, self._until - self._clock()) if self.state == OPEN else 0.0

    def allows(self) -> bool:
        """Whether a request may go through. Tell it what became of it: one of the three below."""
        if self.state == OPEN and self._clock() >= self._until:
            self.state = HALF_OPEN
            return True
        return self.state == CLOSED

    def succeeded(self) -> None:
        self.state, self._failures, self._pause = CLOSED, 0, PAUSE

    def failed(self, *, silent: bool = False) -> None:
        self._failures += 1
        self.silent = silent
        if self.state == HALF_OPEN or self._failures >= FAILURES:
            self.state = OPEN
            self._until = self._clock() + self._pause
            self._pause = min(2 * self._pause, LONGEST)

    def hold(self, seconds: float) -> None:
        """Nobody is there, whatever requests have found: let none through for so long."""
        self.state, self.silent = OPEN, True
        self._until = self._clock() + seconds

    def found(self) -> None:
        """Somebody is there, which is all that was wrong, or not."""
        if self.state != CLOSED and self.silent:
            self.succeeded()

    def gave_up(self) -> None:
        """The client left before anything was known."""
        if self.state == HALF_OPEN:
            self.state = OPEN  # and its time has come: the next request is the proof
