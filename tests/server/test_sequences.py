"""Sequences: in order, one request at a time, so many at once; under the test's own clock."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ds_engines.errors import InvalidRequest, Overloaded
from ds_engines.spec import BatchPolicy, SequencePolicy
from ds_serve.scheduler.queue import NEVER, Batch
from ds_serve.scheduler.sequences import Line, SequenceQueue, Step

TICK = 1 / 1024
IDLE = 32

policies = st.builds(
    SequencePolicy,
    strategy=st.sampled_from(["direct", "oldest"]),
    slots=st.sampled_from([1, 2, 4]),
    idle_us=st.just(31_250),  # 32 ticks
    max_delay_us=st.sampled_from([0, 7_812]),  # 8 ticks, nearly
    utilization=st.sampled_from([0.0, 0.5]),
    instances=st.sampled_from([0, 1, 2]),
).filter(lambda policy: policy.slots >= policy.instances)


class Machine(RuleBasedStateMachine):
    """Each request that got in ends once: it runs, or is told that it will not."""

    @initialize(policy=policies, bound=st.sampled_from([3, 50]))
    def start(self, policy: SequencePolicy, bound: int) -> None:
        self.policy, self.bound = policy, bound
        self.queue = SequenceQueue("m", BatchPolicy(2, max_queue_size=bound), policy)
        self.now = 0.0
        self.count = 0
        self.waiting: list[Step] = []
        self.running: list[Step] = []
        self.ran: dict[Line, list[int]] = defaultdict(list)
        self.pushed: dict[Line, list[int]] = defaultdict(list)
        self.current: dict[int, Line] = {}
        self.broken: set[Line] = set()
        self.rested: dict[Line, float] = {}

    @rule(
        sequence=st.integers(1, 5),
        start=st.booleans(),
        end=st.sampled_from([False, False, True]),
        lane=st.sampled_from("aab"),
        patience=st.sampled_from([None, None, 6]),
    )
    def push(self, sequence: int, start: bool, end: bool, lane: str, patience: int | None) -> None:
        self.count += 1
        deadline = NEVER if patience is None else self.now + patience * TICK
        step = Step(self.count, lane, 1, self.now, deadline, None, sequence, start, end)
        self.forget_idle()
        if not start and sequence not in self.current:
            with pytest.raises(InvalidRequest, match=f"sequence {sequence} .* START flag"):
                self.queue.push(step)
            return
        if len(self.queue) >= self.bound:
            with pytest.raises(Overloaded, match=f"max_queue_size is {self.bound}"):
                self.queue.push(step)
            return
        self.queue.push(step)
        line = step.line
        assert line is not None
        assert self.current.get(sequence, line) is line
        self.current[sequence] = line
        self.rested.pop(line, None)
        self.pushed[line].append(self.count)
        self.waiting.append(step)
        if end:
            del self.current[sequence]

    def forget_idle(self) -> None:
        for line, since in list(self.rested.items()):
            if since + IDLE * TICK <= self.now + 1e-9:
                self.forget(line)

    def forget(self, line: Line) -> None:
        self.broken.add(line)
        self.rested.pop(line, None)
        if self.current.get(int(line.sequence)) is line:
            del self.current[int(line.sequence)]

    @rule(ticks=st.sampled_from([1, 5, 40]))
    def wait(self, ticks: int) -> None:
        self.now += ticks * TICK

    @rule()
    def take(self) -> None:
        batch = self.queue.take(self.now)
        for step in batch.late:
            assert step.deadline <= self.now
            self.waiting.remove(step)  # type: ignore[arg-type]
            self.forget(step.line)  # type: ignore[attr-defined]
        self.told(batch)
        lines = [step.line for step in batch.entries]  # type: ignore[attr-defined]
        assert len(set(lines)) == len(lines) <= 2
        assert len({step.lane for step in batch.entries}) <= 1
        if self.policy.instances:
            places = {step.line.instance for step in batch.entries}  # type: ignore[attr-defined]
            assert len(places) <= 1
            assert not places & {step.line.instance for step in self.running if step.line}
        for step in batch.entries:
            assert isinstance(step, Step)
            assert step.line not in [other.line for other in self.running]
            self.waiting.remove(step)
            self.running.append(step)
            self.ran[step.line].append(int(str(step.key)))  # type: ignore[index]
        self.forget_idle()
        if not batch.entries and not self.running and self.waiting:
            due = self.queue.next_due()
            assert self.now < due < NEVER, "what waits would wait forever"

    def told(self, batch: Batch) -> None:
        for step, error in batch.refused:
            assert "broken off" in str(error)
            assert step.line in self.broken  # type: ignore[attr-defined]
            self.waiting.remove(step)  # type: ignore[arg-type]

    @precondition(lambda self: self.running)
    @rule(all_of_them=st.booleans())
    def finish(self, all_of_them: bool) -> None:
        done = self.running if all_of_them else self.running[:1]
        if self.policy.instances:  # a batch of one instance ends as one
            places = {step.line.instance for step in done if step.line}
            done = [step for step in self.running if step.line and step.line.instance in places]
        self.running = [step for step in self.running if step not in done]
        self.queue.finished(done, self.now)
        for step in done:
            line = step.line
            assert line is not None
            if self.current.get(int(line.sequence)) is line and not line.waiting:
                self.rested[line] = self.now

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        step = data.draw(st.sampled_from(self.waiting))
        gone = self.queue.cancel(step.key)
        if step.line in self.broken:
            assert gone is None, "it is about to be told"
            return
        assert gone is step
        self.waiting.remove(step)
        self.forget(step.line)  # type: ignore[arg-type]

    @rule()
    def expire(self) -> None:
        assert (self.queue.next_end() < self.now) == (len(self.queue) > len(self.queue.waiting()))
        self.told(self.queue.expire(self.now))

    @invariant()
    def kept(self) -> None:
        if not hasattr(self, "queue"):
            return
        assert len(self.queue) == len(self.waiting) <= self.bound
        for line, keys in self.ran.items():
            assert keys == self.pushed[line][: len(keys)], "in order, none left out"
        served = {step.line for step in self.running} | set(self.rested)
        assert len(served) <= self.policy.slots

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            assert len(self.queue.drain()) == len(self.waiting)
            assert len(self.queue) == 0


Machine.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestSequenceQueue = Machine.TestCase


def step(key: int, sequence: int | str, arrived: float = 0.0, **flags: bool) -> Step:
    return Step(key, "lane", 1, arrived, NEVER, None, sequence, **flags)


def queue(slots: int = 2, rows: int = 4, **options: object) -> SequenceQueue:
    policy = SequencePolicy(slots=slots, **options)  # type: ignore[arg-type]
    return SequenceQueue("m", BatchPolicy(rows), policy)


def keys(batch: Batch) -> list[object]:
    return [entry.key for entry in batch.entries]


def test_the_next_of_a_sequence_waits_until_the_one_before_has_run() -> None:
    waiting = queue()
    waiting.push(step(1, "a", start=True))
    waiting.push(step(2, "a"))
    waiting.push(step(3, 7, start=True))
    first = waiting.take(0.0)
    assert keys(first) == [1, 3]
    assert keys(waiting.take(0.0)) == []
    waiting.finished(first.entries, 0.0)  # type: ignore[arg-type]
    assert keys(waiting.take(0.0)) == [2]


def test_a_sequence_without_a_slot_waits_for_the_end_of_another() -> None:
    waiting = queue(slots=1)
    waiting.push(step(1, 1, start=True))
    waiting.push(step(2, 2, start=True))
    for key, end in [(1, False), (3, True)]:
        if end:
            waiting.push(step(key, 1, end=True))
        batch = waiting.take(0.0)
        assert keys(batch) == [key]
        waiting.finished(batch.entries, 0.0)  # type: ignore[arg-type]
    assert keys(waiting.take(0.0)) == [2]


def test_an_idle_sequence_loses_its_slot_to_one_that_waits() -> None:
    waiting = queue(slots=1, idle_us=500_000)
    waiting.push(step(1, 1, start=True))
    waiting.push(step(2, 2, start=True))
    waiting.finished(waiting.take(0.0).entries, 1.0)  # type: ignore[arg-type]
    assert keys(waiting.take(1.4)) == []
    assert waiting.next_due() == 1.5
    assert keys(waiting.take(1.5)) == [2]
    with pytest.raises(InvalidRequest, match="sequence 1 to model 'm' must specify the START flag"):
        waiting.push(step(3, 1, arrived=1.6))


def test_a_name_is_one_partitions_own() -> None:
    waiting = queue()
    waiting.push(Step(1, "lane", 1, 0.0, sequence=7, start=True, partition="ours"))
    with pytest.raises(InvalidRequest, match=r"sequence 7 .* START flag"):
        waiting.push(Step(2, "lane", 1, 0.0, sequence=7, partition="theirs"))
    waiting.push(Step(3, "lane", 1, 0.0, sequence=7, start=True, partition="theirs"))
    assert keys(waiting.take(0.0)) == [1, 3]


def test_a_sequence_stays_with_one_instance() -> None:
    waiting = queue(slots=4, instances=2)
    for key in (1, 2, 3):
        waiting.push(step(key, key, start=True))
    first = waiting.take(0.0)
    assert keys(first) == [1, 3], "the instance that has most room takes the next"
    waiting.push(step(4, 1))
    second = waiting.take(0.0)
    assert keys(second) == [2]
    assert keys(waiting.take(0.0)) == [], "both instances are busy"
    waiting.finished(second.entries, 0.0)  # type: ignore[arg-type]
    waiting.push(step(5, 2))
    assert keys(waiting.take(0.0)) == [5]
    waiting.finished(first.entries, 0.0)  # type: ignore[arg-type]
    assert keys(waiting.take(0.0)) == [4]


def test_a_direct_batch_may_wait_for_a_part_of_the_slots() -> None:
    waiting = queue(slots=4, utilization=0.5, max_delay_us=1_000_000)
    waiting.push(step(1, 1, start=True))
    assert keys(waiting.take(0.9)) == []
    assert keys(waiting.take(1.0)) == [1]
    waiting.push(step(2, 2, arrived=1.0, start=True))
    waiting.push(step(3, 3, arrived=1.0, start=True))
    assert keys(waiting.take(1.0)) == [2, 3]
