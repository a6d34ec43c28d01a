"""Pipelines of both clients, and sequences."""

from __future__ import annotations

import threading
from contextlib import suppress

import grpc
import numpy as np
import pytest

from ds_client import (
    AsyncClient,
    Cancelled,
    Client,
    ClientError,
    InvalidRequest,
    Overloaded,
    Unavailable,
)

X = np.arange(2, dtype=np.float32).reshape(1, 2)
COUNT = 500


def test_many_requests_share_a_stream(address, echo):
    with Client(address) as client, client.pipeline() as pipeline:
        futures = [pipeline.infer("echo", {"x": X + i}) for i in range(COUNT)]
        for i, future in enumerate(futures):
            np.testing.assert_array_equal(future.result(30)["x"], X + i)
    assert echo.streams == 1
    assert [int(request.id) for request in echo.requests] == list(range(COUNT))


async def test_many_tasks_share_a_stream(address, echo):
    async with AsyncClient(address) as client, client.pipeline(in_flight=16) as pipeline:
        outputs = [
            each async for each in pipeline.map("echo", ({"x": X + i} for i in range(COUNT)))
        ]
    for i, each in enumerate(outputs):
        np.testing.assert_array_equal(each["x"], X + i)
    assert len(outputs) == COUNT
    assert echo.streams == 1


def test_map_gives_answers_in_the_order_of_the_inputs(address):
    with Client(address) as client, client.pipeline(in_flight=8) as pipeline:
        answers = pipeline.map("echo", ({"x": X + i} for i in range(100)), ["x"])
        for i, each in enumerate(answers):
            np.testing.assert_array_equal(each["x"], X + i)


def test_no_more_are_under_way_than_allowed(address, echo):
    echo.hold = threading.Event()
    with Client(address) as client, client.pipeline(in_flight=3) as pipeline:
        futures = [pipeline.infer("held", {"x": X}) for _ in range(3)]
        threading.Timer(0.5, echo.hold.set).start()
        last = pipeline.infer("held", {"x": X})
        assert any(future.done() for future in futures), "one had to be answered first"
        last.result(30)


def test_a_request_that_is_refused_fails_alone_and_says_why(address):
    with Client(address) as client, client.pipeline() as pipeline:
        futures = [pipeline.infer("grumpy", {"x": X}) for _ in range(3)]
        assert [*futures[2].result(30)] == ["x"]
        with pytest.raises(ClientError, match="not now"):
            futures[1].result(30)
        with pytest.raises(Overloaded) as caught:
            pipeline.infer("typed-refusal", {"x": X}).result(30)
        assert caught.value.retry_after == 2.5


def test_room_for_nothing_is_refused(connect):
    with pytest.raises(InvalidRequest, match="in_flight is 0; it must be 1 or more"):
        connect().pipeline(in_flight=0)


def test_what_cannot_be_sent_is_raised_at_once(address):
    with Client(address) as client, client.pipeline(in_flight=1) as pipeline:
        for _ in range(2):  # and takes no place
            with pytest.raises(InvalidRequest, match="complex64"):
                pipeline.infer("echo", {"x": np.zeros(1, np.complex64)})


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL])
def test_a_stream_that_breaks_fails_what_is_under_way_and_the_next_request_opens_another(
    address, echo, code
):
    with Client(address) as client, client.pipeline() as pipeline:
        echo.failures = [(code, "gone", ())]
        broken = pipeline.infer("echo", {"x": X})
        with pytest.raises(ClientError, match="gone"):
            broken.result(30)
        assert [*pipeline.infer("echo", {"x": X}).result(30)] == ["x"]
    assert echo.streams == 2


async def test_the_asyncio_pipeline_opens_another_stream_too(address, echo):
    async with AsyncClient(address) as client, client.pipeline() as pipeline:
        echo.failures = [(grpc.StatusCode.UNAVAILABLE, "gone", ())]
        with pytest.raises(Unavailable, match="gone"):
            await pipeline.infer("echo", {"x": X})
        assert [*await pipeline.infer("echo", {"x": X})] == ["x"]
        with pytest.raises(Overloaded):
            await pipeline.infer("typed-refusal", {"x": X})
    with pytest.raises(Cancelled, match="the pipeline is closed"):
        await pipeline.infer("echo", {"x": X})


def test_leaving_by_an_exception_waits_for_nothing(address, echo):
    echo.hold = threading.Event()
    with Client(address) as client:
        pipeline = client.pipeline()
        with suppress(KeyError), pipeline:
            future = pipeline.infer("held", {"x": X})
            raise KeyError
        with pytest.raises(Cancelled):
            future.result(30)
        with pytest.raises(Cancelled, match="the pipeline is closed"):
            pipeline.infer("echo", {"x": X}).result(30)
    echo.hold.set()


def test_the_servers_time_is_told_in_microseconds(address, echo):
    with Client(address) as client, client.pipeline() as pipeline:
        pipeline.infer("echo", {"x": X}, timeout=1.5).result(30)
    assert echo.requests[0].parameters["timeout"].int64_param == 1_500_000


def places(echo):
    said = [request.parameters for request in echo.requests]
    return [(p["sequence_start"].bool_param, p["sequence_end"].bool_param) for p in said]


def test_a_sequence_begins_and_ends(address, echo):
    with Client(address) as client, client.sequence("echo") as sequence:
        for step in range(3):
            outputs = sequence.infer({"x": X + step}, last=step == 2)
            np.testing.assert_array_equal(outputs["x"], X + step)
        with pytest.raises(InvalidRequest, match="has ended"):
            sequence.infer({"x": X})
    assert places(echo) == [(True, False), (False, False), (False, True)]
    ids = {request.parameters["sequence_id"].int64_param for request in echo.requests}
    assert ids == {sequence.id}


async def test_a_sequence_that_is_left_open_is_ended(address, echo):
    async with AsyncClient(address) as client, client.sequence("echo", id="a") as sequence:
        await sequence.infer({"x": X})
    assert places(echo) == [(True, False), (False, True)]
    assert echo.requests[1].parameters["sequence_id"].string_param == "a"


def test_a_sequence_that_could_not_begin_begins_again(address, echo):
    echo.failures = [(grpc.StatusCode.UNAVAILABLE, "full", (("retry-after", "0"),))]
    with Client(address) as client, client.sequence("echo") as sequence:
        with pytest.raises(Overloaded):
            sequence.infer({"x": X})
        sequence.infer({"x": X}, last=True)
    assert places(echo) == [(True, False), (True, True)]
