"""Texts in flight: many at once, clients that leave, deadlines, bodies that make no sense."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import queue
from collections.abc import Callable
from typing import Any

import numpy as np
import openai
import pytest
import tritonclient.grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import Server, until
from texts import ENDLESS, FILES, PARIS, STORY, TEXT

from ds_client import AsyncClient, Client

pytestmark = pytest.mark.slow

Idle = Callable[[], None]
LONG_CHAT = {"model": TEXT, "messages": STORY, "max_tokens": 7000, "ignore_eos": True}


def running(server: Server) -> float:
    return server.metric("vllm:num_requests_running", model_name=TEXT)


def generating(server: Server) -> None:
    until(lambda: running(server) > 0, "nothing is being generated", 30, server.log)


def quiet(server: Server) -> None:
    """Nothing is left of a request, in the worker or in the gateway."""
    until(lambda: server.metric("ds_gateway_in_flight_requests") == 0, "still in flight", 10)


def tensors(**sampling: Any) -> list[Any]:
    found = []
    for name, value in (("text_input", "Once"), ("sampling_parameters", json.dumps(sampling))):
        tensor = tritonclient.grpc.InferInput(name, [1], "BYTES")
        tensor.set_data_from_numpy(np.array([value.encode()], np.object_))
        found.append(tensor)
    return found


def test_sixteen_chats_share_the_batch(server: Server, idle: Idle) -> None:
    """Each must get its own answer; the batch held several of them at once."""
    schema: list[Any] = [{"const": f"the answer to question {n}"} for n in range(8)]
    forms = [{"type": "json_schema", "json_schema": {"name": "x", "schema": s}} for s in schema]
    asked = [PARIS] * 8 + [PARIS | {"max_tokens": 40, "response_format": form} for form in forms]
    with openai.OpenAI(base_url=f"{server.http}/v1", api_key="none", max_retries=0) as client:

        def ask(body: dict[str, Any]) -> str:
            return client.chat.completions.create(**body).choices[0].message.content or ""

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            answers = [pool.submit(ask, body) for body in asked]
            most = 0.0
            while not all(answer.done() for answer in answers):
                most = max(most, running(server))
    texts = [answer.result() for answer in answers]
    assert all("Paris" in text for text in texts[:8])
    assert [json.loads(text) for text in texts[8:]] == [each["const"] for each in schema]
    assert most > 1
    idle()


def test_text_and_tensors_at_once(server: Server) -> None:
    row = {"name": "bytes", "datatype": "INT32", "shape": [1, 2048], "data": [256] * 2048}

    def infer() -> int:
        path = f"{server.http}/v2/models/{FILES}/infer"
        return server.client.post(path, json={"inputs": [row]}).status_code

    with server.client.stream(
        "POST", f"{server.http}/v1/completions", json=ENDLESS | {"max_tokens": 60, "stream": True}
    ) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert [infer() for _ in range(20)] == [200] * 20
        assert [line for line in lines if line][-1] == "data: [DONE]"


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/completions", ENDLESS), ("/v1/chat/completions", LONG_CHAT)]
)
def test_a_stream_whose_client_leaves(
    server: Server, idle: Idle, path: str, body: dict[str, Any]
) -> None:
    with server.client.stream("POST", server.http + path, json=body | {"stream": True}) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()  # dropping the iterator would drop the connection
        next(lines)
        generating(server)
    idle()
    quiet(server)


def test_an_answer_whose_client_leaves_before_it(server: Server, idle: Idle) -> None:
    connection = http.client.HTTPConnection(server.http_address)
    connection.request("POST", "/v1/chat/completions", json.dumps(LONG_CHAT))
    generating(server)
    connection.close()
    idle()
    quiet(server)


async def test_openai_s_client_that_leaves(
    server: Server, idle: Idle, async_client: openai.AsyncOpenAI
) -> None:
    stream = await async_client.chat.completions.create(
        model=TEXT, messages=STORY, max_tokens=7000, stream=True
    )
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    await stream.close()
    idle()


def test_a_grpc_stream_whose_client_leaves(server: Server, idle: Idle) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        flag = tritonclient.grpc.InferInput("stream", [1], "BOOL")
        flag.set_data_from_numpy(np.array([True]))
        client.async_stream_infer(TEXT, [*tensors(max_tokens=7000, ignore_eos=True), flag])
        assert answers.get(timeout=60)[1] is None
        generating(server)
        client.stop_stream(cancel_requests=True)
    idle()


def test_a_grpc_call_that_is_cancelled(server: Server, idle: Idle) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        call = client.async_infer(
            TEXT,
            tensors(max_tokens=7000, ignore_eos=True),
            lambda result, error: answers.put(error),
        )
        generating(server)
        call.cancel()
        assert "CANCELLED" in str(answers.get(timeout=30))
        idle()


async def test_our_clients_that_leave(server: Server, idle: Idle) -> None:
    sampling: dict[str, Any] = {"max_tokens": 7000, "ignore_eos": True}
    with Client(server.grpc) as client:
        pieces = client.generate(TEXT, "Once", **sampling)
        next(pieces)
        generating(server)
        pieces.close()
        idle()
    async with AsyncClient(server.grpc) as client:
        more = client.generate(TEXT, "Once", **sampling)
        await anext(more)
        generating(server)
        await more.aclose()
        idle()


def test_a_deadline_before_the_answer(server: Server, idle: Idle) -> None:
    answer = server.client.post(
        f"{server.http}/v1/chat/completions", json=LONG_CHAT, headers={"X-Request-Timeout": "0.2"}
    )
    assert answer.status_code == 504
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "timeout_error"
    assert "deadline" in error["message"]
    idle()


def test_a_deadline_in_a_stream(server: Server, idle: Idle) -> None:
    with server.client.stream(
        "POST",
        f"{server.http}/v1/chat/completions",
        json=LONG_CHAT | {"stream": True},
        headers={"X-Request-Timeout": "1.5"},
    ) as answer:
        assert answer.status_code == 200
        lines = [line for line in answer.iter_lines() if line]
    assert "data: [DONE]" not in lines
    error = json.loads(lines[-1].removeprefix("data: "))["error"]
    assert error["type"] == "timeout_error"
    assert len(lines) > 2
    idle()


def test_openai_s_client_sees_a_deadline(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": TEXT, "messages": STORY, "max_tokens": 4000}
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**asked, extra_headers={"X-Request-Timeout": "0.1"})
    assert caught.value.status_code == 504
    stream = client.chat.completions.create(
        **asked, stream=True, extra_headers={"X-Request-Timeout": "1.5"}
    )
    with pytest.raises(openai.APIError, match="deadline"):
        list(stream)


@pytest.mark.parametrize("wrong", ["x", "-1", "0", "nan", "inf"])
def test_a_timeout_that_is_none(server: Server, wrong: str) -> None:
    answer = server.client.post(
        f"{server.http}/v1/chat/completions", json=PARIS, headers={"X-Request-Timeout": wrong}
    )
    assert answer.status_code == 400
    assert "request-timeout" in answer.json()["error"]["message"].lower()
    assert repr(wrong) in answer.json()["error"]["message"]


def test_a_slow_reader_holds_nobody_up(server: Server, idle: Idle) -> None:
    """A client that reads nothing of its stream does not keep others from theirs."""
    body = ENDLESS | {"max_tokens": 400, "n": 4, "stream": True}
    with server.client.stream("POST", f"{server.http}/v1/completions", json=body):
        answer = server.client.post(f"{server.http}/v1/chat/completions", json=PARIS)
        assert "Paris" in answer.json()["choices"][0]["message"]["content"]
    idle()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.integers()
    | st.floats()
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = ["messages", "prompt", "temperature", "top_p", "top_k", "stop", "seed", "n", "stream"]
FIELDS += ["frequency_penalty", "logprobs", "top_logprobs", "response_format", "stream_options"]
FIELDS += ["model", "tools", "logit_bias", "user", "metadata", "echo", "min_tokens", "nonsense"]
SOUND = {
    "/v1/chat/completions": {"model": TEXT, "messages": PARIS["messages"], "max_tokens": 1},
    "/v1/completions": {"model": TEXT, "prompt": "Once", "max_tokens": 1},
}
PATHS = st.sampled_from(sorted(SOUND))
FUZZ = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def answered(server: Server, path: str, body: bytes) -> None:
    """The server answers, with no fault of its own, and what is wrong in OpenAI's shape."""
    answer = server.client.post(server.http + path, content=body)
    assert answer.status_code < 500, (body, answer.text)
    if answer.status_code != 200:
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
        assert answer.json()["error"]["message"]


@FUZZ
@given(path=PATHS, body=st.binary(max_size=200))
def test_bytes_that_are_no_request(server: Server, path: str, body: bytes) -> None:
    answered(server, path, body)


@FUZZ
@given(path=PATHS, changes=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3))
def test_fields_that_are_wrong(server: Server, path: str, changes: dict[str, Any]) -> None:
    answered(server, path, json.dumps(SOUND[path] | changes).encode())


@FUZZ
@given(
    path=PATHS,
    at=st.integers(0, 1000),
    length=st.integers(0, 3),
    new=st.binary(max_size=3).filter(lambda new: not any(chr(c).isdigit() for c in new)),
)
def test_requests_that_were_damaged(
    server: Server, path: str, at: int, length: int, new: bytes
) -> None:
    body = json.dumps(SOUND[path]).encode()
    at %= len(body)
    answered(server, path, body[:at] + new + body[at + length :])


def test_the_server_answers_after_all_that(server: Server, client: openai.OpenAI) -> None:
    assert server.ready()
    answer = client.chat.completions.create(**PARIS)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert server.metric("ds_worker_restarts_total") == 0
