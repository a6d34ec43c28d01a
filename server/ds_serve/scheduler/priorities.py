"""The queue of a model with priorities, or with requests that must not wait too long.

Pure, as ds_serve.scheduler.queue, which serves the models without them. Within a lane the highest
level comes first, then what has not waited longer than its level's policy allows, then what came
first. A request that has waited too long is refused, or stands behind all others of its level.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field

from ds_engines.errors import Overloaded, ServeError
from ds_engines.spec import BatchPolicy, QueuePolicy
from ds_serve.scheduler.queue import NEVER, Batch, Entry, rows_due

SLACK = 64
"""Marks of requests that have left, beyond as many as wait, before they are thrown away."""

Rank = tuple[int, bool, int]
"""Level, whether it has been delayed, and a number that grows: the lowest runs first."""


@dataclass(slots=True, eq=False)
class Ranked(Entry):
    """`priority` as the client says it, `timeout_us` its own timeout, 0 for none."""

    priority: int = 0
    timeout_us: int = 0
    level: int = field(default=0, init=False)
    rank: Rank = field(default=(0, False, 0), init=False)


@dataclass(slots=True)
class _Lane:
    """`oldest` holds what waits as it came; `order` says how it will run, and holds marks of what
    has left besides: places and keys only, so that no tensors are kept.
    """

    key: Hashable
    oldest: OrderedDict[Hashable, Ranked] = field(default_factory=OrderedDict)
    order: list[tuple[Rank, Hashable]] = field(default_factory=list)
    rows: int = 0

    def put(self, entry: Ranked) -> None:
        """In the place that its rank gives it; it may have stood in another."""
        heapq.heappush(self.order, (entry.rank, entry.key))
        if len(self.order) > 2 * len(self.oldest) + SLACK:
            self.order = [(each.rank, each.key) for each in self.oldest.values()]
            heapq.heapify(self.order)

    def head(self) -> Ranked:
        while True:
            rank, key = self.order[0]
            entry = self.oldest.get(key)
            if entry is not None and entry.rank == rank:
                return entry
            heapq.heappop(self.order)


class PriorityQueue:
    """As Queue. Each priority level has its own bound."""

    def __init__(self, policy: BatchPolicy) -> None:
        self._policy = policy
        self._policies: dict[int, QueuePolicy] = {}
        self._number = 0
        self._lanes: dict[Hashable, _Lane] = {}
        self._entries: dict[Hashable, Ranked] = {}
        self._waiting: Counter[int] = Counter()
        self._ends: list[tuple[float, int, Hashable]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, entry: Ranked) -> None:
        """Add a request. Raises Overloaded where its level's queue is full."""
        level = entry.level = self._policy.level(entry.priority)
        policy = self._policy_of(level)
        if self._waiting[level] >= policy.max_queue_size:
            raise Overloaded(_full(self._policy, level, policy))
        self._waiting[level] += 1
        self._entries[entry.key] = entry
        lane = self._lanes.get(entry.lane)
        if lane is None:
            lane = self._lanes[entry.lane] = _Lane(entry.lane)
        lane.oldest[entry.key] = entry
        lane.rows += entry.rows
        self._place(lane, entry, delayed=False)
        self._watch(entry, entry.arrived + _patience(policy, entry.timeout_us))

    def cancel(self, key: Hashable) -> Ranked | None:
        """Drop a waiting request; None where it does not wait (any more)."""
        entry = self._entries.get(key)
        if entry is not None:
            self._remove(entry)
        return entry

    def waiting(self) -> list[Entry]:
        """What waits, oldest first."""
        return list(self._entries.values())

    def take(self, now: float) -> Batch:
        """The next batch: of the lane that is due and has the first of all requests."""
        batch = self.expire(now)
        due = [(lane.head().rank, lane) for lane in self._lanes.values() if self._size(lane, now)]
        if not due:
            return batch
        _, lane = min(due, key=lambda found: found[0])
        size, rows = self._size(lane, now), 0
        while lane.oldest:
            head = lane.head()
            if batch.entries and rows + head.rows > size:
                break
            rows += head.rows
            batch.entries.append(head)
            self._remove(head)
        return batch

    def expire(self, now: float) -> Batch:
        """Only what may not wait any longer: a batch without entries."""
        batch = Batch()
        refused: list[tuple[Entry, ServeError]] = []
        while self.next_end() <= now:
            entry = self._entries[heapq.heappop(self._ends)[2]]
            policy = self._policy_of(entry.level)
            if entry.deadline <= now:
                self._remove(entry)
                batch.late.append(entry)
            elif policy.timeout_action == "DELAY":
                self._place(self._lanes[entry.lane], entry, delayed=True)
                self._watch(entry, NEVER)
            else:
                self._remove(entry)
                refused.append((entry, _expired(entry, now)))
        batch.refused = refused or ()
        return batch

    def next_due(self) -> float:
        """When `take` will have a batch, or a request has waited too long; NEVER: never."""
        heads = (next(iter(lane.oldest.values())).arrived for lane in self._lanes.values())
        due = min(heads, default=NEVER) + self._policy.max_delay_us / 1e6
        return min(due, self.next_end())

    def next_end(self) -> float:
        """When the next request has waited too long; NEVER where none will."""
        while self._ends and not self._ends_by(self._ends[0]):
            heapq.heappop(self._ends)
        return self._ends[0][0] if self._ends else NEVER

    def drain(self) -> list[Entry]:
        """Empty the queue, and return what waited in it."""
        left = self.waiting()
        for kept in (self._entries, self._lanes, self._waiting, self._ends):
            kept.clear()
        return left

    def _policy_of(self, level: int) -> QueuePolicy:
        found = self._policies.get(level)
        if found is None:
            found = self._policies[level] = self._policy.queue_policy(level)
        return found

    def _place(self, lane: _Lane, entry: Ranked, delayed: bool) -> None:
        self._number += 1
        entry.rank = (entry.level, delayed, self._number)
        lane.put(entry)

    def _watch(self, entry: Ranked, until: float) -> None:
        end = min(entry.deadline, until)
        if end == NEVER:
            return
        heapq.heappush(self._ends, (end, entry.rank[2], entry.key))
        if len(self._ends) > 2 * len(self._entries) + SLACK:
            self._ends = [each for each in self._ends if self._ends_by(each)]
            heapq.heapify(self._ends)

    def _ends_by(self, end: tuple[float, int, Hashable]) -> bool:
        """Whether what it says is still so."""
        entry = self._entries.get(end[2])
        return entry is not None and entry.rank[2] == end[1]

    def _remove(self, entry: Ranked) -> None:
        del self._entries[entry.key]
        self._waiting[entry.level] -= 1
        lane = self._lanes[entry.lane]
        del lane.oldest[entry.key]
        lane.rows -= entry.rows
        if not lane.oldest:
            del self._lanes[entry.lane]

    def _size(self, lane: _Lane, now: float) -> int:
        return rows_due(self._policy, lane.rows, next(iter(lane.oldest.values())).arrived, now)


def _patience(policy: QueuePolicy, own_us: int) -> float:
    """Seconds that a request may wait: a timeout of its own can only be shorter."""
    allowed = [policy.timeout_us, own_us if policy.allow_timeout_override else 0]
    return min((timeout for timeout in allowed if timeout), default=NEVER) / 1e6


def _full(policy: BatchPolicy, level: int, queue: QueuePolicy) -> str:
    which = f"the queue of priority {level}" if policy.priority_levels else "the queue"
    return (
        f"{which} is full: {queue.max_queue_size} requests wait, "
        f"and max_queue_size is {queue.max_queue_size}"
    )


def _expired(entry: Ranked, now: float) -> Overloaded:
    return Overloaded(
        f"the request's timeout expired after {now - entry.arrived:.3f} s in the queue"
    )
