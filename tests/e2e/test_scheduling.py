"""Priorities, queue policies and preserved ordering in the whole server, set by config.pbtxt."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import tritonclient.grpc as triton
from onnx_models import slow
from serving import Server
from slow_requests import busy, is_right, post, triton_inputs, until_waiting

CONFIGS = {
    "levels": """max_batch_size: 1 dynamic_batching {
        priority_levels: 3
        default_priority_level: 2
        priority_queue_policy { key: 3 value { max_queue_size: 1 } }
    }""",
    "rejecting": """max_batch_size: 1 dynamic_batching { default_queue_policy {
        default_timeout_microseconds: 20000000
        allow_timeout_override: true
    } }""",
    "delaying": """max_batch_size: 1 dynamic_batching { default_queue_policy {
        timeout_action: DELAY
        default_timeout_microseconds: 20000000
        allow_timeout_override: true
    } }""",
    "ordered": """max_batch_size: 1 instance_group { count: 2 }
        dynamic_batching { preserve_ordering: true }""",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("scheduling")
    flags: list[str | Path] = []
    for name, config in CONFIGS.items():
        slow(folder / name / "model.onnx")
        (folder / name / "config.pbtxt").write_text(config)
        flags += ["--model", folder / name]
    with Server(*flags) as server:
        yield server


class Crowd:
    """Requests that wait behind a long one; `done` has their names as they are answered."""

    def __init__(self, server: Server, model: str) -> None:
        self.server, self.model = server, model
        self.done: list[str] = []
        self.answers: dict[str, Future[httpx2.Response]] = {}
        self._pool = ThreadPoolExecutor(16)

    def send(self, name: str, waiting: int, steps: int = 10, **parameters: Any) -> None:
        """Send one, and wait until so many wait."""
        self.answers[name] = self._pool.submit(self._post, name, steps, parameters)
        until_waiting(self.server, waiting, self.model)

    def _post(self, name: str, steps: int, parameters: dict[str, Any]) -> httpx2.Response:
        answer = post(self.server, steps, self.model, **parameters)
        self.done.append(name)
        return answer

    def finish(self) -> dict[str, httpx2.Response]:
        self._pool.shutdown()
        return {name: answer.result() for name, answer in self.answers.items()}


def test_priorities_run_in_their_order(server: Server) -> None:
    crowd = Crowd(server, "levels")
    with busy(server, model="levels"):
        for count, priority in enumerate([3, 0, 2, 1], 1):
            crowd.send(f"priority {priority}", count, steps=200, priority=priority)
    answers = crowd.finish()
    assert all(map(is_right, answers.values()))
    assert crowd.done == ["priority 1", "priority 0", "priority 2", "priority 3"]


def test_a_levels_queue_is_full_by_itself(server: Server) -> None:
    crowd = Crowd(server, "levels")
    with busy(server, model="levels"):
        crowd.send("low", 1, priority=3)
        refused = post(server, model="levels", priority=3)
        crowd.send("high", 2, priority=1)
    assert refused.status_code == 503
    assert "the queue of priority 3 is full: 1 requests wait" in refused.json()["error"]
    assert all(map(is_right, crowd.finish().values()))


def rejected(server: Server, model: str) -> float:
    return server.metric("nv_inference_request_failure", model=model, reason="REJECTED")


def test_what_waits_too_long_is_rejected_while_the_engine_is_busy(server: Server) -> None:
    before = rejected(server, "rejecting")
    with busy(server, model="rejecting") as running:
        refused = post(server, model="rejecting", timeout=50_000)
        assert not running.done()
    assert is_right(running.result())
    assert refused.status_code == 503
    assert "timeout expired" in refused.json()["error"]
    assert rejected(server, "rejecting") == before + 1


def test_a_rejection_is_unavailable_over_grpc(server: Server) -> None:
    with (
        triton.InferenceServerClient(server.grpc) as client,
        busy(server, model="rejecting"),
        pytest.raises(triton.InferenceServerException) as e,
    ):
        client.infer("rejecting", triton_inputs(), timeout=50_000)
    assert e.value.status() == "StatusCode.UNAVAILABLE"


def test_what_waits_too_long_may_run_last_instead(server: Server) -> None:
    crowd = Crowd(server, "delaying")
    with busy(server, model="delaying"):
        crowd.send("impatient", 1, steps=200, timeout=1000)
        crowd.send("patient", 2, steps=200)
    answers = crowd.finish()
    assert all(map(is_right, answers.values()))
    assert crowd.done == ["patient", "impatient"]


def test_answers_of_a_stream_come_in_the_order_of_its_requests(server: Server) -> None:
    """The first takes longest and a second instance is free: the others wait for it."""
    found: list[tuple[str, Any]] = []
    with triton.InferenceServerClient(server.grpc) as client:
        client.start_stream(
            lambda result, error: found.append(
                ("error", error) if error else (result.get_response().id, result.as_numpy("y"))
            )
        )
        for name, steps in [("long", 1500), ("short", 1), ("middle", 100), ("last", 1)]:
            client.async_stream_infer("ordered", triton_inputs(steps), request_id=name)
        client.stop_stream()
    assert [name for name, _ in found] == ["long", "short", "middle", "last"]
    assert all(np.array_equal(y, np.zeros((1, 4))) for _, y in found)


def test_clients_are_told_the_policies(server: Server) -> None:
    told = server.get("/v2/models/levels/config").json()["dynamic_batching"]
    assert (told["priority_levels"], told["default_priority_level"]) == (3, 2)
    assert told["priority_queue_policy"]["3"]["max_queue_size"] == 1
