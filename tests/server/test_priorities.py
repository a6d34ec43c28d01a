"""The queue with priorities and policies against a plain model, under the test's own clock."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ds_engines.errors import Overloaded
from ds_engines.spec import BatchPolicy, QueuePolicy
from ds_serve.scheduler.priorities import PriorityQueue, Ranked
from ds_serve.scheduler.queue import NEVER, Batch

TICK = 1 / 1024

queues = st.builds(
    QueuePolicy,
    max_queue_size=st.sampled_from([2, 5, 50]),
    timeout_us=st.sampled_from([0, 15_625, 62_500]),  # 16 and 64 ticks
    timeout_action=st.sampled_from(["REJECT", "DELAY"]),
    allow_timeout_override=st.booleans(),
)
policies = st.builds(
    lambda queue, second, levels, **rest: BatchPolicy(
        max_queue_size=queue.max_queue_size,
        timeout_us=queue.timeout_us,
        timeout_action=queue.timeout_action,
        allow_timeout_override=queue.allow_timeout_override,
        priority_levels=levels,
        default_priority=min(levels, 2),
        priority_policies=((2, second),) if levels else (),
        **rest,
    ),
    queue=queues,
    second=queues,
    levels=st.sampled_from([0, 3]),
    max_batch_size=st.sampled_from([0, 4, 8]),
    max_delay_us=st.sampled_from([0, 15_625]),
    preferred_sizes=st.sampled_from([(), (3,)]),
)


class Machine(RuleBasedStateMachine):
    @initialize(policy=policies)
    def start(self, policy: BatchPolicy) -> None:
        self.queue = PriorityQueue(policy)
        self.policy = policy
        self.now = 0.0
        self.count = 0
        self.waiting: list[Ranked] = []
        self.delayed: list[Ranked] = []
        self.ended: set[object] = set()

    def policy_of(self, entry: Ranked) -> QueuePolicy:
        return self.policy.queue_policy(self.policy.level(entry.priority))

    def end(self, entry: Ranked) -> float:
        """When its policy's patience with it ends."""
        queue = self.policy_of(entry)
        own = entry.timeout_us if queue.allow_timeout_override else 0
        allowed = [timeout for timeout in (queue.timeout_us, own) if timeout]
        return entry.arrived + min(allowed) / 1e6 if allowed else NEVER

    @rule(
        lane=st.sampled_from("ab"),
        rows=st.sampled_from([1, 1, 2, 5]),
        priority=st.integers(0, 5),
        patience=st.sampled_from([None, 5, 40]),
        own=st.sampled_from([0, 7_812, 10**9]),
    )
    def push(self, lane: str, rows: int, priority: int, patience: int | None, own: int) -> None:
        self.count += 1
        deadline = NEVER if patience is None else self.now + patience * TICK
        entry = Ranked(self.count, lane, rows, self.now, deadline, None, priority, own)
        level = self.policy.level(priority)
        alike = [e for e in self.waiting if self.policy.level(e.priority) == level]
        if len(alike) < self.policy_of(entry).max_queue_size:
            self.queue.push(entry)
            self.waiting.append(entry)
        else:
            with pytest.raises(Overloaded, match=f"max_queue_size is {len(alike)}"):
                self.queue.push(entry)

    @rule(ticks=st.sampled_from([1, 8, 30]))
    def wait(self, ticks: int) -> None:
        self.now += ticks * TICK

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.waiting))
        assert self.queue.cancel(entry.key) is entry
        self.leave(entry)

    @rule()
    def expire(self) -> None:
        self.settle(self.queue.expire(self.now))

    @rule()
    def take(self) -> None:
        batch = self.queue.take(self.now)
        self.settle(batch)
        due = {lane: size for lane in "ab" if (size := self.size(lane))}
        assert bool(batch.entries) == bool(due)
        if not batch.entries:
            self.look_ahead()
            return
        order = sorted(self.waiting, key=self.rank)
        first = next(entry for entry in order if entry.lane in due)
        alike = [entry for entry in order if entry.lane == first.lane]
        taken = len(batch.entries)
        assert batch.entries == alike[:taken]
        rows = sum(entry.rows for entry in batch.entries)
        assert rows <= due[first.lane] or taken == 1
        assert taken == len(alike) or rows + alike[taken].rows > due[first.lane]
        for entry in batch.entries:
            self.leave(entry)

    def look_ahead(self) -> None:
        """Nothing happens before `next_due`."""
        due = self.queue.next_due()
        assert due > self.now
        if due != NEVER:
            early = copy.deepcopy(self.queue).take(due - TICK / 64)
            assert early == Batch()

    def settle(self, batch: Batch) -> None:
        """What waited too long is told, once, and nothing else is."""
        late = [entry for entry in self.waiting if entry.deadline <= self.now]
        assert sorted(e.key for e in batch.late) == sorted(e.key for e in late)
        ended = [e for e in self.waiting if e not in late and self.end(e) <= self.now]
        refused = [e for e in ended if self.policy_of(e).timeout_action == "REJECT"]
        assert sorted(e.key for e, _ in batch.refused) == sorted(e.key for e in refused)
        assert all("timeout expired" in str(error) for _, error in batch.refused)
        for entry in (*late, *refused):
            self.leave(entry)
        fresh = [e for e in ended if e not in refused and e not in self.delayed]
        self.delayed += sorted(fresh, key=lambda entry: (self.end(entry), entry.key))

    def rank(self, entry: Ranked) -> tuple[int, bool, int]:
        late = entry in self.delayed
        place = self.delayed.index(entry) if late else self.waiting.index(entry)
        return (self.policy.level(entry.priority), late, place)

    def size(self, lane: str) -> int:
        entries = [entry for entry in self.waiting if entry.lane == lane]
        rows = sum(entry.rows for entry in entries)
        most = max(1, self.policy.max_batch_size)
        if not entries:
            return 0
        if rows >= most or entries[0].arrived + self.policy.max_delay_us / 1e6 <= self.now:
            return most
        fitting = [size for size in self.policy.preferred_sizes if size <= min(rows, most)]
        return max(fitting, default=0)

    def leave(self, entry: Ranked) -> None:
        """Nothing leaves twice."""
        assert entry.key not in self.ended
        self.ended.add(entry.key)
        self.waiting.remove(entry)
        if entry in self.delayed:
            self.delayed.remove(entry)

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "queue"):
            assert [entry.key for entry in self.queue.waiting()] == [e.key for e in self.waiting]
            assert len(self.queue) == len(self.waiting)

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            assert len(self.queue.drain()) == len(self.waiting)
            assert (len(self.queue), self.queue.next_due()) == (0, NEVER)


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestPriorityQueue = Machine.TestCase


def ranked(key: int, priority: int = 0, **options: object) -> Ranked:
    return Ranked(key, "lane", 1, 0.0, priority=priority, **options)  # type: ignore[arg-type]


def keys(batch: Batch) -> list[object]:
    return [entry.key for entry in batch.entries]


def test_the_highest_priority_runs_first_and_each_in_order() -> None:
    queue = PriorityQueue(BatchPolicy(max_batch_size=2, priority_levels=3, default_priority=2))
    for key, priority in enumerate([3, 0, 1, 9, 1]):
        queue.push(ranked(key, priority))
    assert [keys(queue.take(0.0)) for _ in range(3)] == [[2, 4], [1, 3], [0]]


def test_what_waited_too_long_stands_behind_its_own_level_only() -> None:
    policy = BatchPolicy(
        max_batch_size=1,
        timeout_us=1000,
        timeout_action="DELAY",
        priority_levels=2,
        default_priority=1,
    )
    queue = PriorityQueue(policy)
    queue.push(ranked(1))
    queue.push(ranked(2, priority=2))
    queue.expire(0.5)
    queue.push(Ranked(3, "lane", 1, 0.5))
    assert [keys(queue.take(0.5)) for _ in range(3)] == [[3], [1], [2]]


def test_a_levels_bound_is_its_own() -> None:
    own = ((1, QueuePolicy(max_queue_size=1)),)
    policy = BatchPolicy(
        4, max_queue_size=2, priority_levels=2, default_priority=2, priority_policies=own
    )
    queue = PriorityQueue(policy)
    queue.push(ranked(1, priority=1))
    with pytest.raises(Overloaded, match="queue of priority 1 is full: 1 requests wait"):
        queue.push(ranked(2, priority=1))
    queue.push(ranked(3))
    queue.push(ranked(4))
    with pytest.raises(Overloaded, match="queue of priority 2 is full: 2 requests wait"):
        queue.push(ranked(5))


def test_what_has_left_is_not_kept() -> None:
    class Tensors:
        pass

    policy = BatchPolicy(max_batch_size=4, priority_levels=2, default_priority=1)
    queue = PriorityQueue(policy)
    held = []
    for key in range(300):
        entry = ranked(key, deadline=1000.0)
        entry.payload = Tensors()
        held.append(weakref.ref(entry.payload))
        queue.push(entry)
        queue.cancel(key) if key % 2 else queue.take(0.0)
        del entry
    gc.collect()
    assert all(each() is None for each in held)
    assert len(queue._ends) < 100
