"""Anthropic's own client against the real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import pytest
from pydantic import BaseModel
from serving import Server
from texts import FRANCE, STORY, TEXT

pytestmark = pytest.mark.slow

ASKED: dict[str, Any] = {"model": TEXT, "max_tokens": 40, "extra_body": {"temperature": 0}}
TOOL: Any = {
    "name": "visit",
    "description": "Goes to a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


class City(BaseModel):
    name: Literal["Paris", "Rome"]


@pytest.fixture
def messages(server: Server) -> Iterator[anthropic.resources.Messages]:
    with anthropic.Anthropic(base_url=server.http, api_key="none", max_retries=0) as client:
        yield client.messages


def test_whole_and_streamed(messages: anthropic.resources.Messages) -> None:
    whole = messages.create(**ASKED, messages=FRANCE, system="Be brief.")
    (block,) = whole.content
    assert block.type == "text"
    assert "Paris" in block.text
    assert (whole.model, whole.role, whole.stop_reason) == (TEXT, "assistant", "end_turn")
    counted = messages.count_tokens(model=TEXT, messages=FRANCE, system="Be brief.")
    assert counted.input_tokens == whole.usage.input_tokens
    with messages.stream(**ASKED, messages=FRANCE, system="Be brief.") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert [block.text for block in final.content if block.type == "text"] == [block.text]
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.usage.input_tokens == whole.usage.input_tokens
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_why_it_ended(messages: anthropic.resources.Messages) -> None:
    cut = messages.create(**ASKED | {"max_tokens": 3}, messages=STORY)
    assert (cut.stop_reason, cut.stop_sequence) == ("max_tokens", None)
    asked = ASKED | {"messages": FRANCE, "stop_sequences": ["never", "of Fra"]}
    stopped = messages.create(**asked)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "of Fra")
    with messages.stream(**asked) as stream:
        assert stream.get_final_message().stop_sequence == "of Fra"


def test_an_answer_that_has_begun_goes_on(messages: anthropic.resources.Messages) -> None:
    begun: Any = {"role": "assistant", "content": "The capital city of France is called"}
    answer = messages.create(**ASKED | {"max_tokens": 4}, messages=[*FRANCE, begun])
    assert answer.content[0].type == "text"
    assert answer.content[0].text.startswith(" Paris")


@pytest.mark.parametrize("streamed", [False, True])
def test_a_call_and_what_came_of_it(messages: anthropic.resources.Messages, streamed: bool) -> None:
    asked = ASKED | {"messages": FRANCE, "tools": [TOOL]}
    asked["tool_choice"] = {"type": "tool", "name": "visit"}
    if streamed:
        with messages.stream(**asked) as stream:
            answer: Any = stream.get_final_message()
    else:
        answer = messages.create(**asked)
    assert answer.stop_reason == "tool_use"
    (call,) = [block for block in answer.content if block.type == "tool_use"]
    assert call.name == "visit"
    assert call.input["city"] in ("Paris", "Rome")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "closed"}
    talk: Any = [
        *FRANCE,
        {"role": "assistant", "content": answer.content},
        {"role": "user", "content": [result, {"type": "text", "text": "Why?"}]},
    ]
    after = messages.create(**ASKED | {"max_tokens": 3}, messages=talk, tools=[TOOL])
    assert after.usage.input_tokens > answer.usage.input_tokens


def test_an_answer_is_parsed(messages: anthropic.resources.Messages) -> None:
    answer = messages.parse(**ASKED, messages=FRANCE, output_format=City)
    assert isinstance(answer.parsed_output, City)


def test_errors_have_anthropic_s_shape(messages: anthropic.resources.Messages) -> None:
    picture: Any = {"type": "image", "source": {"type": "url", "url": "https://a/b"}}
    with pytest.raises(anthropic.BadRequestError, match="'image'; this model takes text only"):
        messages.create(**ASKED, messages=[{"role": "user", "content": [picture]}])
    with pytest.raises(anthropic.BadRequestError, match="the context is 8192 tokens"):
        messages.create(**ASKED | {"max_tokens": 8192}, messages=FRANCE)
    with pytest.raises(anthropic.NotFoundError, match="no model 'none'"):
        messages.create(**ASKED | {"model": "none"}, messages=FRANCE)
    asked = ASKED | {"max_tokens": 4000, "messages": STORY, "stream": True}
    stream = messages.create(**asked, extra_headers={"x-request-timeout": "1.5"})
    assert next(stream).type == "message_start"
    with pytest.raises(anthropic.APIStatusError, match="deadline"):
        list(stream)
