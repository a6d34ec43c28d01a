"""ds_client with a real server: shared memory, pipelines, and servers that fail under them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from onnx_models import mlp, slow
from serving import Server, until
from slow_requests import SECOND, busy, until_waiting

from ds_client import (
    AsyncClient,
    Client,
    ClientError,
    DeadlineExceeded,
    Lost,
    ModelNotFound,
    Overloaded,
    Retry,
    Unavailable,
)

SHARED = Path("/dev/shm")
ROWS = np.random.default_rng(0).standard_normal((4096, 64)).astype(np.float32)  # 1 MiB


def slow_inputs(steps):
    return {"x": np.ones((1, 4), np.float32), "steps": np.array([steps])}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdk")
    models = ["--model", mlp(folder / "mlp.onnx"), "--model", slow(folder / "slow.onnx")]
    with Server(*models, "--max-batch-size", "4096", "--gateways", "2") as server:
        yield server


def regions(pid=None):
    return {path.name for path in SHARED.glob(f"ds-client-{pid or os.getpid()}-*")}


def registered(server):
    return {each["name"] for each in server.get("/v2/systemsharedmemory/status").json()}


def test_large_tensors_lie_in_memory_that_is_used_again(server):
    with Client(server.grpc) as plain, Client(server.grpc, shared_memory=True) as client:
        for factor in range(1, 6):
            rows = ROWS * np.float32(factor)
            expected = plain.infer("mlp", {"x": rows})["y"]
            np.testing.assert_array_equal(client.infer("mlp", {"x": rows})["y"], expected)
        mine = regions()
        assert len(mine) == 1
        assert mine == registered(server)
        maps = Path(f"/proc/{server.worker('mlp')}/maps").read_text()
        assert mine.pop() in maps, "the worker reads it there"
    assert not regions()
    assert not registered(server)


async def test_large_answers_lie_there_too_and_stay_what_they_are(server):
    async with AsyncClient(server.grpc, shared_memory=True) as client:
        many = [client.infer("mlp", {"x": ROWS * np.float32(i)}, ["y"]) for i in range(8)]
        first = await asyncio.gather(*many)
        again = [await client.infer("mlp", {"x": ROWS * np.float32(i)}) for i in range(8)]
        for one, other in zip(first, again, strict=True):
            np.testing.assert_array_equal(one["y"], other["y"])
        assert len(regions()) <= 8
    assert not regions()


def test_small_tensors_are_sent(server):
    with Client(server.grpc, shared_memory=True) as client:
        client.infer("mlp", {"x": ROWS[:1]})
        assert not regions()


def test_a_pipeline_works_through_shared_memory(server):
    with Client(server.grpc) as plain, Client(server.grpc, shared_memory=True) as client:
        expected = plain.infer("mlp", {"x": ROWS})["y"]
        with client.pipeline(in_flight=8) as pipeline:
            for outputs in pipeline.map("mlp", [{"x": ROWS}] * 40):
                np.testing.assert_array_equal(outputs["y"], expected)
        assert 1 <= len(regions()) <= 8


def test_a_late_answer_writes_into_nobodys_memory(server):
    """A call that was given up leaves its region behind, and it is not used again."""
    big = {"x": np.ones((4096, 4), np.float32), "steps": np.array([SECOND * 4])}
    with Client(server.grpc, shared_memory=True) as client:
        with pytest.raises(DeadlineExceeded):
            client.infer("slow", big, timeout=0.5)
        client.infer("mlp", {"x": ROWS})
        assert len(regions()) == 1
        assert registered(server) == regions()


CHILD = """
import signal, sys, time, numpy
from ds_client import Client
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests ignores
client = Client(sys.argv[1], shared_memory=True)
client.infer("mlp", {"x": numpy.ones((4096, 64), numpy.float32)})
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_what_a_dead_client_left_is_removed(server, number):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, server.grpc],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with child:
        child.stdout.readline()
        left = regions(child.pid)
        assert left
        with Client(server.grpc, shared_memory=True):
            assert regions(child.pid) == left, "its owner lives"
        child.send_signal(number)
    assert bool(regions(child.pid)) == (number == signal.SIGKILL)
    with Client(server.grpc, shared_memory=True) as client:
        client.infer("mlp", {"x": ROWS})
    assert not regions(child.pid)
    if number == signal.SIGKILL:
        assert not left & registered(server)


@pytest.mark.slow
def test_models_are_controlled(tmp_path):
    folder = tmp_path / "repository" / "mlp" / "1"
    folder.mkdir(parents=True)
    file = mlp(folder / "model.onnx")
    flags = [
        "--model-repository",
        tmp_path / "repository",
        "--model-control-mode",
        "explicit",
        "--open-control",
    ]
    with Server(*flags) as server, Client(server.grpc) as client:
        assert [(entry.name, entry.state) for entry in client.index()] == [("mlp", "")]
        client.load("mlp")
        assert client.ready("mlp")
        before = client.infer("mlp", {"x": ROWS[:2]})["y"]
        client.load("mlp", config={"max_batch_size": 7}, files={"1/model.onnx": file})
        np.testing.assert_allclose(client.infer("mlp", {"x": ROWS[:2]})["y"], before, atol=1e-4)
        assert client.config("mlp").max_batch_size == 7
        assert client.statistics("mlp")[0].rows == 2
        client.unload("mlp")
        assert client.index(ready=True) == []
        with pytest.raises(ClientError, match="mlp"):
            client.infer("mlp", {"x": ROWS[:2]})
        with pytest.raises(ClientError, match="none"):
            client.load("none")


def test_compressed_requests_are_understood(server):
    with Client(server.grpc) as plain, Client(server.grpc, compression="gzip") as client:
        expected = plain.infer("mlp", {"x": ROWS})["y"]
        np.testing.assert_array_equal(client.infer("mlp", {"x": ROWS})["y"], expected)
        (reply,) = client.stream("mlp", [{"x": ROWS}])
        np.testing.assert_array_equal(reply.outputs["y"], expected)


def test_many_requests_go_through_a_pipeline(server):
    with Client(server.grpc, connections=2) as client, client.pipeline() as pipeline:
        singles = [pipeline.infer("mlp", {"x": row[None]}) for row in ROWS[:2000]]
        found = np.concatenate([single.result(60)["y"] for single in singles])
        np.testing.assert_allclose(found, client.infer("mlp", {"x": ROWS[:2000]})["y"], atol=1e-4)
        with pytest.raises(ModelNotFound, match="none"):
            pipeline.infer("none", {"x": ROWS}).result(60)


def test_a_request_that_its_worker_took_along_is_lost_and_not_repeated(server):
    with Client(server.grpc) as client, client.pipeline() as pipeline, busy(server, 20 * SECOND):
        before = server.metric("nv_inference_request_success", model="slow")
        future = pipeline.infer("slow", slow_inputs(10))
        until_waiting(server, 1)
        timer = threading.Timer(0.3, os.kill, (server.worker("slow"), signal.SIGKILL))
        timer.start()
        with pytest.raises(Lost, match="lost this request"):
            client.infer("slow", slow_inputs(11))
        with pytest.raises(Lost):
            future.result(30)
        timer.join()
        assert client.infer("mlp", {"x": ROWS[:1]})["y"].shape == (1, 8)
        until(lambda: client.ready("slow"), "the worker did not come back", 60)
        assert client.infer("slow", slow_inputs(1))
        assert server.metric("nv_inference_request_success", model="slow") == before + 1


@pytest.mark.slow
def test_a_full_queue_is_waited_for(tmp_path):
    flags = ["--max-queue-size", "1", "--max-batch-size", "1"]
    with Server("--model", slow(tmp_path / "slow.onnx"), *flags) as server:
        hasty = Client(server.grpc, retry=None)
        patient = Client(server.grpc, retry=Retry(attempts=60, first=0.2, most=0.5))
        assert hasty.ready("slow")  # it is connected
        with hasty, patient, hasty.pipeline() as pipeline, busy(server, 4 * SECOND):
            waits = pipeline.infer("slow", slow_inputs(10))
            until_waiting(server, 1)
            for refused in (hasty.infer, lambda *each: pipeline.infer(*each).result(60)):
                with pytest.raises(Overloaded, match="queue is full") as caught:
                    refused("slow", slow_inputs(10))
                assert caught.value.retry_after >= 1
            assert patient.infer("slow", slow_inputs(1))
            assert waits.result(60)


def test_each_request_of_a_pipeline_to_nobody_fails():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with Client(f"127.0.0.1:{port}") as client, client.pipeline() as pipeline:
        for _ in range(300):
            with pytest.raises(Unavailable):
                pipeline.infer("mlp", {"x": ROWS}).result(30)


@pytest.mark.slow
def test_a_server_that_comes_back_is_found_and_told_of_the_memory_again(tmp_path):
    flags = ["--model", mlp(tmp_path / "mlp.onnx"), "--max-batch-size", "4096"]
    with Server(*flags) as first:
        port = first.grpc.rpartition(":")[2]
        client = Client(
            first.grpc, shared_memory=True, retry=Retry(attempts=200, first=0.2, most=0.5)
        )
        expected = client.infer("mlp", {"x": ROWS})["y"]
        before = regions()
        pipeline = client.pipeline()
        np.testing.assert_array_equal(pipeline.infer("mlp", {"x": ROWS}).result(60)["y"], expected)
        first.kill()
        until(lambda: not client.live(), "killed, but it answers")
        with pytest.raises(Unavailable):
            pipeline.infer("mlp", {"x": ROWS[:1]}).result(60)
    with client, pipeline, Server(*flags, "--grpc-port", port):
        np.testing.assert_array_equal(client.infer("mlp", {"x": ROWS})["y"], expected)
        np.testing.assert_array_equal(pipeline.infer("mlp", {"x": ROWS}).result(60)["y"], expected)
        assert before <= regions()
