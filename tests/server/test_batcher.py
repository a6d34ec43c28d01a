"""The batcher with a real loop and real threads; what a run does, the test decides."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from ds_engines.spec import BatchPolicy
from ds_serve.scheduler.batcher import QUICK, Batcher
from ds_serve.scheduler.queue import NEVER, Entry, Queue


class Engine:
    """Runs when it is told to, and remembers what, and in which thread."""

    def __init__(self) -> None:
        self.batches: list[list[object]] = []
        self.threads: list[threading.Thread] = []
        self.go = threading.Semaphore(0)
        self.most = self._inside = 0
        self._lock = threading.Lock()

    def run(self, entries: list[Entry]) -> str:
        with self._lock:
            self.batches.append([entry.key for entry in entries])
            self.threads.append(threading.current_thread())
            self._inside += 1
            self.most = max(self.most, self._inside)
        assert self.go.acquire(timeout=30), "nobody let the batch run"
        time.sleep(2 * QUICK)  # quick engines run on the loop's thread
        with self._lock:
            self._inside -= 1
        return f"batch of {len(entries)}"


class Rig:
    """A batcher over its queue and an engine. `done` has the keys of what came back."""

    def __init__(self, slots: int = 1, run: Callable[[list[Entry]], str] | None = None, **policy):
        self.queue = Queue(BatchPolicy(**{"max_batch_size": 4, **policy}))
        self.engine = Engine()
        self.done: list[object] = []
        self.results: list[str] = []
        self.late: list[object] = []
        self._changed = asyncio.Event()
        self.batcher = Batcher(
            self.queue, slots, run or self.engine.run, self._on_done, self._on_late
        )
        self._keys = 0

    def _on_done(self, entries: list[Entry], result: str) -> None:
        self.done += [entry.key for entry in entries]
        self.results.append(result)
        self._changed.set()

    def _on_late(self, entries: list[Entry]) -> None:
        self.late += [entry.key for entry in entries]
        self._changed.set()

    def push(self, count: int = 1, deadline: float = NEVER, lane: str = "lane") -> None:
        for _ in range(count):
            self._keys += 1
            self.queue.push(Entry(self._keys, lane, 1, time.monotonic(), deadline))
        self.batcher.pump()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def until_running(self, batches: int) -> None:
        """Until the engine has begun so many batches."""
        async with asyncio.timeout(30):
            while len(self.engine.batches) < batches:
                await asyncio.sleep(0.001)


@asynccontextmanager
async def rig(slots: int = 1, **options) -> AsyncIterator[Rig]:
    made = Rig(slots, **options)
    try:
        yield made
    finally:
        made.engine.go.release(1000)
        await asyncio.wait_for(made.batcher.idle(), 30)
        made.batcher.close()


async def test_a_batch_is_formed_once_a_slot_is_free() -> None:
    async with rig() as r:
        r.push()
        await r.until_running(1)
        r.push(2)
        r.push(1)
        r.engine.go.release()
        await r.until_running(2)
        assert r.engine.batches == [[1], [2, 3, 4]]


async def test_results_go_to_the_batch_that_they_are_of() -> None:
    async with rig() as r:
        r.push()
        await r.until_running(1)
        r.push(6)
        r.engine.go.release(3)
        await r.until(lambda: len(r.done) == 7)
        assert r.engine.batches == [[1], [2, 3, 4, 5], [6, 7]]
        assert r.done == [1, 2, 3, 4, 5, 6, 7]
        assert r.results == ["batch of 1", "batch of 4", "batch of 2"]


async def test_as_many_batches_run_at_once_as_there_are_slots() -> None:
    async with rig(slots=3) as r:
        r.push(20)
        await r.until_running(3)
        assert r.batcher.running == 12
        assert len(r.queue) == 8
        r.engine.go.release(2)
        await r.until_running(5)
        r.engine.go.release(3)
        await r.until(lambda: len(r.done) == 20)
        assert r.engine.most == 3
        assert r.batcher.running == 0


async def test_a_delay_ends_by_itself() -> None:
    async with rig(max_delay_us=20_000) as r:
        r.push(2)
        assert r.engine.batches == []
        await r.until_running(1)
        assert r.engine.batches == [[1, 2]]


async def test_a_full_batch_ends_the_delay() -> None:
    async with rig(max_delay_us=3_600_000_000) as r:
        r.push(3)
        assert r.engine.batches == []
        r.push(1)
        await r.until_running(1)
        assert r.engine.batches == [[1, 2, 3, 4]]


async def test_what_came_too_late_is_told_and_not_run() -> None:
    async with rig() as r:
        r.push()
        await r.until_running(1)
        r.push(2, deadline=time.monotonic())
        r.push()
        r.engine.go.release()
        await r.until_running(2)
        assert r.late == [2, 3]
        assert r.engine.batches == [[1], [4]]


async def test_idle_waits_for_what_runs_and_for_what_waits() -> None:
    async with rig() as r:
        await asyncio.wait_for(r.batcher.idle(), 30)
        r.push()
        await r.until_running(1)
        r.push()
        idle = asyncio.create_task(r.batcher.idle())
        r.engine.go.release()
        await r.until_running(2)
        assert not idle.done()
        r.engine.go.release()
        await asyncio.wait_for(idle, 30)
        assert r.done == [1, 2]


@pytest.mark.parametrize("end", ["cancelled", "late"])
async def test_idle_does_not_wait_for_what_is_gone(end: str) -> None:
    async with rig(max_delay_us=3_600_000_000) as r:
        r.push(deadline=time.monotonic() + 0.01)
        idle = asyncio.create_task(r.batcher.idle())
        await asyncio.sleep(0)
        if end == "cancelled":
            r.queue.cancel(1)
        else:
            await asyncio.sleep(0.02)
        r.batcher.pump()
        await asyncio.wait_for(idle, 30)
        assert r.engine.batches == []


async def test_busy_is_the_age_of_the_oldest_batch() -> None:
    async with rig(slots=2) as r:
        assert r.batcher.busy == 0
        r.push()
        await r.until_running(1)
        first = r.batcher.busy
        r.push()
        await r.until_running(2)
        assert r.batcher.busy > first > 0
        r.engine.go.release(2)
        await r.until(lambda: len(r.done) == 2)
        assert r.batcher.busy == 0


async def test_an_answer_that_fails_stops_nothing() -> None:
    """A fault in what is done with one batch's results must not take the slot away."""
    seen: list[object] = []
    errors: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, about: errors.append(about))

    def fail_first(entries: list[Entry], _result: str) -> None:
        seen.append(entries[0].key)
        if len(seen) == 1:
            raise RuntimeError("cannot be sent")

    queue = Queue(BatchPolicy(max_batch_size=1))
    batcher: Batcher[str] = Batcher(
        queue, 1, lambda entries: time.sleep(3 * QUICK) or "", fail_first, print
    )
    for key in range(3):
        queue.push(Entry(key, "lane", 1, 0.0))
    batcher.pump()
    await asyncio.wait_for(batcher.idle(), 30)
    batcher.close()
    assert seen == [0, 1, 2]
    assert [str(about["exception"]) for about in errors] == ["cannot be sent"]


async def test_a_quick_engine_runs_on_the_loop_and_a_slow_one_beside_it() -> None:
    """Every batch is answered once and in order, whichever thread it ran in."""
    here = threading.current_thread()
    threads: list[threading.Thread] = []
    naps = iter([0.0, 0.0, 5 * QUICK, 5 * QUICK, 0.0, 0.0])

    def run(entries: list[Entry]) -> str:
        threads.append(threading.current_thread())
        if nap := next(naps):
            time.sleep(nap)
        return ""

    async with rig(run=run, max_batch_size=1) as r:
        r.push(6)
        await r.until(lambda: len(r.done) == 6)
        assert r.done == [1, 2, 3, 4, 5, 6]
    assert threads[0] is not here
    assert threads[3] is not here


async def test_a_quick_lane_says_nothing_of_another() -> None:
    """The loop must not be held by a request that only looks like the quick one before it."""
    ran: list[object] = []
    began, go = threading.Event(), threading.Event()

    def run(entries: list[Entry]) -> str:
        ran.append(entries[0].lane)
        if entries[0].lane == "slow":
            began.set()
            assert go.wait(30), "the loop was held"
        return ""

    async with rig(run=run) as r:
        for count in range(1, 20):
            r.push(lane="quick")
            await r.until(lambda: len(r.done) == count)  # noqa: B023
        r.push(lane="slow")
        await asyncio.to_thread(began.wait, 30)
        assert r.batcher.running == 1
        go.set()
        await r.until(lambda: len(r.done) == 20)
    assert ran == ["quick"] * 19 + ["slow"]


async def test_many_pushers_lose_nothing() -> None:
    async with rig(slots=2, max_queue_size=1000, max_delay_us=200) as r:
        r.engine.go.release(1000)
        for size in [1, 2, 3, 5, 8] * 20:
            r.push(size)
            await asyncio.sleep(0.0001 * (size % 3))
        await r.until(lambda: len(r.done) == 380)
        assert sorted(map(int, map(str, r.done))) == list(range(1, 381))
        assert all(len(batch) <= 4 for batch in r.engine.batches)
