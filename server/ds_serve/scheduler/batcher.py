"""Feeds an engine's slots from a queue: a slot first, then a batch for it, then the run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from ds_serve.scheduler.queue import NEVER, Batch, Entry, Queue

Result = TypeVar("Result")


class Batcher(Generic[Result]):
    """One queue, `slots` threads. All methods belong to the loop's thread.

    `run` is called with a batch in a slot's thread and must not raise. `on_done` is told of the
    batch and of what `run` returned, `on_late` of requests whose deadline passed while they
    waited; both in the loop's thread. `running` counts the requests in the slots.
    """

    def __init__(
        self,
        queue: Queue,
        slots: int,
        run: Callable[[list[Entry]], Result],
        on_done: Callable[[list[Entry], Result], None],
        on_late: Callable[[list[Entry]], None],
    ) -> None:
        self._queue = queue
        self._run = run
        self._on_done = on_done
        self._on_late = on_late
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="slot")
        self._free = slots
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
            if not batch.entries:
                self._wake_at(self._queue.next_due(), now)
                break
            self._start(batch, now)

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
        future = self._threads.submit(self._run, batch.entries)
        future.add_done_callback(lambda done: self._report(key, batch, done))

    def _report(self, key: int, batch: Batch, done: Future[Result]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._finish, key, batch, done)

    def _finish(self, key: int, batch: Batch, done: Future[Result]) -> None:
        del self._started[key]
        self._free += 1
        self.running -= len(batch.entries)
        if not done.cancelled():
            self._on_done(batch.entries, done.result())
        self.pump()
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
