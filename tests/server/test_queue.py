"""The queue against a model of it, under a clock that only the test moves."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from ds_engines.errors import Overloaded
from ds_engines.spec import BatchPolicy
from ds_serve.scheduler.queue import NEVER, Entry, Queue

# Whole milliseconds as binary fractions: sums of them are exact.
TICK = 1 / 1024

policies = st.builds(
    BatchPolicy,
    max_batch_size=st.sampled_from([0, 4, 8]),
    max_delay_us=st.sampled_from([0, 15_625, 125_000]),  # 16 and 128 ticks
    preferred_sizes=st.sampled_from([(), (3,), (5, 2), (9,)]),
    max_queue_size=st.sampled_from([2, 8, 100]),
)


requests = st.tuples(
    st.sampled_from(["a", "a", ("b", 1)]),
    st.sampled_from([1, 1, 2, 3, 9]),
    st.sampled_from([None, None, 0, 10, 100]),
    st.integers(0, 3),
)
"""Lane, rows, ticks to the deadline, ticks since it arrived."""


@dataclass
class Model:
    """What must be true of the queue, written for clearness and not for speed."""

    policy: BatchPolicy
    waiting: list[Entry] = field(default_factory=list)

    @property
    def most(self) -> int:
        return max(1, self.policy.max_batch_size)

    @property
    def delay(self) -> float:
        return self.policy.max_delay_us / 1e6

    def lane(self, key: object) -> list[Entry]:
        return [entry for entry in self.waiting if entry.lane == key]

    def wanted(self, now: float) -> dict[object, list[Entry]]:
        """Lanes without their expired heads; lanes of none but those are left out."""
        lanes = {entry.lane: self.lane(entry.lane) for entry in self.waiting}
        for entries in lanes.values():
            while entries and entries[0].deadline <= now:
                del entries[0]
        return {key: entries for key, entries in lanes.items() if entries}

    def size(self, entries: list[Entry], now: float) -> int:
        """Rows that a batch may take now, 0 where the lane is not due."""
        rows = sum(entry.rows for entry in entries)
        if rows >= self.most or now >= entries[0].arrived + self.delay:
            return self.most
        fitting = [s for s in self.policy.preferred_sizes if s <= min(rows, self.most)]
        return max(fitting, default=0)


class QueueMachine(RuleBasedStateMachine):
    entries = Bundle("entries")

    @initialize(policy=policies)
    def start(self, policy: BatchPolicy) -> None:
        self.queue = Queue(policy)
        self.model = Model(policy)
        self.now = self.arrived = 0.0
        self.count = 0

    @rule(target=entries, burst=st.lists(requests, min_size=1, max_size=4))
    def push(self, burst: list[tuple[object, int, int | None, int]]):
        return multiple(*(entry for one in burst if (entry := self.push_one(*one))))

    def push_one(self, lane: object, rows: int, patience: int | None, late_by: int):
        self.count += 1
        deadline = NEVER if patience is None else self.now + patience * TICK
        # It was on its way for a moment, and nothing overtook it.
        self.arrived = max(self.arrived, self.now - late_by * TICK)
        entry = Entry(self.count, lane, rows, self.arrived, deadline)
        if len(self.model.waiting) < self.model.policy.max_queue_size:
            self.queue.push(entry)
            self.model.waiting.append(entry)
            return entry
        with pytest.raises(Overloaded, match=f"max_queue_size is {len(self.model.waiting)}"):
            self.queue.push(entry)
        return None

    @rule(ticks=st.sampled_from([1, 8, 60]))
    def wait(self, ticks: int) -> None:
        self.now += ticks * TICK

    @rule(entry=consumes(entries))
    def cancel(self, entry: Entry) -> None:
        waits = entry in self.model.waiting
        assert self.queue.cancel(entry.key) is (entry if waits else None)
        if waits:
            self.model.waiting.remove(entry)

    @rule()
    def take(self) -> None:
        self.check_batch(self.now)

    @precondition(lambda self: self.model.waiting)
    @rule()
    def wait_for_the_next(self) -> None:
        """Nothing is due before `next_due`, and then something is."""
        while self.check_batch(self.now):
            pass
        due = self.queue.next_due()
        if not self.model.waiting:
            assert due == NEVER
            return
        assert due > self.now
        early = copy.deepcopy(self.queue).take(due - TICK / 64)
        assert not early.entries
        assert copy.deepcopy(self.queue).take(due).entries or any(
            entry.deadline <= due for entry in self.model.waiting
        )
        self.now = due

    def check_batch(self, now: float) -> bool:
        """Take a batch and compare it with what the model allows; whether there was one."""
        wanted = self.model.wanted(now)
        due = {key: size for key in wanted if (size := self.model.size(wanted[key], now))}
        batch = self.queue.take(now)
        for entry in batch.late:
            assert entry.deadline <= now
            self.model.waiting.remove(entry)
        if not batch.entries:
            assert not due
            return False
        lane = batch.entries[0].lane
        assert batch.entries[0].arrived == min(wanted[key][0].arrived for key in due)
        self.check_joined(batch.entries, due[lane], now)
        for entry in batch.entries:
            self.model.waiting.remove(entry)
        return True

    def check_joined(self, taken: list[Entry], size: int, now: float) -> None:
        """The oldest of one lane, in order, none of them expired, and as many as fit."""
        lane = taken[0].lane
        alive = [entry for entry in self.model.lane(lane) if entry.deadline > now]
        assert taken == alive[: len(taken)]
        rows = sum(entry.rows for entry in taken)
        assert rows <= size or len(taken) == 1
        if len(alive) > len(taken):
            assert rows + alive[len(taken)].rows > size

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            assert self.queue.cancel("unknown") is None
            left = sorted(entry.key for entry in self.queue.drain())
            assert left == [entry.key for entry in self.model.waiting]
            assert len(self.queue) == 0
            assert self.queue.next_due() == NEVER

    @invariant()
    def bounded(self) -> None:
        if hasattr(self, "queue"):
            assert len(self.queue) == len(self.model.waiting) <= self.model.policy.max_queue_size


QueueMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestQueue = QueueMachine.TestCase


def queue(**policy: object) -> Queue:
    return Queue(BatchPolicy(**policy))  # type: ignore[arg-type]


def entry(key: int, rows: int = 1, arrived: float = 0.0, deadline: float = NEVER) -> Entry:
    return Entry(key, "lane", rows, arrived, deadline)


def keys(entries: list[Entry]) -> list[object]:
    return [entry.key for entry in entries]


def test_a_single_request_larger_than_a_batch_runs_alone() -> None:
    waiting = queue(max_batch_size=4)
    waiting.push(entry(1, rows=9))
    waiting.push(entry(2))
    assert keys(waiting.take(0.0).entries) == [1]
    assert keys(waiting.take(0.0).entries) == [2]


def test_the_delay_counts_from_the_arrival_of_the_oldest() -> None:
    waiting = queue(max_batch_size=4, max_delay_us=100_000)
    waiting.push(entry(1, arrived=10.0))
    waiting.push(entry(2, arrived=10.09))
    assert waiting.take(10.099).entries == []
    assert waiting.next_due() == 10.1
    assert keys(waiting.take(10.1).entries) == [1, 2]


def test_a_full_batch_does_not_wait() -> None:
    waiting = queue(max_batch_size=4, max_delay_us=10_000_000)
    waiting.push(entry(1, rows=3))
    assert waiting.take(0.0).entries == []
    waiting.push(entry(2))
    assert keys(waiting.take(0.0).entries) == [1, 2]


def test_a_preferred_size_is_enough_to_the_row() -> None:
    waiting = queue(max_batch_size=8, max_delay_us=10_000_000, preferred_sizes=(4,))
    waiting.push(entry(1, rows=3))
    assert waiting.take(0.0).entries == []
    waiting.push(entry(2))
    assert keys(waiting.take(0.0).entries) == [1, 2]


def test_a_cancelled_request_counts_for_no_batch() -> None:
    waiting = queue(max_batch_size=4, max_delay_us=10_000_000)
    waiting.push(entry(1, rows=3))
    waiting.push(entry(2))
    waiting.cancel(1)
    assert waiting.take(0.0).entries == []
    assert keys(waiting.take(10.0).entries) == [2]


def test_a_preferred_size_does_not_wait_and_is_not_passed() -> None:
    waiting = queue(max_batch_size=8, max_delay_us=10_000_000, preferred_sizes=(4, 2))
    for key in range(5):
        waiting.push(entry(key))
    assert keys(waiting.take(0.0).entries) == [0, 1, 2, 3]
    assert waiting.take(0.0).entries == []
    assert keys(waiting.take(10.0).entries) == [4]


def test_a_deadline_that_is_now_has_passed() -> None:
    waiting = queue(max_batch_size=4)
    waiting.push(entry(1, deadline=1.0))
    waiting.push(entry(2, deadline=1.5))
    batch = waiting.take(1.0)
    assert (keys(batch.entries), keys(batch.late)) == ([2], [1])


def test_a_cancelled_request_gives_its_place_and_its_tensors_back() -> None:
    class Tensors:
        pass

    waiting = queue(max_batch_size=4, max_queue_size=2)
    waiting.push(entry(1))
    second = entry(2)
    second.payload = Tensors()
    freed = weakref.ref(second.payload)
    waiting.push(second)
    waiting.cancel(2)
    del second
    gc.collect()
    assert freed() is None
    waiting.push(entry(3))
    assert keys(waiting.take(0.0).entries) == [1, 3]
