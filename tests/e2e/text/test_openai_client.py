"""The chat model through the whole server, with OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from typing import Any

import openai
import pytest
from serving import Server, until
from texts import FILES, FRANCE, PARIS, STORY, TEXT

pytestmark = pytest.mark.slow

CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "big": {"type": "boolean"}},
    "required": ["city", "big"],
    "additionalProperties": False,
}
COMPLETION: dict[str, Any] = {
    "model": TEXT,
    "prompt": "The capital of France is",
    "temperature": 0,
    "max_tokens": 8,
}


def delta(chunk: Any) -> str:
    return (chunk.choices[0].delta.content or "") if chunk.choices else ""


def test_a_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**PARIS)
    (choice,) = answer.choices
    assert answer.object == "chat.completion"
    assert answer.model == TEXT
    assert choice.message.role == "assistant"
    assert "Paris" in (choice.message.content or "")
    assert choice.finish_reason == "stop"
    usage = answer.usage
    assert usage is not None
    assert 1 < usage.completion_tokens < 30
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_streamed_chat_joins_to_the_whole_one(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**PARIS)
    chunks = list(
        client.chat.completions.create(**PARIS, stream=True, stream_options={"include_usage": True})
    )
    pieces = [delta(chunk) for chunk in chunks]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len([piece for piece in pieces if piece]) > 3
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_is_not_streamed_unless_asked_for(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(**PARIS, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_a_completion_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.completions.create(**COMPLETION)
    assert "Paris" in whole.choices[0].text
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 8
    chunks = list(client.completions.create(**COMPLETION, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"
    assert len(chunks) > 3


async def test_the_asynchronous_client(async_client: openai.AsyncOpenAI) -> None:
    chats, texts = async_client.chat.completions, async_client.completions
    whole = await chats.create(**PARIS)
    stream = await chats.create(**PARIS, stream=True)
    assert "".join([delta(chunk) async for chunk in stream]) == whole.choices[0].message.content
    completion = await texts.create(**COMPLETION)
    parts = await texts.create(**COMPLETION, stream=True)
    assert "".join([part.choices[0].text async for part in parts]) == completion.choices[0].text


def test_two_choices(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": TEXT, "messages": STORY, "n": 2, "max_tokens": 10, "seed": 5}
    answer = client.chat.completions.create(**asked)
    assert [choice.index for choice in answer.choices] == [0, 1]
    first, second = (choice.message.content for choice in answer.choices)
    assert first != second
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 20
    ends: dict[int, str | None] = defaultdict(lambda: None)
    for chunk in client.chat.completions.create(**asked, stream=True):
        ends[chunk.choices[0].index] = chunk.choices[0].finish_reason
    assert ends == {0: "length", 1: "length"}


@pytest.mark.parametrize("stream", [False, True])
def test_stop(client: openai.OpenAI, stream: bool) -> None:
    answer = client.chat.completions.create(**PARIS, stop=["of Fra", "never"], stream=stream)
    if stream:
        chunks = list(answer)
        text, end = "".join(map(delta, chunks)), chunks[-1].choices[0].finish_reason
    else:
        text, end = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert (text, end) == ("The capital ", "stop")


def test_log_probabilities(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(**PARIS, logprobs=True).choices[0]
    assert choice.logprobs is not None
    tokens = choice.logprobs.content or []
    assert "".join(token.token for token in tokens) == choice.message.content
    assert all(token.logprob <= 0 for token in tokens)
    completion = client.completions.create(**COMPLETION, logprobs=1).choices[0]
    assert completion.logprobs is not None
    assert "".join(completion.logprobs.tokens or []) == completion.text
    assert len(completion.logprobs.token_logprobs or []) == 8


def test_a_json_schema_is_kept_to(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    asked = PARIS | {"max_tokens": 60, "response_format": form}
    found = json.loads(client.chat.completions.create(**asked).choices[0].message.content or "")
    assert found.keys() == {"city", "big"}
    assert found["city"] in {"Paris", "Rome"}
    assert isinstance(found["big"], bool)


def test_max_completion_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=TEXT, messages=STORY, max_completion_tokens=5, temperature=0
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5


def test_a_seed_repeats_a_sampled_answer(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model=TEXT, messages=STORY, max_tokens=12, temperature=1.5, seed=seed
        )
        return answer.choices[0].message.content

    assert ask(1) == ask(1)
    assert ask(1) != ask(2)


def test_the_models_are_the_text_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [TEXT]
    found = client.models.retrieve(TEXT)
    assert (found.id, found.object, found.owned_by) == (TEXT, "model", "ds-serve")
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-9")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("model", ["gpt-9", FILES])
def test_a_model_that_does_not_chat(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError, match=f"'{model}'") as caught:
        client.chat.completions.create(model=model, messages=FRANCE)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model=model, prompt="x", stream=True)


@pytest.mark.parametrize(
    ("wrong", "param", "says"),
    [
        ({"logprobs": True, "top_logprobs": 2}, "top_logprobs", "top_logprobs 2 is not supported"),
        ({"temperature": 3}, "temperature", "<= 2"),
        ({"max_tokens": 0}, "max_tokens", ">= 1"),
        ({"max_tokens": 9000}, "max_tokens", "the context is 8192 tokens"),
        ({"messages": []}, "messages", "length >= 1"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "no content"),
        ({"n": 1000}, "n", "<= 128"),
        ({"extra_body": {"tmperature": 1}}, "tmperature", "is not a field"),
        ({"logit_bias": {"1": 1}}, "logit_bias", "not supported"),
        ({"tool_choice": "required"}, "tool_choice", "tools has none"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_field_is_named(
    client: openai.OpenAI, wrong: dict[str, Any], param: str, says: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError, match=re.escape(says)) as caught:
        client.chat.completions.create(**PARIS | wrong, stream=stream)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_a_prompt_beyond_the_context(client: openai.OpenAI) -> None:
    chat: Any = [{"role": "user", "content": "one two " * 5000}]
    with pytest.raises(openai.BadRequestError, match="the context is 8192 tokens") as caught:
        client.chat.completions.create(model=TEXT, messages=chat)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"
    with pytest.raises(openai.BadRequestError, match="the context is 8192 tokens") as caught:
        client.completions.create(model=TEXT, prompt="one two " * 5000)
    assert caught.value.code == "context_length_exceeded"


def test_request_ids(client: openai.OpenAI) -> None:
    mine = client.chat.completions.create(**PARIS, extra_headers={"X-Request-ID": "mine-1"})
    assert mine._request_id == "mine-1"
    others = [client.chat.completions.create(**PARIS)._request_id for _ in range(2)]
    assert all(others)
    assert others[0] != others[1]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**PARIS | {"n": 0}, extra_headers={"X-Request-ID": "mine-2"})
    assert caught.value.request_id == "mine-2"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(
            **PARIS | {"model": "none"}, extra_headers={"X-Request-ID": "mine-3"}
        )
    assert missing.value.request_id == "mine-3"


async def test_a_full_queue_refuses_with_advice(
    server: Server, async_client: openai.AsyncOpenAI
) -> None:
    """The queue holds 256 answers: two requests of 128 fill it, and the cache has room for them."""
    chats, texts = async_client.chat.completions, async_client.completions
    asked: dict[str, Any] = {"model": TEXT, "prompt": "Once", "max_tokens": 100, "n": 128}
    filling = [asyncio.create_task(texts.create(**asked)) for _ in range(2)]
    try:
        await asyncio.to_thread(until, lambda: held(server) == 256, "the queue is not full")
        with pytest.raises(openai.RateLimitError, match="256 answers are waiting") as caught:
            await chats.create(**PARIS)
    finally:
        for task in filling:
            task.cancel()
        await asyncio.wait(filling)
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert caught.value.type == "rate_limit_error"
    await asyncio.to_thread(until, lambda: held(server) == 0, "the queue does not empty")
    assert "Paris" in ((await chats.create(**PARIS)).choices[0].message.content or "")


def held(server: Server) -> float:
    """Answers that run or wait."""
    return server.metric("vllm:num_requests_running") + server.metric("vllm:num_requests_waiting")
