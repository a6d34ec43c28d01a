"""One engine's process: requests from the gateways, batches to the engine, answers back."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from ds_engines.base import BatchEngine
from ds_engines.errors import DeadlineExceeded, ServeError, Unavailable
from ds_engines.spec import ModelSpec
from ds_serve import child, logs, metrics
from ds_serve.scheduler.batcher import Batcher, Refused
from ds_serve.scheduler.ordering import Ordering
from ds_serve.scheduler.queue import Entry
from ds_serve.transport.codec import frames_of, read_from_supervisor, read_to_worker
from ds_serve.transport.link import Link, connect, listen
from ds_serve.transport.messages import (
    Answer,
    Attach,
    Attached,
    Beat,
    Cancel,
    Fault,
    Hello,
    InCuda,
    Infer,
    Loaded,
    Registry,
    StatisticsQuery,
    Stop,
    Tuning,
)
from ds_serve.worker.accounts import Accounts
from ds_serve.worker.config import CacheConfig
from ds_serve.worker.plans import plan_of
from ds_serve.worker.responses import responses
from ds_serve.worker.shared import SharedMemory
from ds_serve.worker.whole import Whole, timing_of
from ds_serve.worker.work import Job, Timing, arrays_of

if TYPE_CHECKING:
    from ds_serve.worker.calls import Calls

BEAT_SECONDS = 0.5


class Worker:
    """Serves one loaded engine until the supervisor says stop."""

    def __init__(
        self, engine: BatchEngine, identity: str, cache: CacheConfig | None = None
    ) -> None:
        self._spec = engine.spec
        self._identity = identity
        self._plan = plan_of(engine)
        self._queue = self._plan.queue
        self._ordering = _ordering(self._spec)
        self._accounts = Accounts(self._spec)
        self._responses = responses(self._spec, cache, self._accounts)
        self._supervisor = Link(self._obey)
        self._shared = SharedMemory()
        self._whole = self._plan if isinstance(self._plan, Whole) else None
        if self._whole is not None:
            self._whole.on_answers = self._answer_whole
        self._calls: Calls | None = None
        self._batcher = Batcher(
            self._queue,
            self._spec.slots,
            self._plan.run,
            self._answer if self._whole is None else self._ran,
            self._late,
            self._refused,
            in_threads=self._whole is not None,
        )
        self._stopped: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def run(self, socket: Path, control: Path) -> bool:
        """Serve at `socket`, and return when what was queued at the stop is done, or its time is
        over; False where a batch still runs then.
        """
        gateways = await listen(socket, lambda: Link(self._receive, self._pump, self._forget))
        await connect(control, self._supervisor)
        if self._whole is not None:
            self._calls = self._whole.call_by(self._tell_supervisor, control.parent)
        child.settle()
        self._supervisor.send(
            frames_of([Hello(self._identity), Loaded(self._spec.public, str(socket))])
        )
        beating = asyncio.create_task(self._beat())
        grace = await self._stopped
        try:
            await asyncio.wait_for(self._idle(), grace)
        except TimeoutError:
            self._refuse_rest()
        await asyncio.sleep(0)  # the last answers leave with this turn of the loop
        beating.cancel()
        if self._calls is not None:
            self._calls.close()
        self._batcher.close()
        if self._responses is not None:
            self._responses.close()
        metrics.tell_all()
        gateways.close()
        self._supervisor.close()
        return not self._batcher.busy

    async def _idle(self) -> None:
        await self._batcher.idle()
        if self._whole is not None:
            await self._whole.idle()

    def _receive(self, gateway: Link, frames: list[memoryview]) -> None:
        answers: list[object] = []
        for message in read_to_worker(frames):
            match message:
                case Infer():
                    self._admit(gateway, message, answers)
                case Cancel():
                    if self._cancel(gateway, message):
                        answers.append(Answer(message.id))  # its inputs' memory is free
                case Attach():
                    answers.append(Attached(self._shared.attach(gateway, message)))
                case StatisticsQuery():
                    metrics.tell_all()
                    self._accounts.statistics.id = message.id
                    answers.append(self._accounts.statistics)
        if answers:
            gateway.send(frames_of(answers))

    def _admit(self, gateway: Link, request: Infer, answers: list[object]) -> None:
        try:
            if request.places:
                self._shared.find_inputs(gateway, request)
            key = b""
            if self._responses is not None and not on_gpus(request):
                found = self._responses.find(request)
                if isinstance(found, Answer):
                    self._answer_at_once(Job(gateway, request, {}, found), answers)
                    return
                key = found
            job = Job(gateway, request, arrays_of(request), cache_key=key)
            if request.targets:
                job.targets = self._shared.targets(request)
            if request.traced:
                job.queued_ns = time.monotonic_ns()
            if self._ordering is not None:
                self._ordering.check()
            self._plan.push(job)
            if self._ordering is not None:
                self._ordering.admit(job.key)
        except ServeError as error:
            self._accounts.failed(error.kind, time.monotonic() - request.arrived)
            answers.append(Answer(request.id, fault=Fault.of(error)))

    def _answer_at_once(self, job: Job, answers: list[object]) -> None:
        """With what was known already, but after the answers that it must follow."""
        if self._ordering is None:
            answers.append(job.answer)
        else:
            self._ordering.check()
            self._ordering.admit(job.key)
            self._send([job])

    def _cancel(self, gateway: Link, message: Cancel) -> bool:
        """Whether it was still waiting."""
        entry = self._queue.cancel((gateway, message.id))
        if entry is not None:
            self._accounts.failed("Cancelled", time.monotonic() - entry.arrived)
            if self._ordering is not None:
                self._send_now(self._ordering.drop(entry.key))
        elif self._whole is not None:
            self._whole.cancel((gateway, message.id))
        return entry is not None

    def _forget(self, gateway: Link) -> None:
        """A gateway is gone, and its clients with it: what waits for them is not run."""
        self._shared.forget(gateway)
        for job in _jobs(self._queue.waiting()):
            if job.gateway is gateway:
                self._cancel(gateway, Cancel(job.request.id))
        if self._whole is not None:
            self._whole.forget(gateway)
        self._pump()

    def _pump(self) -> None:
        self._batcher.pump()
        self._accounts.waiting(len(self._queue), self._batcher.running)

    def _answer(self, entries: list[Entry], timings: list[Timing]) -> None:
        jobs = _jobs(entries)
        self._plan.finished(entries)
        if self._responses is not None:
            self._responses.keep(jobs)
        self._send(jobs)
        self._accounts.executed(timings)
        self._accounts.answered(jobs, timings)
        self._accounts.waiting(len(self._queue), self._batcher.running)

    def _ran(self, entries: list[Entry], timings: list[Timing]) -> None:
        """Whole requests have been run: their answers come by themselves."""
        self._plan.finished(entries)
        self._accounts.executed(timings)
        self._accounts.waiting(len(self._queue), self._batcher.running)

    def _answer_whole(self, parts: list[tuple[Job, Answer]], ended: list[Job]) -> None:
        """`parts` are answers that are followed by others, `ended` have their last one."""
        for job, part in parts:
            job.gateway.send(frames_of([part]))
            self._accounts.begun(job)
        if self._responses is not None:
            self._responses.keep(ended)
        self._send(ended)
        for job in ended:
            self._accounts.answered([job], [timing_of(job)])

    def _late(self, entries: list[Entry]) -> None:
        jobs = _jobs(entries)
        for job in jobs:
            waited = time.monotonic() - job.request.arrived
            error = DeadlineExceeded(f"the deadline passed after {waited:.3f} s in the queue")
            self._fail(job, error)
        self._send(jobs)
        self._accounts.waiting(len(self._queue), self._batcher.running)

    def _refused(self, refused: Refused) -> None:
        for entry, error in refused:
            for job in _jobs([entry]):
                self._fail(job, error)
        self._send(_jobs([entry for entry, _ in refused]))
        self._accounts.waiting(len(self._queue), self._batcher.running)

    def _refuse_rest(self) -> None:
        jobs = _jobs(self._queue.drain())
        for job in jobs:
            self._fail(job, Unavailable("the server is shutting down"))
        self._send_now(jobs)

    def _fail(self, job: Job, error: ServeError) -> None:
        job.answer = Answer(job.request.id, fault=Fault.of(error))
        self._accounts.failed(error.kind, time.monotonic() - job.request.arrived)

    def _send(self, jobs: list[Job]) -> None:
        """Send the answers that may leave now."""
        if self._ordering is not None:
            jobs = [ripe for job in jobs for ripe in self._ordering.answer(job.key, job)]
        self._send_now(jobs)

    def _send_now(self, jobs: list[Job]) -> None:
        """One message to each gateway, however many answers it gets."""
        answers: dict[Link, list[object]] = defaultdict(list)
        for job in jobs:
            answers[job.gateway].append(job.answer)
        for gateway, batch in answers.items():
            gateway.send(frames_of(batch))

    def _obey(self, link: Link, frames: list[memoryview]) -> None:
        for message in read_from_supervisor(frames):
            if isinstance(message, Registry):
                if self._calls is not None:
                    self._calls.update(message)
            elif isinstance(message, Tuning):
                logs.apply(message.logs, self._identity)
            elif isinstance(message, Stop) and not self._stopped.done():
                self._stopped.set_result(message.grace)

    def _tell_supervisor(self, message: object) -> None:
        self._supervisor.send(frames_of([message]))

    async def _beat(self) -> None:
        while True:
            self._supervisor.send(frames_of([Beat(self._batcher.busy)]))
            if self._responses is not None:
                self._responses.trim()
            await asyncio.sleep(BEAT_SECONDS)


def on_gpus(request: Infer) -> bool:
    """Whether tensors of it lie there, or shall: such answers are not kept."""
    return bool(request.targets) or any(isinstance(one, InCuda) for one in request.places)


def _ordering(spec: ModelSpec) -> Ordering[Job] | None:
    """Beside what waits and what runs, so many answers may be held back as may wait."""
    batch = spec.batch
    if not batch.preserve_ordering:
        return None
    return Ordering(2 * batch.max_queue_size + spec.slots * max(1, batch.max_batch_size))


def _jobs(entries: list[Entry]) -> list[Job]:
    return [entry.payload for entry in entries if isinstance(entry.payload, Job)]
