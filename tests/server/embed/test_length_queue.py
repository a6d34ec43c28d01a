"""Rows of many requests: joined by length, fair, bounded, dropped when cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from ds_engines.encoder_tokens import Tokens
from ds_engines.errors import EngineFailure, RateLimited, TooLarge
from ds_serve.embed.joining import Joiner
from ds_serve.embed.queue import LengthQueue
from ds_serve.scheduler.queue import NEVER, Batch


def row(length: int) -> Tokens:
    return Tokens([length] * length, [0] * length)


def owners(batch: Batch) -> str:
    return "".join(str(entry.payload.owner) for entry in batch.entries)  # type: ignore[attr-defined]


def test_a_batch_has_rows_of_one_length_and_so_many_tokens() -> None:
    queue = LengthQueue(batch_tokens=64, queue_tokens=10_000)
    queue.push("a", [row(3), row(30), row(16)], 0.0)
    queue.push("b", [row(9)] * 4, 0.0)
    found = [queue.take(0.0) for _ in range(3)]
    assert [owners(batch) for batch in found] == ["abbb", "a", "ab"]
    assert {entry.lane for entry in found[0].entries} == {16}
    assert (len(queue), queue.tokens, queue.next_due()) == (0, 0, NEVER)
    assert not queue.take(0.0).entries


def test_a_row_longer_than_a_batch_is_one() -> None:
    queue = LengthQueue(batch_tokens=64, queue_tokens=10_000)
    queue.push("a", [row(200), row(200)], 0.0)
    assert owners(queue.take(0.0)) == "a"
    assert queue.tokens == 224


def test_many_rows_share_with_the_one_that_comes_later() -> None:
    queue = LengthQueue(batch_tokens=64, queue_tokens=100_000)
    queue.push("m", [row(16)] * 100, 0.0)
    queue.take(0.0)
    queue.push("1", [row(16)], 0.0)
    assert owners(queue.take(0.0)) == "m1mm", "after what had been due by then, not after all"
    queue.push("2", [row(60)] * 50, 0.0)
    order = [owners(queue.take(0.0))[0] for _ in range(40)]
    assert 10 <= order.count("m") <= 30, "neither waits for the other's end"


def test_a_bound_in_tokens() -> None:
    queue = LengthQueue(batch_tokens=64, queue_tokens=320)
    with pytest.raises(TooLarge, match=r"21 inputs are 336 tokens with padding; .* may have 320"):
        queue.push("a", [row(1)] * 21, 0.0)
    queue.push("a", [row(1)] * 20, 0.0)
    with pytest.raises(RateLimited, match="320 tokens wait, and 320 may"):
        queue.push("b", [row(1)], 0.0)
    queue.cancel("a")
    queue.push("b", [row(1)], 0.0)
    assert (len(queue), queue.tokens) == (1, 16)


class Engine:
    """Answers each row with its length; waits for `go` where it is told to."""

    width = 2

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.go = threading.Event()
        self.go.set()

    def run(self, rows: Sequence[Tokens]) -> np.ndarray:
        assert self.go.wait(30)
        self.batches.append(len(rows))
        if any(each.ids == [13] * 13 for each in rows):
            raise EngineFailure("thirteen")
        return np.array([[len(each.ids), 0.0] for each in rows], dtype=np.float32)


def joined(engine: Engine, loads: list[tuple[int, int, int]], queue_tokens: int = 1000) -> Joiner:
    return Joiner(engine, LengthQueue(64, queue_tokens), lambda *load: loads.append(load))


async def test_requests_are_joined_and_each_gets_its_own_rows() -> None:
    engine, loads = Engine(), list[tuple[int, int, int]]()
    joiner = joined(engine, loads)
    engine.go.clear()
    asked = [asyncio.create_task(joiner.run([row(2)]))]
    await asyncio.sleep(0.01)
    asked += [asyncio.create_task(joiner.run([row(n), row(40), row(n + 1)])) for n in (3, 5)]
    await asyncio.sleep(0.01)
    assert loads[-1] == (1, 6, 4 * 16 + 2 * 48)
    engine.go.set()
    answers = [await each for each in asked]
    assert [answer[:, 0].tolist() for answer in answers] == [[2], [3, 40, 4], [5, 40, 6]]
    assert sorted(engine.batches) == [1, 1, 1, 4]
    assert loads[-1] == (0, 0, 0)
    joiner.close()


async def test_what_is_cancelled_is_not_run() -> None:
    engine = Engine()
    joiner = joined(engine, [])
    engine.go.clear()
    first = asyncio.create_task(joiner.run([row(2)]))
    await asyncio.sleep(0.01)
    left = asyncio.create_task(joiner.run([row(3)] * 4))
    await asyncio.sleep(0.01)
    left.cancel()
    await asyncio.wait([left])
    engine.go.set()
    assert (await first).tolist() == [[2, 0]]
    assert (await joiner.run([row(4)])).tolist() == [[4, 0]]
    assert engine.batches == [1, 1]
    assert joiner.pending == 0
    joiner.close()


async def test_a_full_queue_says_when_to_come_again() -> None:
    engine = Engine()
    joiner = joined(engine, [], queue_tokens=64)
    await joiner.run([row(1)])
    engine.go.clear()
    tasks = [asyncio.create_task(joiner.run([row(1)] * 4)) for _ in range(2)]
    await asyncio.sleep(0.01)
    with pytest.raises(RateLimited) as refused:
        await joiner.run([row(1)])
    assert refused.value.retry_after is not None
    engine.go.set()
    await asyncio.gather(*tasks)
    joiner.close()


async def test_a_failed_batch_fails_its_requests_alone() -> None:
    engine = Engine()
    joiner = joined(engine, [])
    with pytest.raises(EngineFailure, match="thirteen"):
        await joiner.run([row(2), row(13)])
    assert (await joiner.run([row(2)])).tolist() == [[2, 0]]
    joiner.close()
