"""Feeds an engine's slots from a queue: a slot first, then a batch for it, then the run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar, runtime_checkable

from ds_engines.errors import ServeError
from ds_serve.scheduler.queue import NEVER, AnyQueue, Batch, Entry

Result = TypeVar("Result")
Refused = Sequence[tuple[Entry, ServeError]]

QUICK = 0.0003
"""Seconds. With one slot, an engine this quick runs on the loop's own thread: handing a batch to
another thread and the answer back would cost as much as the run itself."""

_NONE = object()
"""No lane: None is that of all requests to a model which is not batched."""


@runtime_checkable
class Impatient(Protocol):
    """A queue in which requests wait for a limited time, whether a slot is free or not."""

    def expire(self, now: float) -> Batch:
        """What has waited too long: a batch without entries."""

    def next_end(self) -> float:
        """When the next request has waited too long; NEVER where none will."""


class Batcher(Generic[Result]):
    """One queue, `slots` threads. All methods belong to the loop's thread.

    `run` is called with a batch in a slot's thread and must not raise. `on_done` is told of the
    batch and of what `run` returned, `on_late` of requests whose deadline passed while they
    waited, `on_refused` of those that will not be run for another reason; all in the loop's
    thread. `running` counts the requests in the slots.

    A single slot whose last batch was quick runs the next one of that lane in the loop's thread,
    unless all must run `in_threads`. Another lane has other shapes, and may take seconds: meanwhile
    nothing could be refused.
    """

    def __init__(
        self,
        queue: AnyQueue,
        slots: int,
        run: Callable[[list[Entry]], Result],
        on_done: Callable[[list[Entry], Result], None],
        on_late: Callable[[list[Entry]], None],
        on_refused: Callable[[Refused], None] = lambda refused: None,
        *,
        in_threads: bool = False,
    ) -> None:
        self._queue = queue
        self._in_threads = in_threads
        self._impatient = queue if isinstance(queue, Impatient) else None
        self._on_refused = on_refused
        self._run = run
        self._on_done = on_done
        self._on_late = on_late
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="slot")
        self._slots = self._free = slots
        self._quick: object = _NONE
        self._started: dict[int, float] = {}
        self.running = 0
        self._timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def busy(self) -> float:
        """Age in seconds of the oldest running batch; 0 where none runs."""
        return time.monotonic() - min(self._started.values()) if self._started else 0.0

    def pump(self) -> None:
        """Give every free slot a batch if one is due; call it after every change to the queue."""
        while self._free and len(self._queue):
            now = time.monotonic()
            batch = self._queue.take(now)
            if batch.late:
                self._on_late(batch.late)
            if batch.refused:
                self._on_refused(batch.refused)
            if not batch.entries:
                self._wake_at(self._queue.next_due(), now)
                break
            if batch.entries[0].lane == self._quick:
                self._run_here(batch)
                break
            self._start(batch, now)
        if self._impatient is not None and not self._free:
            self._expire(self._impatient)
        self._check_idle()

    async def idle(self) -> None:
        """Wait until nothing waits and nothing runs."""
        while len(self._queue) or self._started:
            self._idle.clear()
            await self._idle.wait()

    def close(self) -> None:
        """Forget the threads; a batch under way is not waited for."""
        if self._timer is not None:
            self._timer.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _start(self, batch: Batch, now: float) -> None:
        self._free -= 1
        self.running += len(batch.entries)
        key = id(batch)
        self._started[key] = now
        future = self._threads.submit(self._timed, batch)
        future.add_done_callback(lambda done: self._report(key, batch, done))

    def _timed(self, batch: Batch) -> tuple[Result, float]:
        begun = time.monotonic()
        result = self._run(batch.entries)
        return result, time.monotonic() - begun

    def _report(self, key: int, batch: Batch, done: Future[tuple[Result, float]]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._finish, key, batch, done)

    def _finish(self, key: int, batch: Batch, done: Future[tuple[Result, float]]) -> None:
        del self._started[key]
        self._free += 1
        self.running -= len(batch.entries)
        try:
            if not done.cancelled():
                self._done(batch, *done.result())
        finally:
            self.pump()

    def _run_here(self, batch: Batch) -> None:
        self._done(batch, *self._timed(batch))
        if len(self._queue):  # once the loop has sent these answers and read what came meanwhile
            self._loop.call_soon(self.pump)

    def _done(self, batch: Batch, result: Result, seconds: float) -> None:
        quick = self._slots == 1 and seconds < QUICK and not self._in_threads
        self._quick = batch.entries[0].lane if quick else _NONE
        self._on_done(batch.entries, result)

    def _expire(self, queue: Impatient) -> None:
        """While every slot is busy, nothing is taken; what has waited too long is told even so."""
        now = time.monotonic()
        gone = queue.expire(now)
        if gone.late:
            self._on_late(gone.late)
        if gone.refused:
            self._on_refused(gone.refused)
        self._wake_at(queue.next_end(), now)

    def _check_idle(self) -> None:
        if not self._started and not len(self._queue):
            self._idle.set()

    def _wake_at(self, due: float, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due != NEVER:
            self._timer = self._loop.call_later(max(0.0, due - now), self._wake)

    def _wake(self) -> None:
        self._timer = None
        self.pump()
