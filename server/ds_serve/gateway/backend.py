"""What a gateway knows of a model: somewhere to send a request, and an answer that comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from ds_engines.errors import DeadlineExceeded, ServeError, Unavailable
from ds_engines.spec import ModelSpec
from ds_serve.gateway.requests import InferReply, InferRequest, check
from ds_serve.transport.codec import frames_of, read_from_worker
from ds_serve.transport.link import Link, Outbox, connect
from ds_serve.transport.messages import Answer, Cancel, Infer, Statistics, StatisticsQuery

STATISTICS_SECONDS = 2.0


class Backend(Protocol):
    """A model that is ready."""

    def submit(self, request: InferRequest) -> AsyncIterator[InferReply]:
        """The answers, as they come. Raises the errors of ds_engines.errors."""

    async def infer(self, request: InferRequest) -> InferReply:
        """The one answer of a model that is not decoupled."""

    async def statistics(self) -> Statistics:
        """What the model's worker has done."""

    def close(self, reason: ServeError) -> None:
        """Fail what is in flight; the worker is gone."""


class TensorBackend:
    """A link to an engine worker."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._ids = count(1)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._statistics: dict[int, asyncio.Future[Statistics]] = {}
        self._loop = asyncio.get_running_loop()
        self._link = Link(self._receive, on_lost=self._lost)
        self._outbox = Outbox(self._flush)

    async def connect(self, address: str) -> None:
        """Raises OSError where the worker is gone already."""
        await connect(Path(address), self._link)

    async def submit(self, request: InferRequest) -> AsyncIterator[InferReply]:
        yield await self.infer(request)

    async def infer(self, request: InferRequest) -> InferReply:
        rows = check(self.spec, request)
        key = next(self._ids)
        answer = self._waiting[key] = self._loop.create_future()
        self._outbox.put(
            Infer(key, rows, request.arrived, request.deadline, request.inputs, request.outputs)
        )
        timer = self._loop.call_later(
            max(0.0, request.deadline - time.monotonic()), self._expire, answer, request
        )
        try:
            reply = await answer
        finally:
            timer.cancel()
            # Still there: the client went away, or the deadline passed. Nobody wants the answer.
            if self._waiting.pop(key, None) is not None:
                self._outbox.put(Cancel(key))
        if reply.fault is not None:
            raise reply.fault.error()
        return InferReply(request.model, self.spec.version, request.id, reply.outputs)

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

    def close(self, reason: ServeError) -> None:
        self._fail(reason)
        self._link.close()

    def _fail(self, reason: ServeError) -> None:
        futures: list[asyncio.Future[Any]] = [*self._waiting.values(), *self._statistics.values()]
        for future in futures:
            if not future.done():
                future.set_exception(reason)
        self._waiting.clear()

    def _flush(self, messages: list[object]) -> None:
        if self._link.send(frames_of(messages)):
            return
        for message in messages:
            if isinstance(message, Infer) and message.id in self._waiting:
                lost = self._waiting.pop(message.id)
                if not lost.done():
                    lost.set_exception(_lost(self.spec))

    def _lost(self, link: Link) -> None:
        self._fail(_lost(self.spec))

    def _receive(self, link: Link, frames: list[memoryview]) -> None:
        for message in read_from_worker(frames):
            if isinstance(message, Statistics):
                asked = self._statistics.pop(message.id, None)
                if asked is not None and not asked.done():
                    asked.set_result(message)
                continue
            waiting = self._waiting.pop(message.id, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(message)

    def _expire(self, answer: asyncio.Future[Answer], request: InferRequest) -> None:
        if not answer.done():
            waited = time.monotonic() - request.arrived
            answer.set_exception(
                DeadlineExceeded(f"model {request.model!r} gave no answer within {waited:.3f} s")
            )


def _lost(spec: ModelSpec) -> Unavailable:
    return Unavailable(f"model {spec.name!r} lost this request: its worker went away")
