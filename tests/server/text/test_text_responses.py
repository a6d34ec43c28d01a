"""OpenAI's newer form of a chat, through its own client."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel
from text_worker import MODEL

QUESTION = "What is the capital of France?"
ASKED: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_output_tokens": 80}
TOOL: Any = {
    "type": "function",
    "name": "visit",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}

pytestmark = pytest.mark.slow


class City(BaseModel):
    name: Literal["Paris", "Rome"]


def test_text_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.responses.create(**ASKED, input=QUESTION, store=False)
    assert "Paris" in whole.output_text
    assert whole.status == "completed"
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    with client.responses.stream(**ASKED, input=QUESTION) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.completed"


def test_a_chat_goes_on(client: openai.OpenAI) -> None:
    talk: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Paris."}]},
        {"role": "user", "content": "Tell me a long story about Italy."},
    ]
    asked = ASKED | {"max_output_tokens": 3}
    answer = client.responses.create(**asked, input=talk, instructions="Be thorough.")
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


def test_an_answer_is_parsed(client: openai.OpenAI) -> None:
    answer = client.responses.parse(**ASKED, input=QUESTION, text_format=City)
    assert isinstance(answer.output_parsed, City)


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_and_what_came_of_it(client: openai.OpenAI, stream: bool) -> None:
    asked = ASKED | {"input": QUESTION, "tools": [TOOL], "parallel_tool_calls": False}
    asked["tool_choice"] = {"type": "function", "name": "visit"}
    if stream:
        with client.responses.stream(**asked) as events:
            answer: Any = events.get_final_response()
    else:
        answer = client.responses.create(**asked)
    (call,) = answer.output
    assert (call.type, call.name) == ("function_call", "visit")
    assert json.loads(call.arguments)["city"] in {"Paris", "Rome"}
    said = {"type": "function_call", "call_id": call.call_id, "name": call.name}
    history: Any = [
        {"role": "user", "content": QUESTION},
        said | {"arguments": call.arguments},
        {"type": "function_call_output", "call_id": call.call_id, "output": "closed"},
    ]
    second = client.responses.create(**ASKED | {"max_output_tokens": 3}, input=history)
    assert second.usage is not None
    assert second.usage.input_tokens > 40


def test_what_is_not_offered_is_named(client: openai.OpenAI) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"temperature": 3}, "temperature"),
    ]
    for fields, param in wrong:
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(**ASKED | {"input": "x"} | fields)
        assert caught.value.param == param
