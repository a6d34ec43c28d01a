"""When requests run, chosen once for a model by what its configuration asks for."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

from ds_engines.base import BatchEngine
from ds_engines.spec import ModelSpec
from ds_engines.whole import RequestEngine
from ds_serve.scheduler.priorities import PriorityQueue, Ranked
from ds_serve.scheduler.queue import AnyQueue, Entry, Queue
from ds_serve.transport.messages import Schedule
from ds_serve.worker.sequenced import Sequenced
from ds_serve.worker.whole import Whole
from ds_serve.worker.whole_sequences import WholeSequences
from ds_serve.worker.work import BatchRunner, Job, Timing, lane_of


class WorkerQueue(AnyQueue, Protocol):
    """What a worker needs of a queue."""

    def cancel(self, key: Hashable) -> Entry | None: ...

    def waiting(self) -> list[Entry]: ...

    def drain(self) -> list[Entry]: ...


class Plan(Protocol):
    """A queue, how requests get into it, and how batches of it run."""

    @property
    def queue(self) -> WorkerQueue: ...

    @property
    def run(self) -> Callable[[list[Entry]], list[Timing]]: ...

    def push(self, job: Job) -> None:
        """Let it wait for its turn. Raises the errors that refuse it."""

    def finished(self, entries: Sequence[Entry]) -> None:
        """They have run."""


class Plain:
    """Requests run as they come, out of a Queue."""

    def __init__(self, engine: BatchEngine, queue: WorkerQueue) -> None:
        self._spec = engine.spec
        self.queue: Any = queue
        self.run = BatchRunner(engine).run

    def push(self, job: Job) -> None:
        request = job.request
        lane = lane_of(self._spec, request)
        self.queue.push(Entry(job.key, lane, request.rows, request.arrived, request.deadline, job))

    def finished(self, entries: Sequence[Entry]) -> None:
        pass


class Prioritized(Plain):
    """Requests run by their priority, and wait no longer than their policy allows: out of a
    PriorityQueue.
    """

    def push(self, job: Job) -> None:
        request = job.request
        said = request.schedule or NOTHING_SAID
        lane = lane_of(self._spec, request)
        about = (job.key, lane, request.rows, request.arrived, request.deadline, job)
        self.queue.push(Ranked(*about, priority=said.priority, timeout_us=said.timeout_us))


NOTHING_SAID = Schedule()


def plan_of(engine: BatchEngine) -> Plan:
    """The simplest one that does what the model's configuration asks for."""
    spec: ModelSpec = engine.spec
    if isinstance(engine, RequestEngine):
        return Whole(engine) if spec.sequence is None else WholeSequences(engine, spec.sequence)
    if spec.sequence is not None:
        return Sequenced(engine, spec.sequence)
    if spec.batch.plain:
        return Plain(engine, Queue(spec.batch))
    return Prioritized(engine, PriorityQueue(spec.batch))
