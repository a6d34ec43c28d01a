"""A text worker whose engine hangs, and one that is told to end while it loads."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from text_worker import MODEL, TextWorker

Start = Callable[..., TextWorker]


@pytest.mark.slow
def test_an_engine_that_hangs_is_killed(start: Start) -> None:
    worker = start("--cache-size-mb", "128", "--hang-timeout", "3")
    worker.wait_ready()
    time.sleep(4)  # without a request it owes no step
    assert worker.health() == 200
    body = {"model": MODEL, "prompt": "Once", "max_tokens": 3000, "ignore_eos": True}
    with worker.http.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
        lines = answer.iter_lines()
        next(lines)
        loop = worker.loop_pid()
        os.kill(loop, signal.SIGSTOP)
        rest = [line for line in lines if line]
    assert "data: [DONE]" not in rest
    error = json.loads(rest[-1].removeprefix("data: "))["error"]
    assert error["message"].startswith("the engine hung: no step in ")
    assert worker.process.wait(10) == 1
    assert worker.failure_file.read_text().startswith("the engine hung: no step in ")
    assert not Path(f"/proc/{loop}").exists()
    assert {path.name for path in worker.uds.parent.iterdir()} == {"log", "failure"}


def test_a_signal_while_the_model_loads_ends_the_worker_at_once(start: Start) -> None:
    worker = start()
    while not worker.uds.exists() or not children(worker.process.pid):
        assert worker.process.poll() is None
        time.sleep(0.01)
    (loop,) = children(worker.process.pid)
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(10) == -signal.SIGTERM
    deadline = time.monotonic() + 5
    while Path(f"/proc/{loop}/cmdline").exists() and Path(f"/proc/{loop}/cmdline").read_text():
        assert time.monotonic() < deadline, "the engine loop lives on"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in found.split()]
