"""Calls of tools, whole and streamed, by the real model through OpenAI's own client."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from text_worker import MODEL

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "unit": {"enum": ["C", "F"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
CLOCK: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "The time of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/City"}},
            "required": ["city"],
            "additionalProperties": False,
            "$defs": {"City": {"enum": ["Rome", "Oslo"]}},
        },
    },
}
ASKED: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "What is the weather in Rome?"}],
    "tools": [WEATHER, CLOCK],
    "temperature": 0,
    "max_tokens": 120,
}
NAMED: Any = {"type": "function", "function": {"name": "get_time"}}

pytestmark = pytest.mark.slow


def test_a_required_call_is_one_of_the_tools(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ASKED, tool_choice="required")
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls
    for call in choice.message.tool_calls:
        assert call.type == "function"
        assert call.id.startswith("call_")
        assert call.function.name in {"get_weather", "get_time"}
        arguments = json.loads(call.function.arguments)
        wanted = {"get_weather": {"city", "unit"}, "get_time": {"city"}}
        assert arguments.keys() == wanted[call.function.name]


@pytest.mark.parametrize("stream", [False, True])
def test_a_named_tool_is_called_once(client: openai.OpenAI, stream: bool) -> None:
    """Also where the model would rather talk."""
    asked = ASKED | {"temperature": 0.2, "seed": 3, "tool_choice": NAMED, "n": 2}
    if not stream:
        choices = client.chat.completions.create(**asked).choices
        calls = [choice.message.tool_calls or [] for choice in choices]
        ends = [choice.finish_reason for choice in choices]
    else:
        chunks = [
            chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)
        ]
        calls = [[], []]
        for chunk in chunks:
            assert not chunk.delta.content
            calls[chunk.index] += chunk.delta.tool_calls or []
        ends = [c.finish_reason for c in chunks if c.finish_reason]
        assert [call.index for each in calls for call in each] == [0, 0]
    assert ends == ["tool_calls", "tool_calls"]
    for (call,) in calls:
        assert call.function.name == "get_time"
        assert json.loads(call.function.arguments)["city"] in {"Rome", "Oslo"}


def test_one_call_where_parallel_ones_are_not_wanted(client: openai.OpenAI) -> None:
    asked = ASKED | {"tool_choice": "required", "parallel_tool_calls": False}
    message = client.chat.completions.create(**asked).choices[0].message
    assert len(message.tool_calls or []) == 1


def test_a_model_that_talks_is_heard(client: openai.OpenAI) -> None:
    asked = ASKED | {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 12}
    for more in ({}, {"tool_choice": "none"}):
        whole = client.chat.completions.create(**asked, **more).choices[0]
        assert whole.message.content
        assert whole.message.tool_calls is None
        chunks = list(client.chat.completions.create(**asked, **more, stream=True))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == whole.message.content


def test_the_tools_and_what_they_said_are_in_the_prompt(client: openai.OpenAI) -> None:
    call = {"name": "get_weather", "arguments": '{"city": "Rome", "unit": "C"}'}
    history = [
        *ASKED["messages"],
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": call}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "foggy"},
    ]

    def size(**more: Any) -> int:
        answer = client.chat.completions.create(**ASKED | {"max_tokens": 1} | more)
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    alone = size(tools=openai.omit)
    assert size(tool_choice="none") == alone
    assert size() > alone + 100
    assert size(messages=history) > size() + 30
    tokens = client.post(
        "/tokenize", cast_to=object, body={"messages": history, "tools": [WEATHER]}
    )
    text: Any = client.post("/detokenize", cast_to=object, body={"tokens": tokens["tokens"]})  # type: ignore[index]
    assert "The weather of a city" in text["prompt"]
    assert "foggy" in text["prompt"]


def test_an_answer_or_a_call(client: openai.OpenAI) -> None:
    """A form of answer and tools at once: it is either."""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    choice = client.chat.completions.create(**ASKED, response_format=form).choices[0]
    if choice.finish_reason == "tool_calls":
        assert choice.message.tool_calls
    else:
        assert "ok" in json.loads(choice.message.content or "")


def test_parameters_that_cannot_be_enforced_are_refused_where_they_must_be(
    client: openai.OpenAI,
) -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    with pytest.raises(openai.BadRequestError, match="'uniqueItems'") as caught:
        client.chat.completions.create(**ASKED | {"tools": [tool]}, tool_choice="required")
    assert caught.value.param == "tools"
    client.chat.completions.create(**ASKED | {"tools": [tool], "max_tokens": 2})
