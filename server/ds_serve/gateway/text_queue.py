"""Requests that wait for room in a text model: who is next, and when there will be room.

Pure: no clock and no task of its own.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

Ticket = TypeVar("Ticket")

SEEN_SECONDS = 30.0
"""How far back the rate is looked at by which requests are let go."""

SOONEST, LATEST = 1.0, 600.0
"""Bounds of what a client that is refused is told to wait, in seconds."""


class Waiting(msgspec.Struct, Generic[Ticket], eq=False):
    """A request that waits. `deadline` is on the caller's clock, in seconds."""

    key: str
    tokens: int
    priority: int
    deadline: float
    ticket: Ticket


class FairQueue(Generic[Ticket]):
    """The first class of priority first; in it keys by turns, so that each gets as many tokens as
    the others; requests of one key in the order in which they came.

    `urgency` says how urgent the next request of a key in a class is: the lower the sooner.
    """

    def __init__(self, urgency: Callable[[str, int], int]) -> None:
        self._urgency = urgency
        self._lanes: dict[tuple[int, str], deque[Waiting[Ticket]]] = {}
        self._count = 0
        self.tokens = 0

    def __len__(self) -> int:
        return self._count

    def push(self, one: Waiting[Ticket]) -> None:
        self._lanes.setdefault((one.priority, one.key), deque()).append(one)
        self._count += 1
        self.tokens += one.tokens

    def first(self) -> tuple[Waiting[Ticket], int] | None:
        """Who is next, and how urgent."""
        if not self._lanes:
            return None
        urgency, lane = min(
            (self._urgency(key, priority), (priority, key)) for priority, key in self._lanes
        )
        return self._lanes[lane][0], urgency

    def remove(self, one: Waiting[Ticket]) -> None:
        """It was let in, or waits no more."""
        lane = self._lanes.get((one.priority, one.key))
        if lane is None or one not in lane:
            return
        lane.remove(one)
        if not lane:
            del self._lanes[one.priority, one.key]
        self._count -= 1
        self.tokens -= one.tokens

    def expired(self, now: float) -> list[Waiting[Ticket]]:
        """Those whose deadline has passed."""
        return [one for lane in self._lanes.values() for one in lane if one.deadline <= now]


class Drain:
    """How many tokens a second are let go, as seen from a total that grows."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def see(self, now: float, total: int) -> None:
        self._seen.append((now, total))
        # Those that are left span the time; one older than that is kept, to measure from.
        while len(self._seen) > 2 and self._seen[1][0] < now - SEEN_SECONDS:
            self._seen.popleft()

    @property
    def rate(self) -> float:
        """Tokens per second; 0 where that is not known."""
        if len(self._seen) < 2:
            return 0.0
        (begin, before), (end, after) = self._seen[0], self._seen[-1]
        return (after - before) / (end - begin) if end > begin else 0.0

    def wait(self, tokens: int) -> float:
        """Seconds until so many are let go; unknown is SOONEST."""
        rate = self.rate
        return min(max(tokens / rate if rate else 0.0, SOONEST), LATEST)


def retry_after(seconds: float) -> float:
    """Whole seconds, as the header has them."""
    return float(math.ceil(seconds))
