"""What a client may ask of the whole server: its models and settings, which the supervisor owns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import msgspec

from ds_engines.errors import ServeError, Unavailable
from ds_serve.transport.messages import Reply
from ds_serve.transport.orders import Index, IndexEntry, Load, Log, Order, Trace, Unload

__all__ = ["Control", "IndexEntry", "LogValues", "TraceValues"]

TraceValues = dict[str, list[str]]
"""Triton's trace settings by Triton's names; each value as a list of strings."""

LogValues = dict[str, bool | int | str]
"""Triton's log settings by Triton's names."""

Send = Callable[[Order], bool]


class Control:
    """The same answers whichever gateway is asked. All calls raise errors of ds_engines.errors."""

    def __init__(self) -> None:
        self._send: Send | None = None
        self._ids = count(1)
        self._waiting: dict[int, asyncio.Future[Reply]] = {}

    def bind(self, send: Send) -> None:
        """From now on orders go this way; False where the supervisor is gone."""
        self._send = send

    def answered(self, reply: Reply) -> None:
        """The supervisor has done as it was told, or says why not."""
        waiting = self._waiting.get(reply.id)
        if waiting is not None and not waiting.done():
            waiting.set_result(reply)

    async def index(self, ready: bool = False) -> list[IndexEntry]:
        """All models of the server and its repositories; only those that are ready, if asked."""
        value = await self._order(Index(next(self._ids), ready))
        return msgspec.convert(value, list[IndexEntry])

    async def load(
        self, name: str, config: str | None = None, files: Mapping[str, bytes] | None = None
    ) -> None:
        """Load a model, or load it anew; returns when it is ready.

        `config`: a ModelConfig as JSON, in place of the model's config.pbtxt. `files`: contents
        by path below the model's folder (`1/model.onnx`), in place of the folder.
        """
        await self._order(Load(next(self._ids), name, config, dict(files or {})))

    async def unload(self, name: str, dependents: bool = False) -> None:
        """Serve a model no more; requests in flight are finished after this returns."""
        await self._order(Unload(next(self._ids), name, dependents))

    async def trace(
        self, model: str = "", changes: Mapping[str, list[str] | None] | None = None
    ) -> TraceValues:
        """The trace settings after these changes; None brings back the default."""
        value = await self._order(Trace(next(self._ids), model, dict(changes or {})))
        return msgspec.convert(value, TraceValues)

    async def log(self, changes: Mapping[str, bool | int | str | None] | None = None) -> LogValues:
        """The log settings after these changes; None brings back the default."""
        value = await self._order(Log(next(self._ids), dict(changes or {})))
        return msgspec.convert(value, LogValues)

    async def _order(self, order: Order) -> Any:
        answer = self._waiting[order.id] = asyncio.get_running_loop().create_future()
        try:
            if self._send is None or not self._send(order):
                raise Unavailable("the server is shutting down")
            reply = await answer
        finally:
            del self._waiting[order.id]
        if reply.fault is None:
            return reply.value
        raise _error(reply)


def _error(reply: Reply) -> ServeError:
    assert reply.fault is not None
    error = reply.fault.error()
    error.retry_after = reply.fault.retry_after  # None: waiting does not help
    return error
