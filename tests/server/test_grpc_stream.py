"""The requests of one gRPC stream, with a service that answers when it is told to."""

from __future__ import annotations

import asyncio

import pytest

from ds_engines.errors import InvalidRequest, Overloaded
from ds_proto import grpc_service_pb2 as pb
from ds_serve.gateway.grpc.stream import IN_FLIGHT, Stream


class Service:
    """`waiting` holds what is begun, by the request's id."""

    def __init__(self):
        self.waiting = {}
        self.abandoned = []
        self.timeouts = []

    def answers_often(self, request):
        if request.model_name == "broken":
            raise RuntimeError("a fault of ours")
        return request.model_name == "text"

    def begin(self, request, timeout, done, *, parent, caller):
        if request.model_name == "wrong":
            raise InvalidRequest("no such input")
        self.timeouts.append(timeout)
        self.waiting[request.id] = done
        return lambda: self.abandoned.append(request.id)

    async def replies(self, request, timeout, *, parent, caller):
        for final in (False, False, True):
            reply = pb.ModelInferResponse(id=request.id)
            reply.parameters["triton_final_response"].bool_param = final
            yield reply

    def answer(self, key):
        self.waiting.pop(key)(pb.ModelInferResponse(id=key))


def ask(key, model="mlp"):
    return pb.ModelInferRequest(id=key, model_name=model)


def final(answer):
    return answer.infer_response.parameters["triton_final_response"].bool_param


@pytest.fixture
def service():
    return Service()


@pytest.fixture
def answers():
    return []


async def soon(what):
    """`what` within a few turns of the loop, and no earlier than it is true."""
    return await asyncio.wait_for(what, 5)


async def test_answers_come_as_they_are_there(service, answers):
    stream = Stream(service, None, answers.append)
    for key in "abc":
        stream.take(ask(key))
    for key in "cab":
        service.answer(key)
    assert [answer.infer_response.id for answer in answers] == ["c", "a", "b"]
    assert all(final(answer) and not answer.error_message for answer in answers)
    await soon(stream.finished())


async def test_what_is_wrong_is_answered_and_the_stream_goes_on(service, answers):
    stream = Stream(service, None, answers.append)
    stream.take(ask("1", "wrong"))
    stream.take(ask("2", "broken"))
    stream.take(ask("3"))
    service.waiting["3"](Overloaded("the queue is full"))
    assert [(answer.infer_response.id, answer.error_message) for answer in answers] == [
        ("1", "no such input"),
        ("2", "the server failed; its log says why"),
        ("3", "the queue is full"),
    ]
    assert all(final(answer) for answer in answers)


async def test_a_stream_is_full_until_answers_are_sent(service, answers):
    stream = Stream(service, None, answers.append)
    for number in range(IN_FLIGHT):
        assert not stream.full
        stream.take(ask(str(number)))
    waiting = asyncio.ensure_future(stream.room())
    service.answer("7")
    await asyncio.sleep(0.01)
    assert stream.full, "the answer is there, but not sent"
    assert not waiting.done()
    stream.sent()
    await soon(waiting)
    assert not stream.full


async def test_a_model_with_several_answers(service, answers):
    stream = Stream(service, None, answers.append)
    stream.take(ask("t", "text"))
    await soon(stream.finished())
    assert [final(answer) for answer in answers] == [False, False, True]


async def test_a_model_with_several_answers_waits_for_a_slow_client(service, answers, monkeypatch):
    monkeypatch.setattr("ds_serve.gateway.grpc.stream.IN_FLIGHT", 2)
    stream = Stream(service, None, answers.append)
    stream.take(ask("t", "text"))
    await asyncio.sleep(0.01)
    assert len(answers) == 2
    stream.sent()
    await soon(stream.finished())
    assert len(answers) == 3


async def test_a_stream_that_is_closed_abandons_and_says_nothing(service, answers):
    stream = Stream(service, None, answers.append)
    stream.take(ask("a"))
    stream.take(ask("t", "text"))
    stream.close()
    service.answer("a")
    await asyncio.sleep(0.01)
    assert service.abandoned == ["a"]
    assert answers == []
    await soon(stream.finished())


async def test_the_deadline_is_that_of_the_stream(service, answers):
    stream = Stream(service, 1.0, answers.append)
    stream.take(ask("a"))
    await asyncio.sleep(0.02)
    stream.take(ask("b"))
    first, second = service.timeouts
    assert first <= 1.0
    assert 0 <= second <= first - 0.02
