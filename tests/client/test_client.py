"""Both clients, against a small server of the contract."""

from __future__ import annotations

import asyncio

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ds_client import (
    AsyncClient,
    Client,
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RateLimited,
    ServerFailure,
    Tensor,
    TooLarge,
    Unauthenticated,
    Unavailable,
    Unreachable,
    Unsupported,
    bfloat16,
)

X = np.arange(6, dtype=np.float32).reshape(3, 2)


def test_arrays_come_back(client, echo):
    outputs = client.infer("echo", {"x": X, "n": np.array([1, 2])}, id="7", parameters={"p": 1.5})
    assert [*outputs] == ["x", "n"]
    np.testing.assert_array_equal(outputs["x"], X)
    assert outputs["n"].dtype == np.int64
    sent = echo.requests[0]
    assert (sent.model_name, sent.id, sent.parameters["p"].double_param) == ("echo", "7", 1.5)


def test_only_the_outputs_asked_for(client):
    assert [*client.infer("echo", {"x": X, "y": X}, outputs=["y"])] == ["y"]


@given(
    array=hnp.arrays(
        st.one_of(
            hnp.boolean_dtypes(),
            hnp.integer_dtypes(endianness="?"),
            hnp.unsigned_integer_dtypes(endianness="?"),
            hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
        ),
        hnp.array_shapes(min_dims=0, min_side=0),
    )
)
@settings(
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_every_number_type_survives(client, array):
    back = client.infer("echo", {"x": array})["x"]
    assert back.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(back, array)


def test_text_and_bytes_come_back_as_bytes(client):
    for value in (["a", "é"], np.array([b"a", "é".encode()], dtype=object)):
        back = client.infer("echo", {"x": value})["x"]
        assert back.tolist() == [b"a", "é".encode()]


def test_bfloat16_comes_back_as_float32(client):
    values = np.array([1.0, 3.14159, -np.inf, np.nan], np.float32)
    expected = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    for value in (bfloat16(values), values.astype(ml_dtypes.bfloat16)):
        back = client.infer("echo", {"x": value})["x"]
        assert back.dtype == np.float32
        np.testing.assert_array_equal(back, expected)


def test_a_raw_tensor_is_sent_as_it_is(client):
    outputs = client.infer("echo", {"x": Tensor("UINT8", (2,), b"\1\2")})
    assert outputs["x"].tolist() == [1, 2]


def test_typed_contents_are_understood(client):
    outputs = client.infer("typed", {"x": np.array([[1, 2]], np.uint8)})
    assert outputs["x"].tolist() == [[1, 2]]
    assert outputs["x"].dtype == np.uint8


@pytest.mark.parametrize(
    ("model", "kind", "message", "retry_after"),
    [
        ("missing", ModelNotFound, "there is no model 'missing'", None),
        ("wrong", InvalidRequest, "input 'x' is FP32", None),
        ("full", Overloaded, "the queue is full", 3.0),
        ("limited", RateLimited, "too fast", 0.5),
        ("large", TooLarge, "message is too large", None),
        ("locked", Unauthenticated, "no key", None),
        ("restarting", Unavailable, "the call ended with UNAVAILABLE", None),
        ("absent", Unsupported, "not offered here", None),
        ("broken", ServerFailure, "the engine failed", None),
        ("liar", ServerFailure, r"output 'x': 24 bytes are no FP32 of shape \[4, 2\]", None),
    ],
)
def test_each_status_has_its_error(client, model, kind, message, retry_after):
    with pytest.raises(ClientError, match=message) as caught:
        client.infer(model, {"x": X})
    assert type(caught.value) is kind
    assert caught.value.retry_after == retry_after


def test_a_timeout_is_the_calls_own_or_the_clients(connect):
    with pytest.raises(DeadlineExceeded):
        connect(timeout=10).infer("slow", {"x": X}, timeout=0.2)
    with pytest.raises(DeadlineExceeded):
        connect(timeout=0.2).infer("slow", {"x": X})


@pytest.mark.parametrize(
    ("inputs", "parameters", "message"),
    [
        ({"x": np.zeros(1, np.complex64)}, {}, "input 'x': numpy's complex64 cannot be sent"),
        ({"x": np.array([1.5, None])}, {}, "input 'x': a float in an array of objects"),
        ({"x": [[1.0, 2.0], [3.0]]}, {}, "input 'x' is no array"),
        ({"x": X}, {"p": None}, "parameter 'p' is a NoneType"),
        ({"x": X}, {"p": 2**64}, "parameter 'p': "),
    ],
)
def test_what_cannot_be_sent_is_named(client, inputs, parameters, message):
    with pytest.raises(InvalidRequest, match=message):
        client.infer("echo", inputs, parameters=parameters)


def test_headers_go_with_every_call(connect, echo):
    connect(headers={"authorization": "Bearer key"}).infer("echo", {"x": X})
    assert echo.headers["authorization"] == "Bearer key"


def test_a_stream_answers_every_request(client):
    replies = list(client.stream("echo", ({"x": X + i} for i in range(50))))
    assert sorted(reply.index for reply in replies) == list(range(50))
    assert all(reply.final for reply in replies)
    for reply in replies:
        np.testing.assert_array_equal(reply.outputs["x"], X + reply.index)


def test_a_bad_request_fails_alone_in_a_stream(client):
    replies = {reply.index: reply for reply in client.stream("grumpy", [{"x": X}] * 3)}
    assert [*replies[2].outputs] == ["x"]
    with pytest.raises(ClientError, match="not now"):
        _ = replies[1].outputs


def test_inputs_that_cannot_be_made_end_a_stream_with_their_own_error(client):
    def inputs():
        yield {"x": X}
        raise OSError("no more data")

    replies = client.stream("echo", inputs())
    assert next(replies).index == 0
    with pytest.raises(OSError, match="no more data"):
        next(replies)
    with pytest.raises(InvalidRequest, match="complex64 cannot be sent"):
        list(client.stream("echo", [{"x": np.zeros(1, np.complex64)}]))


def test_a_stream_that_is_refused_says_why(client):
    with pytest.raises(Overloaded) as caught:
        list(client.stream("full", [{"x": X}]))
    assert caught.value.retry_after == 3


def test_text_is_written_piece_by_piece(client, echo):
    pieces = list(client.generate("writer", "so it goes", max_tokens=4))
    assert pieces == ["so ", "it ", "goes ", "so "]
    assert [*echo.requests[0].inputs[0].shape] == [1]


def test_leaving_a_generation_stops_it(client, echo):
    pieces = client.generate("writer", "on and on", max_tokens=10**9)
    assert next(pieces) == "on "
    pieces.close()
    assert echo.stream_ended.wait(10)


def test_sampling_that_is_not_json_is_refused(client):
    with pytest.raises(InvalidRequest, match="cannot be sent as JSON"):
        list(client.generate("writer", "hello", stop={1, 2}))


def test_an_unknown_text_model_is_named(client):
    with pytest.raises(ModelNotFound, match="missing"):
        list(client.generate("missing", "hello"))


def test_questions_about_server_and_models(client):
    assert client.live()
    assert client.ready()
    assert client.ready("echo")
    assert not client.ready("other")
    assert client.server().extensions == ("statistics",)
    about = client.metadata("echo")
    assert (about.name, about.versions, about.platform) == ("echo", ("1",), "none")
    assert (about.inputs[0].datatype, about.inputs[0].shape) == ("FP32", (-1, 2))
    assert client.config("echo").max_batch_size == 4
    with pytest.raises(ModelNotFound):
        client.metadata("missing")


def test_statistics_are_in_seconds(client):
    (model,) = client.statistics("echo")
    assert (model.rows, model.executions) == (8, 2)
    assert (model.durations["success"].count, model.durations["success"].seconds) == (8, 1.5)


def test_a_server_that_is_not_ready_says_so(client, echo):
    echo.ready = False
    assert not client.ready()


def test_nobody_there_is_not_ready():
    with Client("127.0.0.1:1", timeout=10, retry=None) as client:
        assert not client.live()
        assert not client.ready("echo")
        with pytest.raises(Unreachable):
            client.infer("echo", {"x": X})


async def test_many_calls_at_once(address):
    async with AsyncClient(address) as client:
        calls = [client.infer("echo", {"x": X + i}) for i in range(40)]
        for i, outputs in enumerate(await asyncio.gather(*calls)):
            np.testing.assert_array_equal(outputs["x"], X + i)


async def test_a_stream_takes_inputs_as_they_come(address):
    """The second request depends on the first reply."""
    received: asyncio.Queue[np.ndarray] = asyncio.Queue()

    async def inputs():
        yield {"x": X}
        yield {"x": await received.get() + 1}

    async with AsyncClient(address) as client:
        replies = []
        async for reply in client.stream("echo", inputs()):
            replies.append(reply.outputs["x"])
            received.put_nowait(replies[-1])
    np.testing.assert_array_equal(replies[1], X + 1)
