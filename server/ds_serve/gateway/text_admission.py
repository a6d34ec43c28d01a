"""Lets requests in to a text model as far as it has room for their tokens; the others wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from ds_engines.errors import DeadlineExceeded, RateLimited, ServeError
from ds_serve import metrics
from ds_serve.gateway.text_load import Load
from ds_serve.gateway.text_queue import Drain, FairQueue, Waiting, retry_after
from ds_serve.security.text_ledger import NOBODY, Seat

LOOK_EVERY = 1.0
"""Seconds from one look at the worker's metrics to the next, while there are requests."""

LOOK_FULL = 0.25
"""The same, while the worker is full."""

LOOK_AGAIN = 30.0
"""The same, where the worker has said nothing of its cache."""

Look = Callable[[], Awaitable[Load]]


class Admission:
    """Of one gateway to one model. `most`: tokens that all gateways may have in flight there; 0
    for as many as the worker's cache holds, if it says so. `longest`: requests that wait here.
    `look` asks the worker how full it is.
    """

    def __init__(self, name: str, seat: Seat, look: Look, most: int, longest: int) -> None:
        self._name = name
        self._seat = seat
        self._look = look
        self._most = most
        self._longest = longest
        self._load = Load()
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue(seat.urgency)
        self._drain = Drain()
        self._requests = 0
        self._looking: asyncio.Task[None] | None = None
        self._looked = -LOOK_AGAIN
        self._tokens = metrics.Tally(metrics.text_tokens.labels(name).inc)
        self._depth = metrics.Level(metrics.text_waiting.labels(name).set)

    @property
    def waiting(self) -> int:
        """Requests that wait here."""
        return len(self._queue)

    @asynccontextmanager
    async def room(
        self, key: str, tokens: int, priority: int, timeout: float
    ) -> AsyncIterator[None]:
        """While the block runs the tokens are the request's. Raises RateLimited where too many
        wait or it would wait too long, DeadlineExceeded.
        """
        self._watch()
        most = self._bound
        if not most or not tokens:
            yield
            return
        tokens = min(tokens, most)
        await self._enter(key, tokens, priority, timeout)
        self._tokens.add(tokens)
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1
            self._tokens.add(-tokens)
            self._seat.leave(tokens)
            self.pump()

    async def _enter(self, key: str, tokens: int, priority: int, timeout: float) -> None:
        alone = not self._queue
        if alone and self._take(key, tokens, self._seat.urgency(key, priority)):
            return
        self._refuse(tokens, timeout)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        one = Waiting(key, tokens, priority, time.monotonic() + timeout, future)
        self._queue.push(one)
        self.pump()
        self._begin_looking()
        try:
            async with asyncio.timeout(timeout):
                await future
        except BaseException as error:
            self._queue.remove(one)
            if future.done() and not future.cancelled() and future.exception() is None:
                self._seat.leave(tokens)  # it was let in while its client left
            self.pump()
            if isinstance(error, TimeoutError):
                said = f"model {self._name!r} had no room for this request in time"
                raise DeadlineExceeded(said) from None
            raise

    def _refuse(self, tokens: int, timeout: float) -> None:
        """Raise RateLimited where waiting makes no sense, and say when it will again."""
        self._drain.see(time.monotonic(), self._seat.done)
        before = self._seat.waiting + self._seat.in_flight + tokens - self._bound
        seconds = self._drain.wait(max(before, 0))
        if len(self._queue) >= self._longest:
            said = f"{self._longest} requests wait for it already (--max-text-queue)"
        elif self._drain.rate and seconds > timeout:
            said = f"this request would wait for about {seconds:.0f} s"
        else:
            return
        metrics.text_refused.labels(self._name).inc()
        raise RateLimited(f"model {self._name!r} is full: {said}", retry_after=retry_after(seconds))

    @property
    def _bound(self) -> int:
        return self._most or self._load.bound

    def _take(self, key: str, tokens: int, urgency: int) -> bool:
        # A worker that is full gets one request only where it would have none.
        most = 1 if self._load.full else self._bound
        return self._seat.enter(key, tokens, urgency, most)

    def pump(self) -> None:
        """Let in whoever is next while there is room, and have others do so."""
        while (first := self._queue.first()) is not None:
            one, urgency = first
            self._seat.wait(self._queue.tokens, urgency)
            if not self._take(one.key, one.tokens, urgency):
                break
            self._queue.remove(one)
            if one.ticket.done():  # its client has just left
                self._seat.leave(one.tokens)
            else:
                one.ticket.set_result(None)
        else:
            self._seat.wait(0, NOBODY)
        self._depth.set(len(self._queue))
        self._drain.see(time.monotonic(), self._seat.done)
        self._seat.wake()

    def _watch(self) -> None:
        """Look at the worker now and then, while there are requests."""
        due = LOOK_EVERY if self._load.capacity else LOOK_AGAIN
        if self._queue or time.monotonic() - self._looked >= due:
            self._begin_looking()

    def _begin_looking(self) -> None:
        if self._looking is None:
            self._looking = asyncio.ensure_future(self._keep_looking())

    async def _keep_looking(self) -> None:
        try:
            while True:
                self._looked = time.monotonic()
                try:
                    self._load = await self._look()
                except (ServeError, TimeoutError):
                    self._load = Load()
                self._seat.bury()
                self.pump()
                # Who waits may wait for what a gateway had in flight that is no more.
                if not self._queue and not (self._load.capacity and self._requests):
                    return
                await asyncio.sleep(LOOK_FULL if self._load.full else LOOK_EVERY)
        finally:
            self._looking = None

    def close(self, reason: ServeError) -> None:
        """Whoever waits gets the reason."""
        if self._looking is not None:
            self._looking.cancel()
        while (first := self._queue.first()) is not None:
            self._queue.remove(first[0])
            with suppress(asyncio.InvalidStateError):
                first[0].ticket.set_exception(reason)
        self._seat.wait(0, NOBODY)
