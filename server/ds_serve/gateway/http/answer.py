"""Small pieces of ASGI: noticing that a client left, sending an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import orjson

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON = b"application/json"

WATCH_AFTER = 0.02
"""Seconds. Quicker requests are over before it pays to watch whether their client leaves."""


class Answer:
    """A whole HTTP answer. `chunks` are sent one after the other, without being joined."""

    __slots__ = ("chunks", "headers", "status")

    def __init__(self, status: int, chunks: list[Any], headers: Headers) -> None:
        self.status = status
        self.chunks = chunks
        self.headers = headers

    @classmethod
    def json(cls, status: int, value: object, headers: Headers | None = None) -> Answer:
        return cls(status, [orjson.dumps(value)], headers or [(b"content-type", JSON)])

    async def send(self, send: Send, extra: Iterable[tuple[bytes, bytes]] = ()) -> None:
        length = sum(len(chunk) for chunk in self.chunks)
        headers = [*self.headers, (b"content-length", b"%d" % length), *extra]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        last = len(self.chunks) - 1
        for index, chunk in enumerate(self.chunks):
            await send(
                {"type": "http.response.body", "body": bytes(chunk), "more_body": index < last}
            )


class Watch:
    """Cancels the task that answers a request when its client leaves.

    The body must have been read: what `receive` then yields is the disconnect.
    """

    def __init__(self, receive: Receive) -> None:
        self.gone = False
        self._receive = receive
        self._task = asyncio.current_task()
        self._watching: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER, self._begin)

    def stop(self) -> None:
        self._timer.cancel()
        if self._watching is not None:
            self._watching.cancel()

    def _begin(self) -> None:
        self._watching = asyncio.ensure_future(self._wait())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if self._task is not None:
            self._task.cancel()
