"""What Anthropic's requests may say, and how each refusal names its field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ds_engines.errors import InvalidRequest
from ds_serve.text.anthropic_request import count_request, messages_request
from ds_serve.text.fields import Wanted

HI = {"role": "user", "content": "hi"}
TOOL = {"name": "f", "description": "does", "input_schema": {"type": "object"}}


def ask(**fields: Any) -> Wanted:
    body = {"model": "m", "max_tokens": 5, "messages": [HI]} | fields
    return messages_request(json.dumps(body).encode())


def test_a_talk_with_tools_is_told_as_openai_s() -> None:
    text = {"type": "text", "text": "I look."}
    call = {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}}
    result = {
        "type": "tool_result",
        "tool_use_id": "t1",
        "content": [{"type": "text", "text": "2"}],
    }
    paper = {"type": "document", "source": {"type": "text", "data": "and a paper"}}
    wanted = ask(
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        messages=[
            HI,
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "?"}, text, call]},
            {"role": "user", "content": [result, {"type": "text", "text": "go on "}, paper]},
        ],
        tools=[TOOL],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        metadata={"user_id": "u"},
    )
    assert wanted.messages == (
        {"role": "system", "content": "Be brief."},
        HI,
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {
                    "id": "t1",
                    "type": "function",
                    "function": {"name": "f", "arguments": {"x": 1}},
                }
            ],
        },
        {"role": "tool", "content": "2", "tool_call_id": "t1"},
        {"role": "user", "content": "go on and a paper"},
    )
    assert wanted.tools is not None
    assert (wanted.tools.forced, wanted.tools.parallel) == (True, False)
    assert wanted.max_tokens == 5


def test_a_last_word_of_the_assistant_is_where_the_answer_begins() -> None:
    wanted = ask(messages=[HI, {"role": "assistant", "content": [{"type": "text", "text": "Ah"}]}])
    assert (wanted.messages, wanted.begun) == ((HI,), "Ah")


def test_stops_may_be_more_than_openai_s() -> None:
    stops = [str(number) for number in range(9)]
    assert ask(stop_sequences=stops).stops == tuple(stops)


def test_a_prompt_can_be_counted_without_max_tokens() -> None:
    body = {"model": "m", "messages": [HI], "tools": [TOOL]}
    assert count_request(json.dumps(body).encode()).messages == (HI,)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_tokens": None}, "max_tokens is required"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
        ({"messages": [HI | {"content": [{"type": "image", "source": {}}]}]}, "'image'"),
        ({"messages": [HI | {"content": [{"type": "tool_result"}]}]}, "tool_use_id is required"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "nothing that the assistant"),
        ({"messages": [HI, {"role": "assistant", "content": "x "}]}, "ends with blanks"),
        ({"system": [{"type": "image"}]}, r"system.content\[0\] is of type 'image'"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "does not run"),
        ({"tools": [{"name": "f"}]}, "input_schema is required"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name is required"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"output_config": {"format": {"type": "text"}}}, "output_config.format"),
        ({"temperature": 1.5}, "temperature"),
        ({"mcp_servers": [{}]}, "mcp_servers is not a field"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        ask(**fields)
