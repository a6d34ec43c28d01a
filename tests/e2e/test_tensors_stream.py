"""ModelStreamInfer through `tritonclient`: many requests on one connection."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from serving import Server

Array = np.ndarray[Any, Any]


class Stream:
    """A stream of the blocking client. Answers come in any order, so they are told by their ids."""

    def __init__(self, client: tritonclient.grpc.InferenceServerClient) -> None:
        self._client = client
        self._answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        client.start_stream(lambda result, error: self._answers.put((result, error)))

    def send(self, x: Array, request_id: str, model: str = "sequences", **options: Any) -> None:
        given = tritonclient.grpc.InferInput("x", x.shape, "FP32").set_data_from_numpy(x)
        self._client.async_stream_infer(model, [given], request_id=request_id, **options)

    def next(self) -> tuple[Any, Any]:
        """A result and an error, one of them None."""
        return self._answers.get(timeout=60)

    def results(self, count: int) -> dict[str, Any]:
        found = {}
        for _ in range(count):
            result, error = self.next()
            assert error is None
            found[result.get_response().id] = result
        return found


@pytest.fixture
def stream(tensors: Server) -> Iterator[Stream]:
    with tritonclient.grpc.InferenceServerClient(tensors.grpc) as client:
        yield Stream(client)
        client.stop_stream()


def rows(length: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((1, length, 2), np.float32)


def test_each_request_has_its_answer(stream: Stream) -> None:
    given = {f"request {number}": rows(1 + number % 3, number) for number in range(200)}
    for request_id, x in given.items():
        stream.send(x, request_id)
    found = stream.results(len(given))
    assert found.keys() == given.keys()
    for request_id, x in given.items():
        np.testing.assert_array_equal(found[request_id].as_numpy("double"), 2 * x)


def test_one_after_the_other(stream: Stream) -> None:
    for number in range(10):
        stream.send(rows(2, number), str(number))
        result = stream.results(1)[str(number)]
        np.testing.assert_array_equal(result.as_numpy("double"), 2 * rows(2, number))


def test_every_answer_is_marked_as_final(stream: Stream) -> None:
    stream.send(rows(1), "one", enable_empty_final_response=True)
    response = stream.results(1)["one"].get_response()
    assert response.parameters["triton_final_response"].bool_param is True
    stream.send(rows(1), "two")
    assert set(stream.results(1)) == {"two"}


def test_outputs_can_be_chosen(stream: Stream) -> None:
    wanted = [tritonclient.grpc.InferRequestedOutput("total")]
    stream.send(np.ones((1, 3, 2), np.float32), "t", outputs=wanted)
    result = stream.results(1)["t"]
    assert result.as_numpy("double") is None
    assert result.as_numpy("total").item() == 6


@pytest.mark.parametrize(
    ("wrong", "model", "said"),
    [
        (rows(1)[0], "sequences", r"'x'.*\[-1, -1, -1\].*\[1, 2\]"),
        (rows(1), "nobody", "'nobody'"),
    ],
)
def test_a_wrong_request_fails_alone(stream: Stream, wrong: Array, model: str, said: str) -> None:
    """The stream goes on, and those sent before and after it are answered."""
    stream.send(rows(1), "before")
    stream.send(wrong, "wrong", model)
    stream.send(rows(1), "after")
    answers = [stream.next() for _ in range(3)]
    (error,) = [error for _, error in answers if error is not None]
    with pytest.raises(tritonclient.grpc.InferenceServerException, match=said):
        raise error
    right = {result.get_response().id for result, error in answers if error is None}
    assert right == {"before", "after"}


async def test_the_asyncio_client_streams_too(tensors: Server) -> None:
    given = {str(number): rows(1 + number % 4, number) for number in range(60)}
    sent = asyncio.Event()

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for request_id, x in given.items():
            made = tritonclient.grpc.InferInput("x", x.shape, "FP32").set_data_from_numpy(x)
            yield {"model_name": "sequences", "inputs": [made], "request_id": request_id}
        sent.set()

    found = {}
    async with tritonclient.grpc.aio.InferenceServerClient(tensors.grpc) as client:
        async for result, error in client.stream_infer(requests()):
            assert error is None
            found[result.get_response().id] = result.as_numpy("double")
    assert sent.is_set()
    assert found.keys() == given.keys()
    assert all(np.array_equal(found[key], 2 * x) for key, x in given.items())


def test_several_streams_do_not_mix(tensors: Server) -> None:
    clients = [tritonclient.grpc.InferenceServerClient(tensors.grpc) for _ in range(4)]
    streams = [Stream(client) for client in clients]
    for number in range(20):
        for index, stream in enumerate(streams):
            stream.send(np.full((1, 1, 1), index, np.float32), f"{index}.{number}")
    for index, stream in enumerate(streams):
        found = stream.results(20)
        assert set(found) == {f"{index}.{number}" for number in range(20)}
        assert {result.as_numpy("double").item() for result in found.values()} == {2 * index}
    for client in clients:
        client.stop_stream()
        client.close()
