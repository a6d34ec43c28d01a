"""One model on several devices: a worker for each, which share its requests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import onnx_models
import pytest
from serving import Server, children, until
from slow_requests import SECOND, Clients, busy, is_right, post, statistics


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    file = onnx_models.slow(tmp_path_factory.mktemp("devices") / "slow.onnx")
    with Server("--model", file, "--device", "cpu,cpu") as server:
        yield server


def workers(server: Server) -> list[int]:
    said = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(server.process.pid)}
    return [pid for pid, line in said.items() if b"ds_serve.worker" in line]


def test_a_busy_worker_leaves_requests_to_the_other(server: Server) -> None:
    assert len(workers(server)) == 2, server.log()
    before = statistics(server)["inference_stats"]["success"]["count"]
    with busy(server, 4 * SECOND) as running:
        assert all(is_right(post(server)) for _ in range(5))
        assert not running.done()
    assert is_right(running.result())
    until(
        lambda: statistics(server)["inference_stats"]["success"]["count"] == before + 6,
        "the workers' counts are not added up",
    )


def test_the_model_answers_while_one_of_its_workers_is_away(server: Server) -> None:
    killed = workers(server)[0]
    with Clients(server, 2) as clients:
        until(lambda: clients.answered > 10, "nothing is answered", details=server.log)
        os.kill(killed, signal.SIGKILL)
        until(
            lambda: server.metric("ds_worker_restarts_total", model="slow") == 1,
            "its death is not told",
            details=server.log,
        )
        assert server.ready()
        until(lambda: len(workers(server)) == 2, "it did not come back", details=server.log)
        answered = clients.answered
        until(lambda: clients.answered > answered + 10, "nothing is answered", details=server.log)
    assert killed not in workers(server)
    # What the dead worker had is lost, and what had been sent to it: one of each client at most.
    assert len(clients.failures) <= 2, clients.failures
    assert {status for status, _ in clients.failures} <= {503}
    assert clients.broken == []
