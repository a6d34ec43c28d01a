"""Graphs are recorded while nothing else uses the GPU."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ds_engines.cuda.turns import Turns


def test_batches_run_together_and_recordings_alone() -> None:
    turns, lock = Turns(), threading.Lock()
    inside: list[str] = []
    seen: list[tuple[str, ...]] = []

    def enter(what: str) -> None:
        with lock:
            inside.append(what)
            seen.append(tuple(inside))

    def leave(what: str) -> None:
        with lock:
            inside.remove(what)

    both = threading.Barrier(2, timeout=10)

    def batch(number: int) -> None:
        with turns.together():
            enter("batch")
            if number < 2:
                both.wait()  # two of them are there at once, or this fails
            leave("batch")

    def recording() -> None:
        with turns.alone():
            enter("recording")
            leave("recording")

    with ThreadPoolExecutor(8) as pool:
        first = [pool.submit(batch, number) for number in (0, 1)]
        recordings = [pool.submit(recording) for _ in range(20)]
        rest = [pool.submit(batch, number) for number in range(2, 100)]
        for each in (*first, *recordings, *rest):
            each.result(timeout=20)
    assert ("batch", "batch") in seen
    assert [each for each in seen if "recording" in each and len(each) > 1] == []


def test_what_fails_lets_the_others_go_on() -> None:
    turns = Turns()
    for turn in (turns.together, turns.alone):
        with pytest.raises(ValueError, match="x"), turn():
            raise ValueError("x")
    with turns.alone():
        pass
    with turns.together():
        pass
