"""The queue of a model whose requests belong to sequences: pure, and told what time it is.

Requests of a sequence run in order, one at a time. So many sequences have a slot at a time; a
sequence keeps its slot until its end has run, or until it has been idle for too long. The others
stand in a backlog. A sequence of which a request is dropped is broken off: what follows it would
run on a state that lacks it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from math import ceil

from ds_engines.errors import InvalidRequest, Overloaded, ServeError
from ds_engines.spec import BatchPolicy, SequencePolicy
from ds_serve.scheduler.queue import NEVER, Batch, Entry, rows_due

Id = int | str


@dataclass(slots=True, eq=False)
class Step(Entry):
    """A request of a sequence. Sequences of different `partition` may have the same name."""

    sequence: Id = 0
    start: bool = False
    end: bool = False
    partition: str = ""
    line: Line | None = field(default=None, init=False)


@dataclass(slots=True, eq=False)
class Line:
    """A sequence: what of it waits, and what its runner keeps for it in `state`. `instance` is
    that of the model which keeps the state instead, where one does.
    """

    sequence: Id
    partition: str = ""
    waiting: deque[Step] = field(default_factory=deque)
    running: bool = False
    placed: bool = False
    over: bool = False
    state: object = None
    instance: int = 0


class SequenceQueue:
    """As Queue, and told by `finished` what has run, because one request waits for another."""

    def __init__(self, model: str, batch: BatchPolicy, policy: SequencePolicy) -> None:
        self._model = model
        self._bound = batch.max_queue_size
        self._batch = _batching(batch, policy)
        self._idle = policy.idle_us / 1e6
        apart = max(1, policy.instances)
        self._pinned = bool(policy.instances)
        self._free = [policy.slots // apart] * apart
        self._busy: set[int] = set()
        self._entries: dict[Hashable, Step] = {}
        self._open: dict[tuple[str, Id], Line] = {}
        self._backlog: OrderedDict[Line, None] = OrderedDict()
        self._ready: dict[Line, None] = {}
        self._resting: OrderedDict[Line, float] = OrderedDict()
        self._refused: list[tuple[Entry, ServeError]] = []

    def __len__(self) -> int:
        return len(self._entries) + len(self._refused)

    def push(self, step: Step) -> None:
        """Raises InvalidRequest for a sequence that has not begun, Overloaded where the queue is
        full.
        """
        self._forget_idle(step.arrived)
        name = (step.partition, step.sequence)
        line = self._open.get(name)
        if line is None and not step.start:
            raise InvalidRequest(
                f"the request for sequence {step.sequence!r} to model {self._model!r} must specify "
                "the START flag (sequence_start): the sequence has not begun, or has ended, or was "
                f"idle for over {self._idle:g} s"
            )
        if len(self) >= self._bound:
            raise Overloaded(
                f"the queue is full: {len(self)} requests wait, and max_queue_size is {self._bound}"
            )
        if line is None:
            line = self._open[name] = Line(step.sequence, step.partition)
            self._backlog[line] = None
        self._entries[step.key] = step
        step.line = line
        line.waiting.append(step)
        self._resting.pop(line, None)
        if line.placed and not line.running:
            self._ready[line] = None
        if step.end:
            del self._open[name]
            line.over = True

    def cancel(self, key: Hashable) -> Step | None:
        """Drop a waiting request, and break its sequence off."""
        step = self._entries.pop(key, None)
        if step is not None and step.line is not None:
            step.line.waiting.remove(step)
            self._break(step.line)
        return step

    def waiting(self) -> list[Entry]:
        """What waits, oldest first."""
        return list(self._entries.values())

    def take(self, now: float) -> Batch:
        """The next batch: the next requests of several sequences, oldest first."""
        batch = Batch()
        self._place(now)
        batch.late.extend(self._late(now))
        found = self._due(now)
        for step in found:
            assert step.line is not None, "it was pushed"
            step.line.waiting.popleft()
            step.line.running = True
            del self._ready[step.line]
            del self._entries[step.key]
            if self._pinned:
                self._busy.add(step.line.instance)
        batch.entries.extend(found)
        batch.refused = self.expire(now).refused
        return batch

    def expire(self, now: float) -> Batch:
        """What was broken off: a batch without entries."""
        refused, self._refused = self._refused, []
        return Batch(refused=refused)

    def next_end(self) -> float:
        """At once where something was broken off."""
        return -NEVER if self._refused else NEVER

    def next_due(self) -> float:
        """When `take` will have a batch, or a slot becomes free for one in the backlog."""
        oldest = min((step.arrived for step in self._first()), default=NEVER)
        due = oldest + self._batch.max_delay_us / 1e6
        if self._backlog and self._resting:
            due = min(due, next(iter(self._resting.values())) + self._idle)
        return due

    def finished(self, steps: Iterable[Step], now: float) -> None:
        """They have run: their sequences may go on."""
        for step in steps:
            line = step.line
            assert line is not None, "it was taken"
            line.running = False
            self._busy.discard(line.instance)
            if line.waiting:
                self._ready[line] = None
            elif line.over:
                self._release(line)
            else:
                self._resting[line] = now

    def drain(self) -> list[Entry]:
        """Empty the queue, and return what waited in it; what runs may still finish."""
        left = [*self._entries.values(), *(entry for entry, _ in self._refused)]
        for line in {step.line for step in self._entries.values()}:
            if line is not None:
                line.waiting.clear()
                line.over = True
        for kept in (self._entries, self._open, self._backlog, self._ready, self._refused):
            kept.clear()
        return left

    def _place(self, now: float) -> None:
        """Give the slots that are free to those that wait for one the longest."""
        self._forget_idle(now)
        while self._backlog and (most := max(self._free)):
            line, _ = self._backlog.popitem(last=False)
            line.instance = self._free.index(most)
            self._free[line.instance] -= 1
            line.placed = True
            self._ready[line] = None

    def _due(self, now: float) -> list[Step]:
        """Of the kind of requests that can be joined, and are due, that which waits longest."""
        lanes: dict[Hashable, list[Step]] = {}
        for step in sorted(self._first(), key=_arrival):
            assert step.line is not None, "it was pushed"
            lanes.setdefault((step.line.instance, step.lane), []).append(step)
        for steps in lanes.values():
            rows = rows_due(self._batch, len(steps), steps[0].arrived, now)
            if rows:
                return steps[:rows]
        return []

    def _first(self) -> Iterator[Step]:
        """The next request of each sequence that may run now."""
        return (line.waiting[0] for line in self._ready if line.instance not in self._busy)

    def _late(self, now: float) -> list[Step]:
        late = [line.waiting[0] for line in self._ready if line.waiting[0].deadline <= now]
        for step in late:
            self.cancel(step.key)
        return late

    def _break(self, line: Line) -> None:
        """Refuse what waits in the sequence, and forget it."""
        for step in line.waiting:
            del self._entries[step.key]
            self._refused.append((step, _broken(line)))
        line.waiting.clear()
        line.over = True
        for kept in (self._backlog, self._ready, self._resting):
            kept.pop(line, None)
        name = (line.partition, line.sequence)
        if self._open.get(name) is line:
            del self._open[name]
        if line.placed and not line.running:
            self._release(line)

    def _forget_idle(self, now: float) -> None:
        while self._resting:
            line, since = next(iter(self._resting.items()))
            if since + self._idle > now:
                break
            self._break(line)

    def _release(self, line: Line) -> None:
        line.placed = False
        line.state = None
        self._free[line.instance] += 1


def _batching(batch: BatchPolicy, policy: SequencePolicy) -> BatchPolicy:
    """How long requests wait for others: in direct mode for so many that the part is there."""
    most = max(1, batch.max_batch_size)
    if policy.strategy == "oldest":
        return BatchPolicy(most, policy.max_delay_us, policy.preferred_sizes)
    if not policy.utilization:
        return BatchPolicy(most)
    enough = max(1, ceil(policy.utilization * most))
    return BatchPolicy(most, policy.max_delay_us, tuple(range(enough, most)))


def _arrival(step: Step) -> float:
    return step.arrived


def _broken(line: Line) -> InvalidRequest:
    return InvalidRequest(
        f"sequence {line.sequence!r} was broken off, and must start again: an earlier request of "
        "it was not run"
    )
