"""The simulated scheduler against the real queue, the controller in it, and the client."""

from __future__ import annotations

import asyncio
import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loadtests.controller import bound
from loadtests.controller.__main__ import main
from loadtests.controller.arrivals import steps
from loadtests.controller.client import Open
from loadtests.controller.policy import LEAST, Controller, Setting
from loadtests.controller.simulation import Engine, Simulation

from ds_engines.spec import BatchPolicy
from ds_serve.scheduler.queue import Entry, Queue

TICK = 1 / 1024
"""Seconds, exact as a float; sixteen are whole microseconds, too."""

arrivals = st.lists(st.integers(0, 200), min_size=1, max_size=60).map(
    lambda ticks: [tick * TICK for tick in sorted(ticks)]
)


def batches_of_the_queue(
    times: list[float], seconds: int, delay: int, most: int
) -> list[list[int]]:
    """What the server's queue gives one slot whose every run takes so many ticks."""
    queue = Queue(BatchPolicy(max_batch_size=most, max_delay_us=round(delay * TICK * 1e6)))
    batches: list[list[int]] = []
    waiting, free_at = list(enumerate(times)), 0
    for tick in range(10_000):
        while waiting and waiting[0][1] <= tick * TICK:
            key, arrived = waiting.pop(0)
            queue.push(Entry(key, None, 1, arrived))
        if tick >= free_at and (batch := queue.take(tick * TICK).entries):
            batches.append([int(str(entry.key)) for entry in batch])
            free_at = tick + seconds
        if not waiting and not len(queue):
            break
    return batches


@given(arrivals, st.integers(1, 40), st.sampled_from([0, 16, 48]), st.integers(1, 8))
@settings(deadline=None)
def test_the_simulated_scheduler_makes_the_batches_that_the_queue_makes(
    times: list[float], seconds: int, delay: int, most: int
) -> None:
    simulated = Simulation(
        Engine("steady", seconds * TICK, 0, 1, most), Setting(delay * TICK, 1), times
    )
    simulated.run()
    assert simulated.batches == batches_of_the_queue(times, seconds, delay, most)


def test_slots_share_the_engine_beyond_what_runs_at_once() -> None:
    def took(at_once: float) -> list[float]:
        engine = Engine("shared", 1, 0, at_once, most=1)
        return Simulation(engine, Setting(0, 2), [0, 0]).run().tolist()

    assert took(2) == [1, 1]
    assert took(1) == pytest.approx([2, 2])


@given(
    st.lists(st.lists(st.floats(0, 10), max_size=2 * LEAST), max_size=40),
    st.floats(0.001, 5),
    st.integers(1, 4),
)
@settings(deadline=None)
def test_a_controller_moves_one_step_of_one_knob_within_its_bounds(
    seen: list[list[float]], target: float, slots: int
) -> None:
    controller = Controller(target, 0.8, slots, Setting(0.0, slots))
    for latencies in seen:
        before = controller.setting
        controller.observe(latencies)
        after = controller.decide()
        assert 0 <= after.delay <= 0.8
        assert 1 <= after.slots <= slots
        moved = abs(after.slots - before.slots), round(abs(after.delay - before.delay), 9)
        assert moved in ((0, 0), (1, 0), (0, 0.1))


def test_a_controller_rests_within_its_target_and_where_little_is_seen() -> None:
    controller = Controller(1.0, 0.8, 2, Setting(0.1, 2))
    controller.observe([0.9] * LEAST)
    assert controller.decide() == Setting(0.1, 2)
    controller.observe([9.0] * (LEAST - 1))
    assert controller.decide() == Setting(0.1, 2)
    controller.observe([9.0])
    assert controller.decide() != Setting(0.1, 2)


def test_a_controller_leaves_a_second_slot_that_only_costs() -> None:
    case = bound.Case(bound.ENGINES[2], burst=1)
    times, _ = steps([2000.0], 30, seed=1)
    begin = Setting(0.0, 2)
    controller = Controller(0.025, 0.008, 2, begin)
    took = Simulation(case.engine, begin, times, controller, period=0.5).run()
    assert np.percentile(took[-5000:], 99) < 0.03 < np.percentile(took[:1000], 99)


@pytest.mark.parametrize("burst", [1, 8])
def test_arrivals_rise_and_follow_the_rates(burst: int) -> None:
    times, step = steps([100, 1000], 10, seed=3, burst=burst)
    assert times == sorted(times)
    assert np.bincount(step) == pytest.approx([1000, 10_000], rel=0.3)


class Answers(asyncio.Protocol):
    """A server that closes every third connection instead of answering, as one may."""

    connections = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        Answers.connections += 1
        self.closes = Answers.connections % 3 == 0

    def data_received(self, data: bytes) -> None:
        if self.closes:
            self.transport.close()
            return
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nInference-Header-Content-Length: 2\r\n\r\n"
        for piece in (head[:20], head[20:], b"{}", b"done"):
            self.transport.write(piece)  # type: ignore[attr-defined]


@contextlib.asynccontextmanager
async def answering():
    server = await asyncio.get_running_loop().create_server(Answers, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def test_every_request_is_sent_when_it_is_due_and_answered_once() -> None:
    async with answering() as address:
        client = Open(address, "m", [{"x": np.zeros((1, 4), np.float32)}])
        await client.send([0.002 * index for index in range(100)])
        client.close()
    assert client.answers == [b"done"] * 100
    assert all(took > 0 for took in client.latency)


async def test_a_server_that_is_gone_is_told_by_answers_that_are_missing() -> None:
    async with answering() as address:
        pass
    client = Open(address, "m", [{"x": np.zeros((1, 4), np.float32)}])
    await client.send([0.0, 0.01])
    assert client.answers == [None, None]


@pytest.mark.slow
def test_a_real_server_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--served", "mlp", "--repeats", "1", "--seconds", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "| 2 slots, 3 ms |" in out
    assert "equal answers: 100.00% at least" in out
