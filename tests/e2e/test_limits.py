"""Full queues, deadlines and cancelled requests: what is refused, and what is never run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import tritonclient.grpc as triton
from onnx_models import slow
from serving import Server, until
from slow_requests import (
    SECOND,
    busy,
    call,
    is_right,
    json_request,
    message,
    post,
    send_raw,
    statistics,
    trailers,
    triton_inputs,
    until_waiting,
)
from tritonclient.utils import InferenceServerException

QUEUE = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return slow(tmp_path_factory.mktemp("limits") / "slow.onnx")


@pytest.fixture(scope="module")
def server(model):
    with Server("--model", model, "--max-queue-size", str(QUEUE)) as server:
        yield server


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.grpc) as channel:
        yield channel


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(server.grpc) as client:
        yield client


def test_full_queue_refuses_and_loses_nothing(server, channel, client):
    with busy(server) as running, ThreadPoolExecutor(QUEUE) as pool:
        queued = [pool.submit(post, server) for _ in range(QUEUE)]
        until_waiting(server, QUEUE)
        refused = post(server)
        with pytest.raises(grpc.RpcError) as error:
            call(channel, "ModelInfer")(message())
        streamed = _stream_one(client, triton_inputs())
        assert not running.done()
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert f"max_queue_size is {QUEUE}" in refused.json()["error"]
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert int(trailers(error.value)["retry-after"]) >= 1
    assert "queue is full" in error.value.details()
    assert "queue is full" in str(streamed)
    assert is_right(running.result())
    assert all(is_right(answer.result()) for answer in queued)
    assert is_right(post(server))


def _stream_one(client, inputs):
    """What comes back for one request on a stream: a result, or an error."""
    got = []
    client.start_stream(lambda result, error: got.append(error or result))
    client.async_stream_infer("slow", inputs)
    until(lambda: got, "no answer on the stream")
    client.stop_stream()
    return got[0]


def test_passed_deadline_is_told_while_the_engine_is_busy_and_never_run(server, channel, client):
    executed = statistics(server)["execution_count"]
    infer = call(channel, "ModelInfer")
    with busy(server) as running, ThreadPoolExecutor(4) as pool:
        late = [
            pool.submit(post, server, timeout=300_000),
            pool.submit(post, server, headers={"X-Request-Timeout": "0.3"}),
            pool.submit(infer, message(timeout=300_000)),
            pool.submit(infer, message(), timeout=0.3),
        ]
        errors = [answer.exception() for answer in late]
        assert not running.done(), "the deadline was waited for, not the engine"
        until_waiting(server, 0)
    for answer in late[:2]:
        assert answer.result().status_code == 504
        assert "within 0.3" in answer.result().json()["error"]
    assert [error.code() for error in errors[2:]] == [grpc.StatusCode.DEADLINE_EXCEEDED] * 2
    assert "within 0.3" in errors[2].details()
    assert is_right(post(server))
    assert statistics(server)["execution_count"] == executed + 2


def test_passed_deadline_on_a_stream_fails_that_request_alone(server, client):
    with busy(server):
        got = {}

        def keep(result, error):
            got[result.get_response().id if result else "late"] = error or result

        client.start_stream(keep)
        client.async_stream_infer("slow", triton_inputs(2), request_id="late", timeout=300_000)
        client.async_stream_infer("slow", triton_inputs(), request_id="patient")
        until(lambda: len(got) == 2, "the stream lost an answer")
        client.stop_stream()
    assert "no answer within 0.3" in str(got["late"])
    assert got["patient"].as_numpy("y").tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "inf", "soon"])
def test_timeout_header_that_makes_no_sense_is_refused(server, timeout):
    answer = post(server, headers={"X-Request-Timeout": timeout})
    assert answer.status_code == 400
    assert "X-Request-Timeout" in answer.json()["error"]
    assert timeout in answer.json()["error"]


@pytest.mark.parametrize("timeout", [-1, 1.5, "soon", True])
def test_timeout_parameter_that_makes_no_sense_is_refused(server, timeout):
    answer = post(server, timeout=timeout)
    assert answer.status_code == 400
    assert "timeout" in answer.json()["error"]


def test_deadline_that_has_passed_on_arrival_is_not_run(server):
    executed = statistics(server)["execution_count"]
    assert post(server, timeout=1).status_code == 504
    assert is_right(post(server))
    assert statistics(server)["execution_count"] == executed + 1


def test_queued_request_whose_client_leaves_is_never_run(server, channel, client):
    executed = statistics(server)["execution_count"]
    cancelled = server.metric("nv_inference_request_failure", reason="CANCELED")
    with busy(server) as running:
        connection = send_raw(server, json_request())
        until_waiting(server, 1)
        waits = call(channel, "ModelInfer").future(message())
        until_waiting(server, 2)
        client.start_stream(lambda result, error: None)
        client.async_stream_infer("slow", triton_inputs())
        client.async_stream_infer("slow", triton_inputs())
        until_waiting(server, 4)
        connection.close()
        until_waiting(server, 3)
        waits.cancel()
        until_waiting(server, 2)
        client.stop_stream(cancel_requests=True)
        until_waiting(server, 0)
        assert not running.done()
    assert is_right(post(server))
    assert statistics(server)["execution_count"] == executed + 2
    assert server.metric("nv_inference_request_failure", reason="CANCELED") == cancelled + 4


@pytest.mark.slow
def test_request_timeout_flag_bounds_every_request(model):
    """Also one that runs already, and one that asks for more time."""
    long = 3 * SECOND // 2
    with (
        Server("--model", model, "--request-timeout", "0.5") as server,
        triton.InferenceServerClient(server.grpc) as client,
        ThreadPoolExecutor(3) as pool,
    ):
        posted = [
            pool.submit(post, server, long),
            pool.submit(post, server, long, timeout=60_000_000),
        ]
        called = pool.submit(client.infer, "slow", triton_inputs(long))
        streamed = _stream_one(client, triton_inputs(long))
        answers = [answer.result() for answer in posted]
        error = called.exception()
        assert statistics(server)["execution_count"] == 0, "the first one still ran"
    assert [answer.status_code for answer in answers] == [504, 504]
    assert all("no answer within 0.5" in answer.json()["error"] for answer in answers)
    assert "no answer within 0.5" in str(streamed)
    assert isinstance(error, InferenceServerException)
    assert error.status() == "StatusCode.DEADLINE_EXCEEDED"
