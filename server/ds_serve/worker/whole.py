"""Models that are given whole requests: when these run, and how their answers get out."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds_engines import datatypes
from ds_engines.base import Tensors
from ds_engines.errors import EngineFailure, ServeError
from ds_engines.whole import Output, RequestEngine
from ds_serve.scheduler.priorities import PriorityQueue, Ranked
from ds_serve.scheduler.queue import Entry, Queue
from ds_serve.transport.link import Link
from ds_serve.transport.messages import About, Answer, Fault, Schedule, Tensor
from ds_serve.worker.work import Job, Timing, lane_of

if TYPE_CHECKING:
    from ds_serve.worker.calls import Calls

OnAnswers = Callable[[list[tuple[Job, Answer]], list[Job]], None]

NOTHING_SAID = Schedule()
NOTHING_ABOUT = About()


class Call:
    """One request in the model's hands: a WholeRequest. If the model lets go of it without a last
    answer, that is an error.
    """

    def __init__(self, job: Job, put: Callable[[Job, Answer], None]) -> None:
        request = job.request
        about, schedule = request.about or NOTHING_ABOUT, request.schedule or NOTHING_SAID
        self.id = about.id
        self.parameters: Mapping[str, Any] = about.parameters
        # Where the inputs lie now is others' once the request is answered, or cannot be written.
        self.inputs: Tensors = {name: array.copy() for name, array in job.inputs.items()}
        self.outputs = request.outputs
        self.sequence = schedule.sequence
        self.start, self.end, self.timeout_us = schedule.start, schedule.end, schedule.timeout_us
        self.deadline, self.partition = request.deadline, request.partition
        self.cancelled = False
        self._job = job
        self._put = put
        self._lock = threading.Lock()
        self._open = True

    def __del__(self) -> None:
        self.respond(None, EngineFailure("the model gave no final response"), final=True)

    def respond(
        self,
        outputs: Sequence[Output] | None,
        error: ServeError | None,
        *,
        final: bool,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        answer = _answer(self._job.request.id, outputs, error, final=final)
        if parameters and answer.fault is None:
            answer.parameters = dict(parameters)
        with self._lock:
            if not self._open:
                return
            self._open = answer.final is False
            self._put(self._job, answer)


class Whole:
    """A plan: requests run together, and each is answered whenever the model does.

    Set `on_answers` before anything is pushed: it is called in the loop's thread.
    """

    on_answers: OnAnswers

    def __init__(self, engine: RequestEngine) -> None:
        self._engine = engine
        self._spec = engine.spec
        plain = self._spec.batch.plain
        self.queue: Any = (Queue if plain else PriorityQueue)(self._spec.batch)
        self._loop = asyncio.get_running_loop()
        self._calls: weakref.WeakValueDictionary[Hashable, Call] = weakref.WeakValueDictionary()
        self._open: set[Hashable] = set()
        self._closed = asyncio.Event()
        self._ready: deque[tuple[Job, Answer]] = deque()

    def call_by(self, tell: Callable[[object], None], folder: Path) -> Calls:
        """Let the model call others. `tell` sends to the supervisor, `folder` is the gateways'."""
        # What gateways are made of takes time to import: other workers need none of it.
        from ds_serve.worker.calls import Calls  # noqa: PLC0415

        calls = Calls(tell, folder)
        self._engine.use(calls)
        return calls

    def push(self, job: Job) -> None:
        request = job.request
        schedule = request.schedule or NOTHING_SAID
        entry = Ranked(
            key=job.key,
            lane=self._lane(job),
            rows=request.rows,
            arrived=request.arrived,
            deadline=request.deadline,
            payload=job,
            priority=schedule.priority,
            timeout_us=schedule.timeout_us,
        )
        self.queue.push(entry)

    def run(self, entries: list[Entry]) -> list[Timing]:
        """In a slot's thread. Never raises: what goes wrong is an answer too."""
        jobs = [entry.payload for entry in entries if isinstance(entry.payload, Job)]
        self._open.update(job.key for job in jobs)
        t0 = time.monotonic_ns()
        for job in jobs:
            job.started = t0 / 1e9
        calls = [Call(job, self._put) for job in jobs]
        for job, call in zip(jobs, calls, strict=True):
            self._calls[job.key] = call
        t1 = time.monotonic_ns()
        self._execute(entries, calls)
        t2 = time.monotonic_ns()
        return [Timing(sum(job.request.rows for job in jobs), t1 - t0, t2 - t1, 0)]

    def finished(self, entries: Sequence[Entry]) -> None:
        pass

    def _lane(self, job: Job) -> Hashable:
        return lane_of(self._spec, job.request) if self._engine.joins else job.key

    def _execute(self, entries: list[Entry], calls: list[Call]) -> None:
        self._engine.execute(calls)

    def cancel(self, key: Hashable) -> None:
        """Let the model know that nobody waits any more."""
        call = self._calls.get(key)
        if call is not None:
            call.cancelled = True

    def forget(self, gateway: Link) -> None:
        """Cancel all requests of a gateway that is gone."""
        for call in list(self._calls.values()):
            if call._job.gateway is gateway:
                call.cancelled = True

    async def idle(self) -> None:
        """Wait until every request that has run is answered."""
        while self._open:
            self._closed.clear()
            await self._closed.wait()

    def _put(self, job: Job, answer: Answer) -> None:
        """From any thread."""
        self._ready.append((job, answer))
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        parts: list[tuple[Job, Answer]] = []
        ended: list[Job] = []
        while self._ready:
            job, answer = self._ready.popleft()
            if answer.final:
                job.answer = _traced(job, answer)
                ended.append(job)
                self._open.discard(job.key)
            else:
                parts.append((job, answer))
        if parts or ended:
            self.on_answers(parts, ended)
        self._closed.set()


def timing_of(job: Job) -> Timing:
    """What a request took in the model's hands, until its last answer."""
    return Timing(job.request.rows, 0, max(0, int((time.monotonic() - job.started) * 1e9)), 0)


def _traced(job: Job, answer: Answer) -> Answer:
    if job.request.traced:
        begun, now = int(job.started * 1e9), time.monotonic_ns()
        answer.times = (job.queued_ns, begun, begun, now, now)
    return answer


def _answer(
    key: int, outputs: Sequence[Output] | None, error: ServeError | None, *, final: bool
) -> Answer:
    if error is not None:
        return Answer(key, fault=Fault.of(error))
    try:
        return Answer(key, [_tensor(*output) for output in outputs or ()], final=final)
    except ServeError as wrong:
        return Answer(key, fault=Fault.of(wrong))


def _tensor(name: str, datatype: str, array: Any) -> Tensor:
    """A copy: the model may change its array while the answer is on its way."""
    data = bytes(datatypes.to_bytes(datatype, array, name))
    return Tensor(name, datatype, array.shape, memoryview(data))
