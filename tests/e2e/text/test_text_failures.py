"""A text worker that dies: its requests, the model beside it, and its return."""

from __future__ import annotations

import concurrent.futures
import json
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import onnx_models
import openai
import pytest
import tritonclient.grpc
from serving import Server, gone, until
from texts import ENDLESS, FRANCE, PARIS, TEXT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SOON = 10.0
"""Seconds. One is meant; the machine may be busy."""


@pytest.fixture(scope="module")
def served(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of two gateways whose text worker may be killed."""
    mlp = onnx_models.mlp(tmp_path_factory.mktemp("models") / "mlp.onnx")
    with Server("--model", TEXT, "--model", f"mlp={mlp}", "--gateways", "2") as running:
        yield running
        assert "Traceback" not in running.log(), running.log()


class Beside:
    """Asks the tensor model all the time, from a thread."""

    def __init__(self, server: Server) -> None:
        self._url = f"{server.http}/v2/models/mlp/infer"
        self._stop = threading.Event()
        self.statuses: list[int] = []

    def ask(self) -> None:
        row = {"name": "x", "datatype": "FP32", "shape": [1, 64], "data": [0.5] * 64}
        with httpx2.Client(timeout=60) as client:
            while not self._stop.wait(0.02):
                answer = client.post(self._url, json={"inputs": [row]})
                self.statuses.append(answer.status_code)

    @contextmanager
    def asking(self) -> Iterator[None]:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            done = pool.submit(self.ask)
            try:
                yield
            finally:
                self._stop.set()
            done.result()


class InFlight:
    """Requests of every kind to the text model, under way at once."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._pool = concurrent.futures.ThreadPoolExecutor(3)
        self._answers: queue.Queue[Any] = queue.Queue()
        self._grpc = tritonclient.grpc.InferenceServerClient(server.grpc)

    def begin(self) -> None:
        """Returns when all of them are in the batch."""
        begun = threading.Semaphore(0)
        self.stream = self._pool.submit(self._stream, begun)
        self.chat = self._pool.submit(self._chat, begun)
        self.whole = self._pool.submit(self._whole)
        self._begin_grpc()
        for _ in range(2):
            assert begun.acquire(timeout=60)
        metric = "vllm:num_requests_running"
        until(lambda: self._server.metric(metric) == 4, "not all are in the batch")

    def _stream(self, begun: threading.Semaphore) -> list[str]:
        """The lines of a streamed completion."""
        url = f"{self._server.http}/v1/completions"
        with httpx2.stream("POST", url, json=ENDLESS | {"stream": True}, timeout=120) as answer:
            lines = answer.iter_lines()
            found = [next(lines)]
            begun.release()
            found += lines
        return [line for line in found if line]

    def _chat(self, begun: threading.Semaphore) -> Exception | None:
        """What OpenAI's client raises out of a stream."""
        base = f"{self._server.http}/v1"
        with openai.OpenAI(base_url=base, api_key="none", max_retries=0) as client:
            stream = client.chat.completions.create(
                model=TEXT, messages=FRANCE, max_tokens=7000, stream=True,
                extra_body={"ignore_eos": True},
            )  # fmt: skip
            try:
                next(iter(stream))
                begun.release()
                list(stream)
            except openai.APIError as error:
                return error
        return None

    def _whole(self) -> httpx2.Response:
        return httpx2.post(f"{self._server.http}/v1/completions", json=ENDLESS, timeout=120)

    def _begin_grpc(self) -> None:
        self._grpc.start_stream(lambda result, error: self._answers.put((result, error)))
        sampling = json.dumps({"max_tokens": 7000, "ignore_eos": True})
        inputs = []
        for name, kind, value in (
            ("text_input", "BYTES", b"Once"),
            ("sampling_parameters", "BYTES", sampling.encode()),
            ("stream", "BOOL", True),
        ):
            tensor = tritonclient.grpc.InferInput(name, [1], kind)
            tensor.set_data_from_numpy(np.array([value], bool if kind == "BOOL" else np.object_))
            inputs.append(tensor)
        self._grpc.async_stream_infer(TEXT, inputs, request_id="1")
        result, error = self._answers.get(timeout=60)
        assert error is None
        assert result.get_response().id == "1"

    def grpc_error(self) -> str:
        """The error that ended the text on the gRPC stream."""
        while True:
            _, error = self._answers.get(timeout=SOON)
            if error is not None:
                return str(error)

    def close(self) -> None:
        self._grpc.stop_stream(cancel_requests=True)
        self._grpc.close()
        self._pool.shutdown()


@pytest.fixture
def in_flight(served: Server) -> Iterator[InFlight]:
    until(served.ready, "the text model is not back", 60, served.log)
    made = InFlight(served)
    yield made
    made.close()


def kill_and_check(server: Server, in_flight: InFlight, pid: int, says: str) -> None:
    """Kill this process of the text worker, and look at everything that should follow."""
    old = server.worker(TEXT)
    restarts = server.metric("ds_worker_restarts_total", model=TEXT)
    beside = Beside(server)
    with beside.asking():
        in_flight.begin()
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        check_requests(in_flight, says)
        assert time.monotonic() - killed < SOON
        check_away(server)
        until(server.ready, "the text model did not come back", 150, server.log)
        before = len(beside.statuses)
        until(lambda: len(beside.statuses) > before + 3, "the tensor model stopped answering")
    assert set(beside.statuses) == {200}
    assert gone(old)
    assert server.worker(TEXT) != old
    assert server.metric("ds_worker_restarts_total", model=TEXT) == restarts + 1
    check_back(server)


def check_requests(in_flight: InFlight, says: str) -> None:
    """Each ends with an error that says why."""
    lines = in_flight.stream.result(SOON)
    assert "data: [DONE]" not in lines
    error = json.loads(lines[-1].removeprefix("data: "))["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert says in error["message"]
    assert all(json.loads(line.removeprefix("data: "))["choices"] for line in lines[:-1])

    raised = in_flight.chat.result(SOON)
    assert isinstance(raised, openai.APIError)
    assert says in str(raised)

    whole = in_flight.whole.result(SOON)
    assert whole.status_code in (500, 503)
    assert whole.json()["error"].keys() == {"message", "type", "param", "code"}
    assert says in whole.json()["error"]["message"]

    assert says in in_flight.grpc_error()


def check_away(server: Server) -> None:
    """While the model is away, everybody who asks is told so."""
    # The HTTP half outlives its engine by as long as it takes to say so to its clients.
    until(lambda: not server.ready(), "the server still says that it is ready", 5)
    assert server.get("/v2/health/ready").status_code == 503
    assert server.get(f"/v2/models/{TEXT}/ready").status_code == 503
    assert server.get("/v2/models/mlp/ready").status_code == 200
    assert server.get("/health/live").status_code == 200
    assert server.get("/v1/models").json()["data"] == []
    models = server.get("/health/ready").json()["models"]
    assert models.keys() == {TEXT}
    assert models[TEXT].startswith("restarting: ")
    refused = server.client.post(f"{server.http}/v1/chat/completions", json=PARIS)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert f"model '{TEXT}' is restarting" in refused.json()["error"]["message"]


def check_back(server: Server) -> None:
    answer = server.client.post(f"{server.http}/v1/chat/completions", json=PARIS)
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]
    until(lambda: server.metric("vllm:num_requests_running") == 0, "one is still counted", 10)
    assert [card["id"] for card in server.get("/v1/models").json()["data"]] == [TEXT]


def test_the_http_half_is_killed(served: Server, in_flight: InFlight) -> None:
    kill_and_check(served, in_flight, served.worker(TEXT), "lost this request")


def test_the_engine_loop_is_killed(served: Server, in_flight: InFlight) -> None:
    kill_and_check(served, in_flight, served.engine_loop(TEXT), "killed by signal 9")


def test_a_killed_server_leaves_no_orphan(served: Server) -> None:
    """The last test of this server."""
    until(served.ready, "the text model is not back", 60, served.log)
    family = [*served.gateways(), *served.workers().values(), served.engine_loop(TEXT)]
    assert len(family) == 5
    served.kill()
    until(lambda: all(gone(pid) for pid in family), "orphans are left", 10)
