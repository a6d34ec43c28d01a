"""How a vLLM server is kept: its start, its end, and what clients and operators see of them.

The server here is a tiny one under vLLM's name (support/pretend_vllm), since a real engine neither
hangs nor runs out of memory on demand. The real one is in test_vllm_real.py.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pretended
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import Server, children, gone, until


def flags(folder: Path, *more: str) -> list[str | Path]:
    python, model = pretended.interpreter(folder), pretended.model(folder / "chat")
    return ["--model", model, "--engine", "vllm", "--vllm-python", python, *more]


def ask(server: Server, prompt: str) -> httpx2.Response:
    body = {"model": "chat", "prompt": prompt}
    return httpx2.post(f"{server.http}/v1/completions", json=body, timeout=60)


def processes(server: Server) -> tuple[int, int]:
    """Of the model's server and its engine."""
    _, pid, _, engine = ask(server, "hello").json()["choices"][0]["text"].split()
    return int(pid.strip(",")), int(engine)


def back(server: Server, before: int) -> None:
    """Wait until another server than that process answers."""

    def answers() -> bool:
        answer = ask(server, "hello")
        return answer.status_code == 200 and processes(server)[0] != before

    until(answers, "it is not back", 60, server.log)


class Asking(threading.Thread):
    """A request that is under way meanwhile."""

    def __init__(self, server: Server, prompt: str) -> None:
        super().__init__()
        self._server = server
        self._prompt = prompt
        self.answer: httpx2.Response | None = None
        self.start()
        until(lambda: server.metric("vllm:num_requests_running") > 0, "it does not run", 20)

    def run(self) -> None:
        self.answer = ask(self._server, self._prompt)

    def result(self) -> httpx2.Response:
        self.join(60)
        assert self.answer is not None, "no answer"
        return self.answer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(*flags(tmp_path_factory.mktemp("kept"), "--drain-timeout", "20")) as started:
        yield started


def test_the_operator_sees_how_far_the_start_is(server: Server) -> None:
    log = server.log()
    steps = ["starting the engine", "loading weights", "loading weights, 50 %"]
    places = [log.index(f"model chat: {step}\n") for step in steps]
    assert places == sorted(places)
    assert "KV cache size: 46,592 tokens" in log
    assert "runs it on the CPU" in server.output()


def test_it_is_ready_once_a_token_came(server: Server) -> None:
    assert server.log().index("asking for a first token") < server.log().index(" ready http=")
    assert server.metric("vllm:iteration_tokens_total_count") >= 1


def test_its_metrics_are_among_the_servers(server: Server) -> None:
    text = server.get("/metrics").text
    families = {each.name: each for each in text_string_to_metric_families(text)}
    assert len(families) == text.count("# TYPE ")
    assert "python_info" not in families
    (sample,) = families["vllm:kv_cache_usage_perc"].samples
    assert sample.labels == {
        "model": "chat", "version": "1", "engine": "0", "model_name": "chat"
    }  # fmt: skip
    assert server.metric("ds_load", model="chat") == 0.25


def test_a_dead_engine_fails_what_it_had_and_is_back(server: Server) -> None:
    pid, engine = processes(server)
    asking = Asking(server, "wait")
    os.kill(engine, signal.SIGKILL)
    answer = asking.result()
    assert answer.status_code in (500, 503)
    assert answer.json()["error"]["message"]
    until(lambda: gone(pid), "the server of the dead engine is still there", 20)
    back(server, pid)
    assert "its engine died" in server.log()


def test_a_killed_server_leaves_no_engine_behind(server: Server) -> None:
    pid, engine = processes(server)
    os.kill(pid, signal.SIGKILL)
    until(lambda: gone(engine), "the engine is still there", 20)
    back(server, pid)


def test_its_statistics_are_kserves_too(server: Server) -> None:
    before = _success(server)
    ask(server, "hello")
    assert _success(server)["count"] == before["count"] + 1
    assert _success(server)["ns"] == before["ns"] + 500_000_000


def _success(server: Server) -> dict[str, int]:
    (found,) = server.get("/v2/models/chat/stats").json()["model_stats"]
    return {name: int(value) for name, value in found["inference_stats"]["success"].items()}


@pytest.mark.slow
def test_an_engine_that_hangs_is_started_again(tmp_path: Path) -> None:
    with Server(*flags(tmp_path, "--hang-timeout", "2")) as server:
        pid, engine = processes(server)
        answer = Asking(server, "hang").result()
        assert answer.status_code == 503
        assert "hung" in answer.json()["error"]["message"]
        until(lambda: gone(pid) and gone(engine), "they are still there", 10)
        back(server, pid)


@pytest.mark.slow
def test_a_killed_supervisor_takes_all_with_it(tmp_path: Path) -> None:
    with Server(*flags(tmp_path)) as server:
        pid, engine = processes(server)
        server.kill()
        until(lambda: gone(pid) and gone(engine), "they are still there", 30)


@pytest.mark.parametrize(
    ("pretend", "more", "said"),
    [
        ("oom", (), "the GPU's memory is full: Tried to allocate 2.00 GiB"),
        ("architecture", (), r"does not know the model's architecture ['NoSuchModel']"),
        ("", ("--", "--no-such-flag"), "vLLM refuses its flags: unrecognized arguments"),
    ],
)
def test_a_failed_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pretend: str, more: tuple[str, ...], said: str
) -> None:
    monkeypatch.setenv("PRETEND", pretend)
    server = Server("--gateways", "1", *flags(tmp_path), *more)
    try:
        server.start()
        until(lambda: said in server.log(), "it does not say why", 30, server.log)
        if pretend != "oom":  # memory may be free the next time
            assert server.process.wait(20) == 1
    finally:
        server.close()


def test_one_of_two_replicas_goes_on_alone(tmp_path: Path) -> None:
    with Server(*flags(tmp_path, "--replicas", "2")) as server:
        until(lambda: _replicas(server) == {"0", "1"}, "there are not two", 20)
        pid, _ = processes(server)
        os.kill(pid, signal.SIGKILL)
        until(lambda: gone(pid), "it is still there")
        assert server.ready()
        assert ask(server, "hello").status_code == 200
        until(lambda: _replicas(server) == {"0", "1"}, "the other is not back", 30)


def _replicas(server: Server) -> set[str]:
    found: set[Any] = set()
    for family in text_string_to_metric_families(server.get("/metrics").text):
        if family.name == "vllm:num_requests_running":
            found |= {sample.labels.get("replica") for sample in family.samples}
    return found


def test_nothing_is_left_after_the_end(tmp_path: Path) -> None:
    with Server(*flags(tmp_path)) as server:
        family = {*processes(server), *children(server.process.pid)}
        assert server.stop() == 0
        assert all(map(gone, family))
