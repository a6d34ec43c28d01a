"""Ensembles, called by Triton's own clients."""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ensembles
import httpx2
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from serving import Server, until
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, shared_memory

CLIENTS = {"http": tritonclient.http, "grpc": tritonclient.grpc}
MANY_STEPS = 2_000_000
"""Matrix products, more than any test waits for."""


def client(server: Server, protocol: str = "http"):
    address = server.http_address if protocol == "http" else server.grpc
    return CLIENTS[protocol].InferenceServerClient(address)


def inputs(protocol: str, **arrays: np.ndarray):
    made = []
    for name, array in arrays.items():
        given = CLIENTS[protocol].InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        given.set_data_from_numpy(array)
        made.append(given)
    return made


def wanted(protocol: str, *names: str):
    return [CLIENTS[protocol].InferRequestedOutput(name) for name in names] or None


def rows(count: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


def right(x: np.ndarray) -> np.ndarray:
    return 3 * (x + 1) + (2 * x - 5)


def counted(server: Server, model: str) -> dict:
    return server.get(f"/v2/models/{model}/stats").json()["model_stats"][0]


def refusal(call, *arguments, **options) -> str:
    with pytest.raises(InferenceServerException) as refused:
        call(*arguments, **options)
    return refused.value.message()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensembles.repository(tmp_path_factory.mktemp("ensembles"))


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    with Server("--model-repository", repository, "--gateways", "2") as server:
        yield server


@pytest.mark.parametrize("protocol", CLIENTS)
def test_diamond(server, protocol):
    x = rows(3)
    with client(server, protocol) as triton:
        answer = triton.infer("diamond", inputs(protocol, x=x), request_id="one")
    np.testing.assert_allclose(answer.as_numpy("sum"), right(x), rtol=1e-5)
    np.testing.assert_allclose(answer.as_numpy("tripled"), 3 * (x + 1), rtol=1e-5)
    said = answer.get_response()
    assert (said["id"] if protocol == "http" else said.id) == "one"
    assert (said["model_name"] if protocol == "http" else said.model_name) == "diamond"


@pytest.mark.parametrize("protocol", CLIENTS)
def test_steps_that_no_wanted_output_needs_are_not_run(server, protocol):
    before = {name: counted(server, name)["execution_count"] for name in ("left", "right", "join")}
    x = rows()
    with client(server, protocol) as triton:
        answer = triton.infer("diamond", inputs(protocol, x=x), outputs=wanted(protocol, "tripled"))
    np.testing.assert_allclose(answer.as_numpy("tripled"), 3 * (x + 1), rtol=1e-5)
    assert answer.as_numpy("sum") is None
    after = {name: counted(server, name)["execution_count"] for name in before}
    assert {name: after[name] - before[name] for name in before} == {
        "left": 1, "right": 0, "join": 0,
    }  # fmt: skip


@pytest.mark.parametrize("protocol", CLIENTS)
def test_ensemble_in_an_ensemble(server, protocol):
    x = rows(2)
    with client(server, protocol) as triton:
        answer = triton.infer("outer", inputs(protocol, x=x))
    np.testing.assert_allclose(answer.as_numpy("y"), 3 * right(x), rtol=1e-5)


def test_stream(server):
    answers: queue.Queue = queue.Queue()
    with client(server, "grpc") as triton:
        triton.start_stream(lambda result, error: answers.put((result, error)))
        given = [rows(1, seed) for seed in range(20)]
        for index, x in enumerate(given):
            triton.async_stream_infer("diamond", inputs("grpc", x=x), request_id=str(index))
        for _ in given:
            result, error = answers.get(timeout=30)
            assert error is None
            x = given[int(result.get_response().id)]
            np.testing.assert_allclose(result.as_numpy("sum"), right(x), rtol=1e-5)
        triton.stop_stream()


@pytest.mark.parametrize("protocol", CLIENTS)
def test_large_tensors(server, protocol):
    """So large that they lie in memory that gateways and workers share."""
    x = np.random.default_rng(0).standard_normal((2, 1000, 100)).astype(np.float32)
    with client(server, protocol) as triton:
        for _ in range(3):
            answer = triton.infer("fourfold", inputs(protocol, x=x))
            np.testing.assert_array_equal(answer.as_numpy("y"), 4 * x)


def test_many_at_once(server):
    def ask(number: int) -> bool:
        protocol = "http" if number % 2 else "grpc"
        x = rows(1 + number % 8, number)
        with client(server, protocol) as triton:
            for _ in range(5):
                answer = triton.infer("outer", inputs(protocol, x=x))
                if not np.allclose(answer.as_numpy("y"), 3 * right(x), rtol=1e-4, atol=1e-4):
                    return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(32)))


@pytest.mark.slow
def test_statistics_are_those_of_all_gateways(repository):
    with Server("--model-repository", repository, "--gateways", "2") as server:
        for number in range(10):  # each client has a connection of its own
            with client(server) as triton:
                triton.infer("diamond", inputs("http", x=rows(3, number)))
        for _ in range(2):
            with client(server) as triton:
                refusal(triton.infer, "picky", inputs("http", i=np.array([[99]])))

        def told() -> bool:
            return counted(server, "diamond")["inference_count"] == 30

        until(told, "the requests are counted", 10, lambda: str(counted(server, "diamond")))
        said = counted(server, "diamond")
        assert said["execution_count"] == said["inference_stats"]["success"]["count"] == 10
        assert said["inference_stats"]["success"]["ns"] > 0
        assert said["last_inference"] > 0
        until(lambda: _failed(server)["count"] == 2, "failures are counted", 10, server.log)
        failed = _failed(server)
        assert failed["ns"] > 0
        assert server.metric("nv_inference_request_success", model="diamond") == 10
        assert server.metric("nv_inference_count", model="diamond") == 30
        assert server.metric("nv_inference_request_failure", model="picky") == 2


@pytest.mark.parametrize("protocol", CLIENTS)
def test_failing_step_is_named(server, protocol):
    with client(server, protocol) as triton:
        good = triton.infer("picky", inputs(protocol, i=np.array([[7]])))
        assert good.as_numpy("value") == 70
        said = refusal(triton.infer, "picky", inputs(protocol, i=np.array([[99]])))
    assert "ensemble 'picky', step 2 (model 'lookup')" in said


@pytest.mark.parametrize("protocol", CLIENTS)
def test_step_that_refuses_what_another_made_is_named(server, protocol):
    with client(server, protocol) as triton:
        for columns in (5, 4, 5, 4):
            x = np.ones((1, columns), np.float32)
            if columns == 4:
                answer = triton.infer("loose", inputs(protocol, x=x))
                np.testing.assert_array_equal(answer.as_numpy("y"), 3 * x)
            else:
                said = refusal(triton.infer, "loose", inputs(protocol, x=x))
                assert "ensemble 'loose', step 2 (model 'left')" in said
                assert "[1, 5]" in said


@pytest.mark.parametrize("protocol", CLIENTS)
def test_shared_memory(server, protocol):
    x = np.random.default_rng(1).standard_normal((2, 100, 100)).astype(np.float32)
    region = shared_memory.create_shared_memory_region("ens", f"/ens-{protocol}", 2 * x.nbytes)
    try:
        with client(server, protocol) as triton:
            shared_memory.set_shared_memory_region(region, [x])
            triton.register_system_shared_memory("ens", f"/ens-{protocol}", 2 * x.nbytes)
            given = CLIENTS[protocol].InferInput("x", x.shape, "FP32")
            given.set_shared_memory("ens", x.nbytes)
            (made,) = wanted(protocol, "y")
            made.set_shared_memory("ens", x.nbytes, x.nbytes)
            triton.infer("fourfold", [given], outputs=[made])
            y = shared_memory.get_contents_as_numpy(region, np.float32, x.shape, x.nbytes)
            np.testing.assert_array_equal(y, 4 * x)
            triton.unregister_system_shared_memory("ens")
    finally:
        shared_memory.destroy_shared_memory_region(region)


def test_client_that_goes_away_cancels_the_steps_to_come(server):
    before = counted(server, "left")["inference_stats"]["success"]["count"]
    said = {
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]},
            {"name": "steps", "datatype": "INT64", "shape": [1], "data": [2500]},
        ]
    }
    with pytest.raises(httpx2.TimeoutException):
        httpx2.post(f"{server.http}/v2/models/long/infer", json=said, timeout=0.5)

    def cancelled() -> bool:
        name = "nv_inference_request_failure"
        return server.metric(name, model="long", reason="CANCELED") == 1

    until(cancelled, "the request is cancelled", 20, server.log)
    until(lambda: server.metric("ds_load", model="slow") == 0, "it ends", 60, server.log)
    assert counted(server, "left")["inference_stats"]["success"]["count"] == before


@pytest.mark.parametrize("protocol", CLIENTS)
def test_request_is_checked_against_the_ensemble(server, protocol):
    with client(server, protocol) as triton:
        said = refusal(triton.infer, "diamond", inputs(protocol, x=rows(9)))
        assert "9 rows" in said
        assert "'diamond' takes 1 to 8" in said
        said = refusal(triton.infer, "diamond", inputs(protocol, x=np.ones((1, 5), np.float32)))
        assert "[-1, 4]" in said


@pytest.mark.parametrize("protocol", CLIENTS)
def test_one_deadline_for_all_steps(server, protocol):
    with client(server, protocol) as triton:
        given = inputs(protocol, x=rows(), steps=np.array([MANY_STEPS]))
        said = refusal(triton.infer, "long", given, timeout=300_000)
    assert "step 1 (model 'slow')" in said
    assert "no answer within" in said


def test_metadata_and_configuration(server):
    with client(server) as triton:
        meta = triton.get_model_metadata("diamond")
        config = triton.get_model_config("diamond")
    assert meta["platform"] == "ensemble"
    assert [tensor["name"] for tensor in meta["outputs"]] == ["sum", "tripled"]
    assert meta["inputs"][0]["shape"] == [-1, 4]
    assert config["max_batch_size"] == 8
    steps = config["ensemble_scheduling"]["step"]
    assert [one["model_name"] for one in steps] == ["fork", "left", "right", "join"]
    assert steps[3]["input_map"] == {"l": "tripled", "r": "less"}
    assert steps[0]["model_version"] == -1
    assert not config["instance_group"]


@pytest.mark.slow
def test_member_that_dies(repository):
    with Server("--model-repository", repository) as server:
        fates: queue.Queue = queue.Queue()

        def ask() -> None:
            with client(server, "grpc") as triton:
                given = inputs("grpc", x=rows(), steps=np.array([MANY_STEPS]))
                fates.put(refusal(triton.infer, "long", given))

        asking = threading.Thread(target=ask)
        asking.start()
        until(lambda: _asked(server), "it is asked", 20, server.log)
        os.kill(server.worker("slow"), signal.SIGKILL)
        said = fates.get(timeout=20)
        asking.join()
        assert "step 1 (model 'slow')" in said
        assert "lost" in said
        with client(server) as triton:  # others do not notice
            x = rows()
            answer = triton.infer("diamond", inputs("http", x=x))
        np.testing.assert_allclose(answer.as_numpy("sum"), right(x), rtol=1e-5)
        until(server.ready, "the worker is started again", 60, server.log)
        with client(server) as triton:
            answer = triton.infer("long", inputs("http", x=x, steps=np.zeros(1, np.int64)))
        np.testing.assert_allclose(answer.as_numpy("y"), 3 * x, rtol=1e-6)


@pytest.mark.slow
def test_loaded_and_unloaded_by_clients(repository):
    with (
        Server(
            "--model-repository", repository, "--model-control-mode=explicit", "--open-control"
        ) as server,
        client(server) as triton,
    ):
        triton.load_model("outer")
        ready = {entry["name"] for entry in _index(server) if entry.get("state") == "READY"}
        assert ready == {"outer", "diamond", "fork", "left", "right", "join"}
        x = rows()
        answer = triton.infer("outer", inputs("http", x=x))
        np.testing.assert_allclose(answer.as_numpy("y"), 3 * right(x), rtol=1e-5)
        triton.load_model("join")  # anew: the ensemble goes on
        triton.infer("outer", inputs("http", x=x))
        triton.unload_model("right")
        assert not triton.is_model_ready("diamond")
        said = refusal(triton.infer, "diamond", inputs("http", x=x))
        assert "step 3 (model 'right')" in said
        assert _entry(server, "diamond")["state"] == "UNAVAILABLE"
        assert "step 3 (model 'right')" in _entry(server, "diamond")["reason"]
        triton.load_model("right")
        until(lambda: triton.is_model_ready("outer"), "it is whole again", 10, server.log)
        triton.load_model("long")
        triton.unload_model("outer", unload_dependents=True)
        until(lambda: len(server.workers()) == 2, "the workers go", 20, server.log)
        ready = {entry["name"] for entry in _index(server) if entry.get("state") == "READY"}
        assert ready == {"long", "slow", "left"}, "left is needed by another"


@pytest.mark.slow
def test_requests_in_flight_finish_when_an_ensemble_and_its_models_are_unloaded(repository):
    flags = ["--model-control-mode=explicit", "--open-control", "--load-model=long"]
    with Server("--model-repository", repository, *flags) as server:
        fates: queue.Queue = queue.Queue()
        x = rows()

        def ask() -> None:
            with client(server, "grpc") as triton:
                given = inputs("grpc", x=x, steps=np.array([10_000]))
                fates.put(triton.infer("long", given).as_numpy("y"))

        asking = threading.Thread(target=ask)
        asking.start()
        until(lambda: _asked(server), "it is asked", 20, server.log)
        with client(server) as triton:
            triton.unload_model("long", unload_dependents=True)
            assert fates.empty(), "too quick for this test to say anything"
            assert not triton.is_model_ready("left")
        np.testing.assert_allclose(fates.get(timeout=60), 3 * x, rtol=1e-6)
        asking.join()
        until(lambda: not server.workers(), "the workers go", 20, server.log)


@pytest.mark.slow
def test_members_that_come_later(tmp_path):
    ensembles.ensemble(tmp_path / "diamond", *ensembles.DIAMOND)
    flags = ["--model-control-mode=poll", "--repository-poll-secs=1"]
    with Server("--model-repository", tmp_path, *flags) as server, client(server) as triton:
        assert "step 1 (model 'fork')" in _entry(server, "diamond")["reason"]
        ensembles.members(tmp_path / ".coming")
        for folder in (tmp_path / ".coming").iterdir():
            folder.rename(tmp_path / folder.name)
        until(lambda: triton.is_model_ready("diamond"), "its members are there", 60, server.log)
        x = rows()
        answer = triton.infer("diamond", inputs("http", x=x))
        np.testing.assert_allclose(answer.as_numpy("sum"), right(x), rtol=1e-5)
        ensembles.ensemble(
            tmp_path / "diamond",
            ensembles.tensors("input", "x") + ensembles.tensors("output", "sum"),
            ensembles.step("left", {"a": "x"}, {"b": "sum"}),
        )
        until(
            lambda: "tripled" not in str(triton.get_model_metadata("diamond")),
            "the new configuration is there", 20, server.log,
        )  # fmt: skip
        answer = triton.infer("diamond", inputs("http", x=x))
        np.testing.assert_allclose(answer.as_numpy("sum"), 3 * x, rtol=1e-5)


def _asked(server: Server) -> bool:
    return server.metric("ds_load", model="slow") > 0


def _failed(server: Server) -> dict:
    return counted(server, "picky")["inference_stats"]["fail"]


def _index(server: Server) -> list[dict]:
    return server.client.post(f"{server.http}/v2/repository/index", json={}).json()


def _entry(server: Server, name: str) -> dict:
    return next(entry for entry in _index(server) if entry["name"] == name)


WRONG = {
    "stranger": (
        ensembles.tensors("input", "x") + ensembles.tensors("output", "y"),
        ensembles.step("nobody", {"x": "x"}, {"y": "y"}),
    ),
    "circle-a": (
        ensembles.tensors("input", "x") + ensembles.tensors("output", "y"),
        ensembles.step("circle-b", {"x": "x"}, {"y": "y"}),
    ),
    "circle-b": (
        ensembles.tensors("input", "x") + ensembles.tensors("output", "y"),
        ensembles.step("circle-a", {"x": "x"}, {"y": "y"}),
    ),
}


@pytest.mark.slow
def test_ensembles_that_cannot_be(tmp_path):
    ensembles.members(tmp_path)
    for name, parts in WRONG.items():
        ensembles.ensemble(tmp_path / name, *parts)
    ensembles.ensemble(tmp_path / "diamond", *ensembles.DIAMOND)
    with Server("--model-repository", tmp_path) as server:
        assert not server.ready()
        said = server.get("/health/ready").text
        assert "step 1 (model 'nobody'): there is no such model" in said
        assert "circle-a -> circle-b -> circle-a" in said
        with client(server) as triton:
            triton.infer("diamond", inputs("http", x=rows()))
            assert "nobody" in refusal(triton.infer, "stranger", inputs("http", x=rows()))


@pytest.mark.slow
def test_circle_that_a_client_loads(tmp_path):
    for name in ("circle-a", "circle-b"):
        ensembles.ensemble(tmp_path / name, *WRONG[name])
    with (
        Server(
            "--model-repository", tmp_path, "--model-control-mode=explicit", "--open-control"
        ) as server,
        client(server) as triton,
    ):
        said = refusal(triton.load_model, "circle-a")
        assert "circle-a -> circle-b -> circle-a" in said
        assert server.ready()
