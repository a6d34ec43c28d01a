"""A model that is given whole requests, and may give several answers to each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from ds_engines.errors import Overloaded, ServeError, Unsupported
from ds_engines.spec import ModelSpec
from ds_serve.gateway.backend import TensorBackend
from ds_serve.gateway.parameters import NAMES, RESERVED
from ds_serve.gateway.regions import Regions
from ds_serve.gateway.requests import Abandon, Done, InferReply, InferRequest
from ds_serve.transport.link import Outbox
from ds_serve.transport.messages import About, Answer, FromWorker, Infer

NOTHING = About()

MOST = 10_000
"""Answers to one request that may wait for a client that reads slowly."""

OURS = NAMES | {"binary_data_output"}


class WholeBackend(TensorBackend):
    """Tells the worker of each request what the client says, and passes on answers as they come."""

    def __init__(self, spec: ModelSpec, regions: Regions) -> None:
        super().__init__(spec, regions)
        self._outbox: Telling = Telling(self._flush)

    def begin(self, request: InferRequest, done: Done) -> Abandon:
        if self.spec.decoupled:
            raise Unsupported(
                f"model {self.spec.name!r} is decoupled: a request may have any number of answers, "
                "so it must come over a gRPC stream or to generate_stream"
            )
        return self._begin(request, done)

    async def submit(self, request: InferRequest) -> AsyncIterator[InferReply]:
        replies: asyncio.Queue[InferReply | ServeError] = asyncio.Queue(MOST + 1)

        def take(reply: InferReply | ServeError) -> None:
            if replies.qsize() < MOST:
                replies.put_nowait(reply)
            elif not replies.full():
                replies.put_nowait(_too_slow(self.spec))

        abandon = self._begin(request, take)
        try:
            while True:
                reply = await replies.get()
                if isinstance(reply, ServeError):
                    raise reply
                yield reply
                if reply.final:
                    return
        finally:
            abandon()

    def _begin(self, request: InferRequest, done: Done) -> Abandon:
        self._outbox.about = About(request.id, _own(request.parameters))
        return super().begin(request, done)

    def _take(self, messages: Iterable[FromWorker]) -> None:
        last: list[FromWorker] = []
        for message in messages:
            if isinstance(message, Answer) and not message.final:
                # What came before it must be told before it.
                super()._take(last)
                last = []
                self._tell_part(message)
            else:
                last.append(message)
        super()._take(last)

    def _tell_part(self, answer: Answer) -> None:
        waiting = self._waiting.get(answer.id)
        if waiting is not None:
            request, done = waiting
            version, said = self.spec.version, answer.parameters
            done(InferReply(request.model, version, request.id, answer.outputs, False, said))


def _too_slow(spec: ModelSpec) -> Overloaded:
    return Overloaded(f"{MOST} answers of model {spec.name!r} were not taken: the rest is lost")


def _own(parameters: dict[str, Any]) -> dict[str, Any]:
    """Those that mean nothing to the server."""
    if not parameters:
        return parameters
    return {
        name: value
        for name, value in parameters.items()
        if name not in OURS and not name.startswith(RESERVED)
    }


class Telling(Outbox):
    """Adds to each request what its client says of it."""

    def __init__(self, flush: Callable[[list[object]], None]) -> None:
        super().__init__(flush)
        self.about = NOTHING

    def put(self, message: object) -> None:
        if isinstance(message, Infer) and self.about != NOTHING:
            message.about = self.about
        super().put(message)
