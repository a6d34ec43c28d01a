"""How the worker starts, ends, and fails."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from text_worker import MODEL, TextWorker

LONG: dict[str, Any] = {
    "model": MODEL,
    "prompt": "Once",
    "max_tokens": 3000,
    "ignore_eos": True,
    "stream": True,
}

Start = Callable[..., TextWorker]


def fails(worker: TextWorker) -> tuple[int, str]:
    """The exit code and the reason of a worker that cannot start."""
    code = worker.process.wait(60)
    assert "Traceback" not in worker.log.read_text()
    assert not worker.uds.exists()
    return code, worker.failure_file.read_text()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot read .*: No such file"),
        (b"", "is not a GGUF file: it has 0 bytes"),
        (b"PK\x03\x04 this is a zip", "is not a GGUF file: it begins with b'PK"),
        (b"GGUF\x03\x00\x00\x00", "it ends at byte 8, inside its header"),
    ],
)
def test_a_file_that_is_no_model_ends_the_start_for_good(
    start: Start, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    artifact = tmp_path / "model.gguf"
    if content is not None:
        artifact.write_bytes(content)
    code, why = fails(start(artifact=artifact))
    assert code == 3
    assert str(artifact) in why
    assert len(why.splitlines()) == 1
    assert re.search(reason, why)


def test_a_socket_path_that_is_a_file_is_left_alone(start: Start, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("precious")
    worker = start("--uds", str(mine))
    code = worker.process.wait(60)
    why = worker.failure_file.read_text()
    assert code == 3
    assert "exists and is not a socket" in why
    assert mine.read_text() == "precious"


@pytest.mark.slow
def test_a_context_that_the_cache_cannot_hold_is_refused(start: Start) -> None:
    code, why = fails(start("--cache-size-mb", "16", "--max-seq-len", "8192"))
    assert code == 3
    assert "--max-seq-len 8192 does not fit the KV cache" in why


def test_a_truncated_model_ends_the_start_with_a_reason(
    start: Start, gguf: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.gguf"
    with gguf.open("rb") as whole:
        cut.write_bytes(whole.read(gguf.stat().st_size // 2))
    code, why = fails(start(artifact=cut))
    assert code == 3
    assert "is a damaged GGUF file: it has" in why


@pytest.mark.slow
def test_a_killed_engine_fails_its_requests_at_once(start: Start) -> None:
    worker = start("--cache-size-mb", "128")
    worker.wait_ready()
    with worker.http.stream("POST", "/v1/completions", json=LONG) as answer:
        lines = answer.iter_lines()
        next(lines)
        os.kill(worker.loop_pid(), signal.SIGKILL)
        killed = time.monotonic()
        rest = [line for line in lines if line]
        took = time.monotonic() - killed
    assert took < 5  # one second is meant; the machine may be busy
    assert "data: [DONE]" not in rest
    error = json.loads(rest[-1].removeprefix("data: "))["error"]
    assert error["message"] == "the engine process ended (killed by signal 9)"
    assert error["type"] == "server_error"
    assert worker.process.wait(10) == 1
    assert "killed by signal 9" in worker.failure_file.read_text()
    assert not worker.uds.exists()


@pytest.mark.slow
def test_sigterm_finishes_what_is_in_flight(start: Start) -> None:
    worker = start("--cache-size-mb", "128")
    worker.wait_ready()
    body = LONG | {"max_tokens": 60}
    with worker.http.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        worker.process.send_signal(signal.SIGTERM)
        # A connection made before may still ask: it is told to come back.
        while worker.health() == 200:
            time.sleep(0.01)
        refused = worker.http.post("/v1/completions", json=body)
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert worker.process.wait(20) == 0
    assert not worker.failure_file.exists()


@pytest.mark.slow
def test_the_drain_limit_fails_the_rest_clearly(start: Start) -> None:
    worker = start("--cache-size-mb", "128", "--drain-timeout", "0.5", "--log-format", "json")
    worker.wait_ready()
    with worker.http.stream("POST", "/v1/completions", json=LONG) as answer:
        lines = answer.iter_lines()
        next(lines)
        worker.process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
    error = json.loads(rest[-1].removeprefix("data: "))["error"]
    assert "shut down before the answer was finished" in error["message"]
    assert worker.process.wait(20) == 0
    records = [json.loads(line) for line in worker.log.read_text().splitlines()]
    assert {"message", "level", "time"} <= records[0].keys()


@pytest.mark.slow
def test_a_killed_parent_leaves_no_orphan(start: Start, gguf: Path, tmp_path: Path) -> None:
    uds = tmp_path / "s"
    script = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'ds_serve.text', '--model', 'm',"
        " '--uds', sys.argv[1], '--artifact', sys.argv[2], '--parent-pid', str(os.getpid())])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(uds), str(gguf)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    children = Path(f"/proc/{worker}/task/{worker}/children")
    wait_for(lambda: children.read_text().strip() != "")
    loop = int(children.read_text().split()[0])
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_for(lambda: gone(worker) and gone(loop))


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """Dead, or dead and waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.slow
def test_of_those_that_wait_the_lowest_priority_is_first(start: Start) -> None:
    worker = start("--max-num-seqs", "1", "--cache-size-mb", "64")
    worker.wait_ready()
    answered: list[int] = []

    def ask(priority: int) -> None:
        body = LONG | {"stream": False, "max_tokens": 4, "priority": priority}
        assert worker.http.post("/v1/completions", json=body).status_code == 200
        answered.append(priority)

    with worker.http.stream("POST", "/v1/completions", json=LONG) as holder:
        lines = holder.iter_lines()  # dropping the iterator would close the stream
        next(lines)
        asking = [threading.Thread(target=ask, args=(priority,)) for priority in (9, 5, 1)]
        for count, thread in enumerate(asking, 1):
            thread.start()
            worker.wait_gauge("vllm:num_requests_waiting", lambda value, n=count: value == n)
    for thread in asking:
        thread.join(60)
    assert answered == [1, 5, 9]
