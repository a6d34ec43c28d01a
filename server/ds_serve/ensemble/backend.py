"""An ensemble seen from the gateway: requests to its members, one step after another."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial

import msgspec

from ds_engines.errors import EngineFailure, NotFound, ServeError, Unavailable
from ds_engines.reshaping import Reshapes
from ds_engines.spec import ModelSpec
from ds_serve.ensemble.accounts import Accounts
from ds_serve.ensemble.plan import Plan, Progress, at, make
from ds_serve.gateway.backend import Backend
from ds_serve.gateway.requests import (
    Abandon,
    Done,
    InferReply,
    InferRequest,
    answered,
    check,
    end_by_timeout,
)
from ds_serve.tracing import IN_WORKER
from ds_serve.transport.arena import Block
from ds_serve.transport.messages import ModelState, Schedule, Statistics, Tensor

Find = Callable[[str, str], Backend]
"""From a model's name and version to the way there. Raises NotFound, Unavailable."""

MOST_PLANS = 256
"""Different sets of outputs and inputs whose plans are kept."""


class EnsembleBackend:
    """Runs the steps of each request as soon as their tensors are there, side by side."""

    def __init__(self, spec: ModelSpec, find: Find) -> None:
        self.spec = spec
        self.held = 0
        self.accounts = Accounts(spec)
        self.reshapes = Reshapes(spec)
        self._find = find
        self.runs: set[Run] = set()
        self._plans: dict[tuple[tuple[str, ...], tuple[str, ...]], Plan] = {}

    def room(self, size: int, before: int) -> Block | None:
        """None: which member's worker would have to read it?"""
        return None

    def begin(self, request: InferRequest, done: Done) -> Abandon:
        rows = check(self.spec, request)
        end_by_timeout(request)
        run = Run(self, request, rows, self._plan(request), done)
        run.start()
        return run.abandon

    async def submit(self, request: InferRequest) -> AsyncIterator[InferReply]:
        yield await self.infer(request)

    async def infer(self, request: InferRequest) -> InferReply:
        return await answered(self.begin, request)

    async def statistics(self) -> Statistics:
        return self.accounts.statistics()

    async def move(self, state: ModelState) -> None:
        """It is where its members are, and asks for them with each request."""

    @property
    def trouble(self) -> str:
        """That of its members, the first that has some."""
        for index, step in enumerate(self.spec.steps):
            try:
                found = self.member(index).trouble
            except ServeError as error:
                return str(error)
            if found:
                return f"{at(self.spec, index)}: model {step.model!r}: {found}"
        return ""

    @property
    def in_flight(self) -> int:
        return len(self.runs) + self.held

    def close(self, reason: ServeError) -> None:
        for run in list(self.runs):
            run.fail(reason)

    def member(self, index: int) -> Backend:
        """The model of a step. Raises Unavailable that names the step."""
        step = self.spec.steps[index]
        try:
            return self._find(step.model, step.version)
        except ServeError as error:
            raise self.wrapped(index, error) from None

    def wrapped(self, index: int, error: ServeError) -> ServeError:
        """The error of a step as that of the ensemble."""
        kind = Unavailable if isinstance(error, NotFound) else type(error)
        said = f"ensemble {self.spec.name!r}, {at(self.spec, index)}: {error}"
        return kind(said, retry_after=error.retry_after)

    def _plan(self, request: InferRequest) -> Plan:
        """Kept, as most requests ask for the same."""
        given = tuple(tensor.name for tensor in request.inputs)
        plan = self._plans.get((request.outputs, given))
        if plan is None:
            outputs = request.outputs or tuple(tensor.name for tensor in self.spec.outputs)
            plan = make(self.spec.steps, outputs, given)
            if len(self._plans) < MOST_PLANS:
                self._plans[request.outputs, given] = plan
        return plan


class Run:
    """One request on its way through the steps. `done` is told once, unless it is abandoned."""

    def __init__(
        self, ensemble: EnsembleBackend, request: InferRequest, rows: int, plan: Plan, done: Done
    ) -> None:
        self._ensemble = ensemble
        self._request = request
        self._rows = rows
        self._plan = plan
        self._done = done
        self._progress = Progress(plan)
        self._tensors = {tensor.name: tensor for tensor in request.inputs}
        if ensemble.reshapes:
            self._tensors = {name: self._inner(each) for name, each in self._tensors.items()}
        self._running: dict[int, Abandon] = {}
        self._left = len(plan.parts)
        self._schedule = _passed_on(request.schedule)
        self._begun = time.monotonic_ns()
        # Held to the end: all steps meet the models that there are now, also if those are to go.
        self._members = {index: ensemble.member(index) for index in plan.parts}
        self._over = False

    def start(self) -> None:
        """Begin the first steps. Raises what is wrong with one at once."""
        if self._request.trace is not None:
            self._request.trace.mark("REQUEST_START")
        for member in self._members.values():
            member.held += 1
        self._ensemble.runs.add(self)
        error = self._begin(self._progress.start(self._tensors))
        if error is not None:
            self._end()
            self._failed(error)
            raise error

    def abandon(self) -> None:
        """Nobody wants the answer any more."""
        if not self._over:
            self._end()
            self._ensemble.accounts.failed("Cancelled", self._took)

    def fail(self, error: ServeError) -> None:
        if not self._over:
            self._end()
            self._failed(error)
            self._done(error)

    @property
    def _took(self) -> float:
        return time.monotonic() - self._request.arrived

    def _begin(self, steps: Iterable[int]) -> ServeError | None:
        """Begin these steps; what is wrong with one, if anything is."""
        for index in steps:
            try:
                self._running[index] = self._members[index].begin(
                    self._step_request(index), partial(self._answered, index)
                )
            except ServeError as error:
                return self._ensemble.wrapped(index, error)
        return None

    def _step_request(self, index: int) -> InferRequest:
        part, step = self._plan.parts[index], self._ensemble.spec.steps[index]
        request = self._request
        return InferRequest(
            model=step.model,
            version=step.version,
            inputs=[_named(name, self._tensors[tensor]) for name, tensor in part.inputs],
            arrived=time.monotonic(),
            deadline=request.deadline,
            id=request.id,
            outputs=tuple(name for name, _ in part.outputs),
            parameters=request.parameters,
            schedule=self._schedule,
            partition=request.partition,
        )

    def _answered(self, index: int, outcome: InferReply | ServeError) -> None:
        if self._over:
            return
        del self._running[index]
        if isinstance(outcome, ServeError):
            self.fail(self._ensemble.wrapped(index, outcome))
            return
        made = {tensor.name: tensor for tensor in outcome.outputs}
        for name, tensor in self._plan.parts[index].outputs:
            if name not in made:
                error = EngineFailure(f"the model gave no output {name!r}")
                self.fail(self._ensemble.wrapped(index, error))
                return
            self._tensors[tensor] = made[name]
        self._left -= 1
        arrived = [tensor for _, tensor in self._plan.parts[index].outputs]
        error_at_once = self._begin(self._progress.arrive(arrived))
        if error_at_once is not None:
            self.fail(error_at_once)
        elif not self._left:
            self._succeed()

    def _inner(self, tensor: Tensor) -> Tensor:
        """An input as the steps have it."""
        shape = self._ensemble.reshapes.input_shape(tensor.name, tensor.shape)
        return Tensor(tensor.name, tensor.datatype, shape, tensor.data)

    def _outer(self, name: str) -> Tensor:
        """An output as clients see it. Raises EngineFailure."""
        tensor = _named(name, self._tensors[name])
        tensor.shape = self._ensemble.reshapes.output_shape(name, tensor.shape)
        return tensor

    def _succeed(self) -> None:
        names = self._request.outputs or [each.name for each in self._ensemble.spec.outputs]
        try:
            outputs = [self._outer(name) for name in names]
        except EngineFailure as error:
            self.fail(error)
            return
        self._end()
        request, spec = self._request, self._ensemble.spec
        self._ensemble.accounts.answered(self._rows, self._took)
        if request.trace is not None:
            ended = time.monotonic_ns()
            times = [self._begun] * 3 + [ended] * (len(IN_WORKER) - 3)
            request.trace.answered(spec, request.id, times)
        self._done(InferReply(request.model, spec.version, request.id, outputs))

    def _failed(self, error: ServeError) -> None:
        self._ensemble.accounts.failed(error.kind, self._took)

    def _end(self) -> None:
        self._over = True
        running, self._running = self._running, {}
        for abandon in running.values():
            abandon()
        for member in self._members.values():
            member.held -= 1
        self._ensemble.runs.discard(self)


def _named(name: str, tensor: Tensor) -> Tensor:
    """The same bytes under another name; a tensor of its own, as sending one changes it."""
    return Tensor(name, tensor.datatype, tensor.shape, tensor.data)


def _passed_on(schedule: Schedule | None) -> Schedule | None:
    """Priority and sequence hold for each step; the timeout is the whole request's deadline."""
    if schedule is None:
        return None
    return msgspec.structs.replace(schedule, timeout_us=0)
