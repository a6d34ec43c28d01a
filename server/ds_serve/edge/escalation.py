"""A classifier that asks another model about the rows that it is not sure of."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_engines.errors import Overloaded, ServeError, Unavailable
from ds_engines.spec import ModelSpec
from ds_serve.edge import marks, rows
from ds_serve.edge.rules import Rule
from ds_serve.edge.sure import confidence, judged_output
from ds_serve.gateway.backend import Backend
from ds_serve.gateway.requests import Abandon, Done, InferReply, InferRequest, answered
from ds_serve.metrics import Tally
from ds_serve.transport.arena import Block
from ds_serve.transport.messages import ModelState, Statistics, Tensor

log = logging.getLogger(__name__)

Find = Callable[[str, str], Backend]
"""From a model's name and version to the way there. Raises NotFound, Unavailable."""

SHARE = 0.9
"""Of the time that a request has left, what the other model gets at most."""

Rows = NDArray[Any]


class EscalatingBackend:
    """`own` answers, and where it is not sure, or has no room, the rule's other model does. Where
    that one gives no answer in its time, the own one stands, marked.
    """

    def __init__(self, spec: ModelSpec, own: Backend, rule: Rule, find: Find) -> None:
        self.spec = spec
        self.own = own
        self.rule = rule
        self.output, self._misfit = _judged(spec, rule)
        if self._misfit:
            log.error("%s", self._misfit)
        self._find = find
        self._answers = {
            outcome: Tally(marks.answers.labels(spec.name, outcome).inc)
            for outcome in (marks.LOCAL, marks.ESCALATED, marks.DEGRADED_OUTCOME)
        }
        self._reachable = True
        self._in_flight = 0
        named = {tensor.name for tensor in spec.inputs if tensor.batch_axis == 0}
        given = {tensor.name for tensor in spec.outputs if tensor.batch_axis == 0}
        self.by_row = bool(spec.batch.max_batch_size) and (
            len(named) == len(spec.inputs) and len(given) == len(spec.outputs)
        )
        """Whether some of a request's rows can be asked about without the others."""

    @property
    def held(self) -> int:
        return self.own.held

    @held.setter
    def held(self, value: int) -> None:
        self.own.held = value

    @property
    def in_flight(self) -> int:
        return self.own.in_flight + self._in_flight

    async def move(self, state: ModelState) -> None:
        await self.own.move(state)

    @property
    def trouble(self) -> str:
        """That of the own model, where the other one cannot answer in its place."""
        if self._misfit or not self.own.trouble:
            return self._misfit
        try:
            return self.own.trouble if self._find(self.rule.to, "").trouble else ""
        except ServeError:
            return self.own.trouble

    def room(self, size: int, before: int) -> Block | None:
        """None: the inputs are needed again after the worker has done with them."""
        return None

    def begin(self, request: InferRequest, done: Done) -> Abandon:
        if self._misfit:
            raise Unavailable(self._misfit, retry_after=None)
        return _Call(self, request, done).start()

    async def submit(self, request: InferRequest) -> AsyncIterator[InferReply]:
        yield await self.infer(request)

    async def infer(self, request: InferRequest) -> InferReply:
        return await answered(self.begin, request)

    async def statistics(self) -> Statistics:
        return await self.own.statistics()

    def close(self, reason: ServeError) -> None:
        self.own.close(reason)

    def ask(self, request: InferRequest, done: Done) -> Abandon:
        """Begin a request to the other model. Raises ServeError."""
        return self._find(self.rule.to, "").begin(request, done)

    def going(self, more: int) -> None:
        """So many requests to the other model have begun, or ended."""
        self._in_flight += more

    def count(self, outcome: str, why: str = "") -> None:
        """An answer is given; the log has each change of whether the other one can be asked."""
        self._answers[outcome].add()
        if outcome == marks.DEGRADED_OUTCOME and self._reachable:
            self._reachable = False
            log.warning("model %s: its answers are its own now, for %s", self.spec.name, why)
        elif outcome == marks.ESCALATED and not self._reachable:
            self._reachable = True
            log.info("model %s: %s can be asked again", self.spec.name, self.rule.to)


class _Call:
    """One request on its way: to the own model, then perhaps to the other."""

    def __init__(self, backend: EscalatingBackend, request: InferRequest, done: Done) -> None:
        self._backend = backend
        self._request = request
        self._done = done
        self._inputs = [rows.copied(tensor) for tensor in request.inputs]
        self._wanted = request.outputs
        self._abandon: Abandon = _nothing
        self._own: InferReply | ServeError | None = None
        self._rows: Rows | None = None
        self._asking = self._over = False

    def start(self) -> Abandon:
        request, output = self._request, self._backend.output
        if request.outputs and output not in request.outputs:
            request.outputs = (*request.outputs, output)
        abandon = self._backend.own.begin(request, self._answered)
        if self._own is None:
            self._abandon = abandon
        return self.abandon

    def abandon(self) -> None:
        if not self._over:
            self._end()
            self._abandon()

    def _answered(self, outcome: InferReply | ServeError) -> None:
        """By the own model."""
        if self._over:
            return
        self._own = outcome
        if isinstance(outcome, ServeError):
            if isinstance(outcome, Overloaded | Unavailable):
                self._ask()
            else:
                self._tell(outcome)
            return
        try:
            unsure = self._unsure(outcome.outputs)
        except ServeError as error:
            self._tell(error)
            return
        if not len(unsure):
            self._give(outcome.outputs, marks.LOCAL)
            return
        self._rows = unsure
        self._ask()

    def _unsure(self, outputs: list[Tensor]) -> Rows:
        judged = next(tensor for tensor in outputs if tensor.name == self._backend.output)
        rule = self._backend.rule
        # NaN is not sure either.
        return np.flatnonzero(~(confidence(rows.array(judged), rule.scores) >= rule.below))

    @property
    def _whole(self) -> bool:
        """Whether the other model is asked about all of the request."""
        if self._rows is None or not self._backend.by_row:
            return True
        return len(self._rows) == self._inputs[0].shape[0]

    def _ask(self) -> None:
        now = time.monotonic()
        request = self._request
        left = min(self._backend.rule.seconds, SHARE * (request.deadline - now))
        inputs = self._inputs
        if not self._whole:
            assert self._rows is not None, "some are unsure"
            inputs = [rows.taken(tensor, self._rows) for tensor in inputs]
        asked = InferRequest(
            model=self._backend.rule.to,
            version="",
            inputs=inputs,
            arrived=now,
            deadline=now + left,
            id=request.id,
            outputs=self._wanted,
            parameters=request.parameters,
            partition=request.partition,
            rank=request.rank,
        )
        self._asking = True
        self._backend.going(1)
        try:
            self._abandon = self._backend.ask(asked, self._escalated)
        except ServeError as error:
            self._degrade(str(error))

    def _escalated(self, outcome: InferReply | ServeError) -> None:
        """By the other model."""
        if self._over:
            return
        if isinstance(outcome, ServeError):
            self._degrade(str(outcome))
            return
        if self._rows is None:
            self._pass(outcome, outcome.outputs)
            return
        assert isinstance(self._own, InferReply), "its rows were judged"
        try:
            merged = rows.put(
                self._shown(self._own.outputs), outcome.outputs, self._rows, whole=self._whole
            )
        except ServeError as error:
            self._degrade(str(error))
            return
        if merged is None:
            self._degrade(f"the outputs of {self._backend.rule.to!r} do not fit its own")
        else:
            self._pass(outcome, merged)

    def _pass(self, theirs: InferReply, outputs: list[Tensor]) -> None:
        self._give(
            outputs,
            marks.ESCALATED,
            1 + marks.tier_of(theirs.parameters),
            degraded=marks.degraded_in(theirs.parameters),
        )

    def _degrade(self, why: str) -> None:
        if isinstance(self._own, InferReply):
            self._give(self._own.outputs, marks.DEGRADED_OUTCOME, why=why, degraded=True)
        else:
            assert self._own is not None, "the own model was asked first"
            self._tell(self._own)

    def _give(
        self,
        outputs: list[Tensor],
        outcome: str,
        tier: int = 0,
        *,
        why: str = "",
        degraded: bool = False,
    ) -> None:
        own = self._own if isinstance(self._own, InferReply) else None
        said = marks.marked(own.parameters if own else None, tier, degraded=degraded)
        request = self._request
        version = self._backend.spec.version
        self._backend.count(outcome, why)
        shown = self._shown(outputs)
        self._tell(InferReply(request.model, version, request.id, shown, True, said))

    def _shown(self, outputs: list[Tensor]) -> list[Tensor]:
        """Those that the client wants, in its order."""
        if not self._wanted:
            return outputs
        found = {tensor.name: tensor for tensor in outputs}
        return [found[name] for name in self._wanted if name in found]

    def _tell(self, outcome: InferReply | ServeError) -> None:
        self._end()
        self._done(outcome)

    def _end(self) -> None:
        self._over = True
        if self._asking:
            self._asking = False
            self._backend.going(-1)


def _judged(spec: ModelSpec, rule: Rule) -> tuple[str, str]:
    """The output by which the model is judged, or what is wrong with the rule."""
    said = f"--escalate {spec.name}={rule.to}"
    if spec.decoupled or spec.sequence is not None:
        kind = "decoupled" if spec.decoupled else "a model with sequences"
        return "", f"{said}: model {spec.name!r} is {kind}, which cannot escalate"
    try:
        return judged_output(spec, rule.output), ""
    except ValueError as error:
        return "", f"{said}: model {spec.name!r}: {error}"


def _nothing() -> None:
    """Nothing is under way yet."""
