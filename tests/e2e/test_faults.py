"""Processes that are killed, hang, or are told to stop, under load."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import grpc
import httpx2
import pytest
import tritonclient.grpc as triton
from onnx_models import slow
from serving import Server, children, gone, until
from slow_requests import (
    SECOND,
    Clients,
    busy,
    call,
    is_right,
    load,
    message,
    post,
    triton_inputs,
    until_waiting,
)
from tritonclient.utils import InferenceServerException

QUICKLY = 5.0
"""Seconds within which a dead worker's requests fail. One is meant; the machine may be busy."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Flags for the models `slow` and `other`, which is as slow."""
    file = slow(tmp_path_factory.mktemp("faults") / "slow.onnx")
    return ["--model", file, "--model", f"other={file}"]


def _kill(pid, number=signal.SIGKILL):
    os.kill(pid, number)


def _reason(server, model="slow"):
    return server.get("/health/ready").json().get("models", {}).get(model, "")


def test_killed_worker_fails_its_requests_and_comes_back(models):
    """Readiness tells the truth meanwhile, and the other model does not notice."""
    with (
        Server(*models) as server,
        ThreadPoolExecutor(8) as pool,
        triton.InferenceServerClient(server.grpc) as client,
        grpc.insecure_channel(server.grpc) as channel,
        Clients(server, 2, model="other") as others,
    ):
        with busy(server, 20 * SECOND) as running:
            queued = [pool.submit(post, server) for _ in range(3)]
            called = call(channel, "ModelInfer").future(message())
            streamed = []
            client.start_stream(lambda result, error: streamed.append(str(error)))
            client.async_stream_infer("slow", triton_inputs())
            until_waiting(server, 5)
            worker = server.worker("slow")
            _kill(worker)
            killed = time.monotonic()
            lost = [running.result(), *(answer.result() for answer in queued)]
            error = called.exception()
            until(lambda: streamed, "the stream's request did not fail")
            took = time.monotonic() - killed
        client.stop_stream()
        assert took < QUICKLY
        for answer in lost:
            assert answer.status_code == 503
            assert "model 'slow' lost this request" in answer.json()["error"]
            assert int(answer.headers["retry-after"]) >= 1
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "model 'slow' lost this request" in error.details()
        assert "model 'slow' lost this request" in streamed[0]

        until(lambda: "killed by SIGKILL" in _reason(server), "its death is not told", 5)
        assert server.get("/health/ready").status_code == 503
        assert server.get("/health/live").status_code == 200
        assert server.get("/v2/health/ready").status_code == 503
        assert server.get("/v2/models/slow/ready").status_code == 503
        assert server.get("/v2/models/other/ready").status_code == 200
        assert not client.is_server_ready()
        assert not client.is_model_ready("slow")
        assert client.is_model_ready("other")
        meanwhile = post(server)
        assert meanwhile.status_code == 503
        assert "restarting" in meanwhile.json()["error"]
        assert is_right(post(server, model="other"))

        until(server.ready, "it did not come back", details=server.log)
        assert client.is_model_ready("slow")
        assert is_right(post(server))
        assert server.worker("slow") != worker
        assert server.metric("ds_worker_restarts_total", model="slow") == 1
    assert others.answered > 0
    assert others.failures == others.broken == []


@pytest.mark.slow
def test_worker_that_keeps_dying_is_given_up(models):
    """Every start comes later than the one before; the other model goes on."""
    with Server(*models) as server:
        deaths = _kill_until_failed(server, "slow")
        assert len(deaths) == 6
        waits = [after - before for before, after in itertools.pairwise(deaths)]
        assert waits[-1] > 4 > waits[0]
        assert "failed: its process was killed by SIGKILL" in _reason(server)
        assert "6 crashes in a row" in _reason(server)
        refused = post(server)
        assert refused.status_code == 503
        assert "killed by SIGKILL" in refused.json()["error"]
        assert "retry-after" not in refused.headers
        assert not server.ready()
        assert is_right(post(server, model="other"))

        _kill_until_failed(server, "other")
        assert server.process.wait(20) == 1, "no model is left"
        assert "no model is left" in server.log()
        assert "Traceback" not in server.log()


def _kill_until_failed(server, model):
    """Kill every worker of the model as soon as it is there; when that was."""
    deaths = []
    while server.process.poll() is None:
        if pid := server.workers().get(model):
            _kill(pid)
            deaths.append(time.monotonic())
            until(lambda pid=pid: gone(pid), "it lives on")
        if f"model {model} has failed" in server.log():
            break
        time.sleep(0.02)
    return deaths


@pytest.fixture
def short():
    """A folder whose path is short enough for sockets below it, as tmp_path's is not."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        yield Path(folder)


@pytest.mark.slow
def test_killed_supervisor_leaves_nothing_behind(models, short, monkeypatch):
    """Neither a process, nor, once another server was started, a folder."""
    monkeypatch.setenv("TMPDIR", str(short))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with Server(*models, "--gateways", "2") as server:
        family = children(server.process.pid)
        assert len(family) == 4
        folders = list(short.glob("ds-serve-*"))
        assert len(folders) == 1
        with busy(server, 20 * SECOND) as running:
            server.kill()
            until(lambda: all(gone(pid) for pid in family), "an orphan lives on", 10)
            assert isinstance(running.exception(), httpx2.TransportError)
    assert folders[0].exists()
    with Server(*models):
        assert not folders[0].exists()
        assert len(list(short.glob("ds-serve-*"))) == 1
    assert not list(short.glob("ds-serve-*")), "a server that stops removes its own"


@pytest.mark.parametrize("gateways", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_sigterm_under_load_loses_no_request(models, gateways):
    """Clients are asked to close their connections, or find nobody when they connect anew."""
    with Server(*models, "--gateways", str(gateways)) as server:
        with Clients(server, 6) as clients, ThreadPoolExecutor(2) as pool:
            callers = [pool.submit(_infer_until_refused, server) for _ in range(2)]
            until(lambda: clients.answered > 50, "no load")
            with busy(server, SECOND, "other") as running:
                assert server.stop() == 0
                assert is_right(running.result()), "what ran at the signal was finished"
        assert clients.failures == clients.broken == []
        for answered, error in (caller.result() for caller in callers):
            assert answered > 0
            assert error.status() == "StatusCode.UNAVAILABLE", error
            assert "lost" not in error.message(), error
        assert "Traceback" not in server.log()


def _infer_until_refused(server):
    """How many calls were answered, and the error that ended them."""
    answered = 0
    with triton.InferenceServerClient(server.grpc) as client:
        try:
            while True:
                client.infer("slow", triton_inputs(20))
                answered += 1
        except InferenceServerException as error:
            return answered, error


@pytest.mark.slow
def test_queued_requests_are_finished_before_the_end(models):
    with Server(*models) as server, ThreadPoolExecutor(8) as pool:
        with busy(server, SECOND) as running, grpc.insecure_channel(server.grpc) as channel:
            queued = [pool.submit(post, server) for _ in range(6)]
            called = call(channel, "ModelInfer").future(message())
            until_waiting(server, 7)
            assert server.stop() == 0
            assert is_right(running.result())
            assert len(called.result().outputs) == 1
        assert all(is_right(answer.result()) for answer in queued)
        assert all(answer.result().headers["connection"] == "close" for answer in queued)


@pytest.mark.slow
def test_readiness_fails_first_when_the_server_stops(models):
    """So that a load balancer looks elsewhere while requests are still taken."""
    with Server(*models, "--drain-timeout", "20") as server, busy(server) as running:
        server.process.terminate()
        until(lambda: not server.ready(), "still ready", 5)
        assert server.get("/health/ready").json()["status"] == "draining"
        assert server.process.wait(30) == 0
        assert is_right(running.result())


@pytest.mark.slow
def test_request_beyond_the_drain_timeout_fails_clearly(models):
    with (
        Server(*models, "--drain-timeout", "0.5") as server,
        grpc.insecure_channel(server.grpc) as channel,
        ThreadPoolExecutor(1) as pool,
        busy(server, 20 * SECOND) as running,
    ):
        queued = pool.submit(post, server)
        called = call(channel, "ModelInfer").future(message())
        until_waiting(server, 2)
        server.process.terminate()
        lost = [running.result(), queued.result()]
        error = called.exception()
        assert server.process.wait(20) == 0
        assert "killed" not in server.log()
    for answer in lost:
        assert answer.status_code == 503
        assert "shutting down" in answer.json()["error"]
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "shutting down" in error.details()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_stops_at_once(models, number):
    with Server(*models, "--drain-timeout", "100") as server, busy(server, 40 * SECOND) as running:
        family = children(server.process.pid)
        server.process.send_signal(number)
        until(lambda: "stopping" in server.log(), "the first one was not taken")
        server.process.send_signal(number)
        assert server.process.wait(5) == 0
        assert all(gone(pid) for pid in family)
        assert isinstance(running.exception(), httpx2.TransportError)
        assert "Traceback" not in server.log()


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_stops_in_order(models, monkeypatch):
    """SIGINT reaches the whole process group, in which the supervisor is alone."""
    monkeypatch.setattr(subprocess, "Popen", partial(subprocess.Popen, process_group=0))
    with Server(*models) as server:
        with busy(server, SECOND) as running, ThreadPoolExecutor(1) as pool:
            queued = pool.submit(post, server)
            until_waiting(server, 1)
            os.killpg(server.process.pid, signal.SIGINT)
            assert is_right(running.result())
            assert is_right(queued.result())
        assert server.process.wait(20) == 0
        assert "Traceback" not in server.log()


@pytest.mark.slow
def test_signal_while_models_load(models):
    """The server ends as it does later, and leaves nothing behind."""
    with contextlib.closing(Server(*models)) as server:
        server.start()
        until(lambda: len(children(server.process.pid)) == 3, "not started")
        family = children(server.process.pid)
        server.process.terminate()
        assert server.process.wait(20) == 0
        assert all(gone(pid) for pid in family)
        assert "Traceback" not in server.log()


@pytest.mark.slow
def test_hung_worker_is_started_again(models):
    """One that is stopped gives no sign of life; its requests fail, others go on."""
    with Server(*models, "--hang-timeout", "2") as server, ThreadPoolExecutor(1) as pool:
        worker = server.worker("slow")
        _kill(worker, signal.SIGSTOP)
        lost = pool.submit(post, server)
        assert is_right(post(server, model="other"))
        assert lost.result().status_code == 503
        assert "lost this request" in lost.result().json()["error"]
        until(lambda: gone(worker), "the hung worker lives on")
        until(lambda: "worker hung" in _reason(server), "the reason is not told", 5)
        assert "no sign of life for over 2 s" in _reason(server)
        until(server.ready, "it did not come back")
        assert is_right(post(server))


@pytest.mark.slow
def test_worker_whose_batch_takes_too_long_is_started_again(models):
    with Server(*models, "--hang-timeout", "2") as server:
        with busy(server, 60 * SECOND) as running:
            assert is_right(post(server, SECOND // 4, model="other"))
            lost = running.result()
        assert lost.status_code == 503
        assert "lost this request" in lost.json()["error"]
        until(lambda: "a batch ran for over 2 s" in _reason(server), "the reason is not told", 5)
        until(server.ready, "it did not come back")
        assert is_right(post(server))
        assert is_right(post(server, model="other"))


@pytest.mark.slow
def test_quick_batches_in_a_row_are_no_hang(models):
    """However long a worker is busy without a pause."""
    with (
        Server(*models, "--hang-timeout", "1") as server,
        Clients(server, 4, steps=SECOND // 10) as clients,
    ):
        until(lambda: clients.answered > 0, "no load")
        time.sleep(2.5)
        assert load(server) > 0
        assert server.metric("ds_worker_restarts_total") == 0
    assert clients.failures == clients.broken == []
