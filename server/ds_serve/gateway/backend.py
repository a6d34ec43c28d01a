"""What a gateway knows of a model: somewhere to send a request, and an answer that comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Protocol

from ds_engines.errors import DeadlineExceeded, Lost, ServeError, Unavailable
from ds_engines.spec import ModelSpec
from ds_serve.gateway.regions import Regions
from ds_serve.gateway.requests import (
    Abandon,
    Done,
    InferReply,
    InferRequest,
    answered,
    check,
    end_by_timeout,
)
from ds_serve.gateway.shared_inputs import SharedInputs
from ds_serve.transport.arena import Block
from ds_serve.transport.codec import frames_of, read_from_worker
from ds_serve.transport.link import Link, Outbox, connect
from ds_serve.transport.messages import (
    Attached,
    Cancel,
    FromWorker,
    Infer,
    ModelState,
    Statistics,
    StatisticsQuery,
)

STATISTICS_SECONDS = 2.0
NEVER = float("inf")


class Backend(Protocol):
    """A model that is ready. `held`: requests to ensembles that are still to come here."""

    held: int

    def begin(self, request: InferRequest, done: Done) -> Abandon:
        """As `infer`, without a task. Raises InvalidRequest at once; `done` is told the rest.

        The request's block is the backend's from now on, unless this raises.
        """

    def room(self, size: int, before: int) -> Block | None:
        """Memory for the body of a request, of which what follows `before` bytes is aligned."""

    def submit(self, request: InferRequest) -> AsyncIterator[InferReply]:
        """The answers, as they come. Raises the errors of ds_engines.errors."""

    async def infer(self, request: InferRequest) -> InferReply:
        """The one answer of a model that is not decoupled."""

    async def statistics(self) -> Statistics:
        """What the model's worker has done."""

    async def move(self, state: ModelState) -> None:
        """The supervisor names its workers or servers anew, while it is the same model. Raises
        OSError where none of them can be reached.
        """

    @property
    def trouble(self) -> str:
        """Why requests are refused now; "" where they are not."""

    @property
    def in_flight(self) -> int:
        """Requests that are not answered yet."""

    def close(self, reason: ServeError) -> None:
        """Fail what is in flight; the worker is gone."""


class TensorBackend:
    """A link to an engine worker."""

    def __init__(self, spec: ModelSpec, regions: Regions) -> None:
        self.spec = spec
        self.held = 0
        self.gone = False
        """The worker is: what it had has failed."""
        self._ids = count(1)
        self._waiting: dict[int, tuple[InferRequest, Done]] = {}
        self._statistics: dict[int, asyncio.Future[Statistics]] = {}
        self._loop = asyncio.get_running_loop()
        self._link = Link(self._receive, on_lost=self._lost)
        self._outbox = Outbox(self._flush)
        self._shared = SharedInputs(regions)
        self._due = NEVER
        self._timer: asyncio.TimerHandle | None = None

    async def connect(self, address: str) -> None:
        """Raises OSError where the worker is gone already."""
        await connect(Path(address), self._link)
        offer = self._shared.offer()
        if offer is not None:
            self._outbox.put(offer)

    async def move(self, state: ModelState) -> None:
        """A worker has one address for all its life."""

    @property
    def trouble(self) -> str:
        return ""

    def room(self, size: int, before: int) -> Block | None:
        return self._shared.room(size, before)

    def holds(self, block: Block) -> bool:
        """Whether the block is of memory that this worker reads."""
        return self._shared.holds(block)

    def begin(self, request: InferRequest, done: Done) -> Abandon:
        rows = check(self.spec, request)
        if request.schedule is not None and self.spec.batch.plain:
            end_by_timeout(request)
        key = next(self._ids)
        self._waiting[key] = (request, done)
        places = self._shared.place(key, request)
        infer = Infer(key, rows, request.arrived, request.deadline, request.inputs, request.outputs)
        infer.places = places
        if request.targets:
            infer.targets = request.targets
        if request.schedule is not None:
            infer.schedule = request.schedule
        if request.partition:
            infer.partition = request.partition
        if request.trace is not None:
            infer.traced = True
            request.trace.mark("REQUEST_START")
        self._outbox.put(infer)
        if len(self._waiting) == 1:
            self._outbox.hurry()  # the worker has nothing else to do
        if request.deadline < self._due:
            self._wake_at(request.deadline)
        return partial(self._abandon, key)

    async def submit(self, request: InferRequest) -> AsyncIterator[InferReply]:
        yield await self.infer(request)

    async def infer(self, request: InferRequest) -> InferReply:
        return await answered(self.begin, request)

    async def statistics(self) -> Statistics:
        key = next(self._ids)
        answer = self._statistics[key] = self._loop.create_future()
        self._outbox.put(StatisticsQuery(key))
        try:
            return await asyncio.wait_for(answer, STATISTICS_SECONDS)
        except TimeoutError:
            raise Unavailable(
                f"model {self.spec.name!r} did not say its statistics within "
                f"{STATISTICS_SECONDS:g} s"
            ) from None
        finally:
            self._statistics.pop(key, None)

    @property
    def in_flight(self) -> int:
        return len(self._waiting) + self.held

    def close(self, reason: ServeError) -> None:
        self._fail(reason)
        self._shared.close()
        self._link.close()

    def _abandon(self, key: int) -> None:
        if self._waiting.pop(key, None) is not None:
            self._outbox.put(Cancel(key))

    def _fail(self, reason: ServeError) -> None:
        waiting, self._waiting = self._waiting, {}
        for _, done in waiting.values():
            done(reason)
        for future in self._statistics.values():
            if not future.done():
                future.set_exception(reason)

    def _flush(self, messages: list[object]) -> None:
        if self._link.send(frames_of(messages)):
            return
        for message in messages:
            if isinstance(message, Infer) and message.id in self._waiting:
                _, done = self._waiting.pop(message.id)
                # Later: this may be called by the very `begin` that `done` was given to.
                self._loop.call_soon(done, _not_sent(self.spec))

    def _lost(self, link: Link) -> None:
        self.gone = True
        self._fail(_lost(self.spec))
        self._shared.close()

    def _receive(self, link: Link, frames: list[memoryview]) -> None:
        self._take(read_from_worker(frames))

    def _take(self, messages: Iterable[FromWorker]) -> None:
        for message in messages:
            if isinstance(message, Statistics):
                asked = self._statistics.pop(message.id, None)
                if asked is not None and not asked.done():
                    asked.set_result(message)
                continue
            if isinstance(message, Attached):
                self._shared.attached(message.ok)
                continue
            self._shared.release(message.id)
            waiting = self._waiting.pop(message.id, None)
            if waiting is None:
                continue
            request, done = waiting
            if message.fault is None:
                if request.trace is not None:
                    request.trace.answered(self.spec, request.id, message.times)
                version, said = self.spec.version, message.parameters
                done(InferReply(request.model, version, request.id, message.outputs, True, said))
            else:
                done(message.fault.error())

    # One timer for all requests, at the earliest deadline: most are answered long before.

    def _wake_at(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = self._loop.call_later(max(0.0, due - time.monotonic()), self._expire)

    def _expire(self) -> None:
        self._due, self._timer = NEVER, None
        now = time.monotonic()
        for key, (request, done) in list(self._waiting.items()):
            if request.deadline <= now and key in self._waiting:
                self._abandon(key)
                done(_late(request, now))
        if self._waiting:
            self._wake_at(min(request.deadline for request, _ in self._waiting.values()))


def _late(request: InferRequest, now: float) -> DeadlineExceeded:
    waited = now - request.arrived
    return DeadlineExceeded(f"model {request.model!r} gave no answer within {waited:.3f} s")


def _not_sent(spec: ModelSpec) -> Unavailable:
    """Unlike one that is lost, such a request cannot have run: it may be sent again."""
    return Unavailable(f"model {spec.name!r} is restarting: its worker has just gone away")


def _lost(spec: ModelSpec) -> Lost:
    return Lost(f"model {spec.name!r} lost this request: its worker went away")
