"""The queue of one model: pure, and told what time it is.

Requests wait in lanes. All requests of a lane can be joined into one batch: their tensors agree
in everything but the number of rows. A lane is due when it can fill a batch or when its oldest
request has waited `max_delay_us`, measured from its arrival at the gateway.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ds_engines.errors import Overloaded, ServeError
from ds_engines.spec import BatchPolicy

NEVER = float("inf")


@dataclass(slots=True, eq=False)
class Entry:
    """A request in the queue. Times are in seconds of one monotonic clock."""

    key: Hashable
    lane: Hashable
    rows: int
    arrived: float
    deadline: float = NEVER
    payload: object = None


@dataclass(slots=True)
class Lane:
    """Requests that may share a batch, oldest first, and the rows that they hold together."""

    key: Hashable
    waiting: deque[Entry] = field(default_factory=deque)
    rows: int = 0


@dataclass(slots=True)
class Batch:
    """What `take` found: requests to run together, and requests that came too late to run.

    `refused` are others that will not be run, each with the reason.
    """

    entries: list[Entry] = field(default_factory=list)
    late: list[Entry] = field(default_factory=list)
    refused: Sequence[tuple[Entry, ServeError]] = ()


class AnyQueue(Protocol):
    """What a batcher needs of a queue."""

    def __len__(self) -> int: ...

    def take(self, now: float) -> Batch:
        """The next batch; no entries where none is due."""

    def next_due(self) -> float:
        """When `take` will have something if nothing more arrives; NEVER for never."""


def rows_due(policy: BatchPolicy, rows: int, oldest: float, now: float) -> int:
    """How many rows a batch may take of `rows` that wait; 0 where they should wait on.

    `oldest`: when the first of them arrived.
    """
    most = max(1, policy.max_batch_size)
    if rows >= most or oldest + policy.max_delay_us / 1e6 <= now:
        return most
    return max((size for size in policy.preferred_sizes if size <= min(rows, most)), default=0)


class Queue:
    """Bounded: `push` raises Overloaded beyond `policy.max_queue_size` requests."""

    def __init__(self, policy: BatchPolicy) -> None:
        self._policy = policy
        self._most = max(1, policy.max_batch_size)
        self._delay = policy.max_delay_us / 1e6
        self._preferred = tuple(sorted(s for s in policy.preferred_sizes if s <= self._most))
        self._lanes: dict[Hashable, Lane] = {}
        self._entries: dict[Hashable, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, entry: Entry) -> None:
        """Add a request. Raises Overloaded where the queue is full."""
        if len(self._entries) >= self._policy.max_queue_size:
            raise Overloaded(
                f"the queue is full: {len(self._entries)} requests wait, "
                f"and max_queue_size is {self._policy.max_queue_size}"
            )
        lane = self._lanes.get(entry.lane)
        if lane is None:
            lane = self._lanes[entry.lane] = Lane(entry.lane)
        lane.waiting.append(entry)
        lane.rows += entry.rows
        self._entries[entry.key] = entry

    def cancel(self, key: Hashable) -> Entry | None:
        """Drop a waiting request; None where it does not wait (any more).

        It leaves its lane at once: kept there until its turn, cancelled requests would hold
        memory beyond the queue's bound.
        """
        entry = self._entries.pop(key, None)
        if entry is not None:
            lane = self._lanes[entry.lane]
            lane.waiting.remove(entry)
            lane.rows -= entry.rows
            if not lane.waiting:
                del self._lanes[entry.lane]
        return entry

    def waiting(self) -> list[Entry]:
        """What waits, oldest first."""
        return list(self._entries.values())

    def take(self, now: float) -> Batch:
        """The next batch, oldest lane first; no entries where none is due."""
        batch = Batch()
        lane = self._due(now, batch.late)
        if lane is None:
            return batch
        size = self._size(lane, now)
        rows = 0
        while (head := self._head(lane, now, batch.late)) is not None:
            if batch.entries and rows + head.rows > size:
                break
            lane.waiting.popleft()
            lane.rows -= head.rows
            rows += head.rows
            del self._entries[head.key]
            batch.entries.append(head)
        return batch

    def next_due(self) -> float:
        """When `take` will have a batch if nothing more arrives; NEVER where nothing waits."""
        heads = (lane.waiting[0].arrived for lane in self._lanes.values())
        return min(heads, default=NEVER) + self._delay

    def drain(self) -> list[Entry]:
        """Empty the queue, and return what waited in it."""
        left = list(self._entries.values())
        self._entries.clear()
        self._lanes.clear()
        return left

    def _due(self, now: float, late: list[Entry]) -> Lane | None:
        oldest: Lane | None = None
        arrived = NEVER
        for lane in list(self._lanes.values()):
            head = self._head(lane, now, late)
            if head is not None and head.arrived < arrived and self._size(lane, now):
                oldest, arrived = lane, head.arrived
        return oldest

    def _size(self, lane: Lane, now: float) -> int:
        """How many rows a batch of this lane may take now; 0 where it should go on waiting."""
        if lane.rows >= self._most or lane.waiting[0].arrived + self._delay <= now:
            return self._most
        return max((size for size in self._preferred if size <= lane.rows), default=0)

    def _head(self, lane: Lane, now: float, late: list[Entry]) -> Entry | None:
        """The oldest request that is not too late; those before it leave the queue."""
        while lane.waiting:
            head = lane.waiting[0]
            if head.deadline > now:
                return head
            lane.waiting.popleft()
            late.append(head)
            lane.rows -= head.rows
            del self._entries[head.key]
        self._lanes.pop(lane.key, None)
        return None
