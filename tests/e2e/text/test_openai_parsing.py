"""What OpenAI's client makes of answers by itself: models of pydantic, calls, streams of events."""

from __future__ import annotations

import re
from pydoc_data.topics import topics
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel
from texts import FRANCE, TEXT

pytestmark = pytest.mark.slow


class City(BaseModel):
    name: Literal["Paris", "Rome"]
    capital: bool


class GetWeather(BaseModel):
    """The weather of a city."""

    city: Literal["Paris", "Rome"]
    days: Literal[1, 2]


ASKED: dict[str, Any] = {"model": TEXT, "messages": FRANCE, "temperature": 0, "max_tokens": 80}
TOOLS: Any = [openai.pydantic_function_tool(GetWeather)]


def test_an_answer_is_parsed(client: openai.OpenAI) -> None:
    message = client.chat.completions.parse(**ASKED, response_format=City).choices[0].message
    assert isinstance(message.parsed, City)


def test_a_call_is_parsed(client: openai.OpenAI) -> None:
    choice = client.chat.completions.parse(**ASKED, tools=TOOLS, tool_choice="required").choices[0]
    assert choice.finish_reason == "tool_calls"
    (call, *_) = choice.message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, GetWeather)


def test_a_stream_of_events(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(**ASKED, response_format=City) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion().choices[0].message
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert isinstance(final.parsed, City)


async def test_a_stream_of_calls(async_client: openai.AsyncOpenAI) -> None:
    asked = ASKED | {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    async with async_client.chat.completions.stream(**asked) as stream:
        kinds = [event.type async for event in stream]
        final = (await stream.get_final_completion()).choices[0]
    assert "tool_calls.function.arguments.done" in kinds
    assert final.finish_reason == "tool_calls"
    (call,) = final.message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, GetWeather)


async def test_a_call_and_what_came_of_it(async_client: openai.AsyncOpenAI) -> None:
    """The answer goes back as the client has it."""
    create = async_client.chat.completions.create
    first = await create(**ASKED, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    message = first.choices[0].message
    (call,) = message.tool_calls or []
    history: Any = [
        *FRANCE,
        message.model_dump(),
        {"role": "tool", "tool_call_id": call.id, "content": "It rains."},
    ]
    second = await create(**ASKED | {"messages": history, "max_tokens": 20}, tools=TOOLS)
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.prompt_tokens > first.usage.prompt_tokens + 20


def test_tokens_are_counted_over_the_gateway(client: openai.OpenAI) -> None:
    body = {"model": TEXT, "messages": FRANCE}
    found: Any = client.post("/tokenize", cast_to=object, body=body)
    answer = client.chat.completions.create(**ASKED | {"max_tokens": 1})
    assert answer.usage is not None
    assert found["count"] == answer.usage.prompt_tokens


def test_a_long_document_is_summarised(client: openai.OpenAI) -> None:
    """Python's manual on its debugger, over four thousand tokens: the answer is about it, in words
    that stand there.
    """
    text = topics["debugger"][:18_000]
    asked = f"Summarise this text in two sentences.\n\n{text}\n\nWhat is the text about?"
    answer = client.chat.completions.create(
        model=TEXT, messages=[{"role": "user", "content": asked}], temperature=0, max_tokens=40
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 4000
    said = (answer.choices[0].message.content or "").lower()
    assert "debug" in said
    words = set(re.findall("[a-z]{5,}", said))
    assert len(words) > 3
    assert len(words & set(re.findall("[a-z]{5,}", text.lower()))) > 0.8 * len(words), said
