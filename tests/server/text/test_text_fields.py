"""What a request may say, and how each refusal names its field."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_engines.errors import InvalidRequest
from ds_serve.text.errors import BadField, body_of
from ds_serve.text.fields import Wanted, chat_request, completion_request


def chat(**fields: Any) -> Wanted:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]} | fields
    return chat_request(json.dumps(body).encode())


def complete(**fields: Any) -> Wanted:
    return completion_request(json.dumps({"model": "m", "prompt": "hi"} | fields).encode())


F = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}

REFUSED: list[tuple[str, Any, str]] = [
    ("tools", [{"type": "function"}], "tools[0].function"),
    ("tools", [{"type": "custom", "custom": {}}], "tools[0].type"),
    ("tools", [{"type": "function", "function": {"name": "a b"}}], "tools[0].function.name"),
    ("tools", [F, F], "tools"),
    ("tool_choice", "required", "tool_choice"),
    ("tool_choice", "sometimes", "tool_choice"),
    ("echo", True, "echo"),
    ("structured_outputs", {}, "structured_outputs"),
    ("structured_outputs", {"regex": "a", "choice": ["b"]}, "structured_outputs"),
    ("structured_outputs", {"structural_tag": "{}"}, "structured_outputs.structural_tag"),
    ("functions", [{}], "functions"),
    ("function_call", {"name": "f"}, "function_call"),
    ("logit_bias", {"50256": -100}, "logit_bias"),
    ("audio", {"voice": "a"}, "audio"),
    ("modalities", ["text", "audio"], "modalities"),
    ("prediction", {"type": "content"}, "prediction"),
    ("web_search_options", {}, "web_search_options"),
    ("top_logprobs", 2, "top_logprobs"),
    ("top_logprobs", 21, "top_logprobs"),
    ("logprobs", 1, "logprobs"),
    ("no_such_field", 1, "no_such_field"),
    ("temperature", 2.1, "temperature"),
    ("temperature", -0.1, "temperature"),
    ("temperature", "hot", "temperature"),
    ("top_p", 1.1, "top_p"),
    ("top_p", -1, "top_p"),
    ("top_k", -2, "top_k"),
    ("min_p", 1, "min_p"),
    ("seed", "a", "seed"),
    ("n", 0, "n"),
    ("n", 129, "n"),
    ("max_tokens", 0, "max_tokens"),
    ("max_tokens", 1.5, "max_tokens"),
    ("max_completion_tokens", -1, "max_completion_tokens"),
    ("min_tokens", -1, "min_tokens"),
    ("frequency_penalty", 2.5, "frequency_penalty"),
    ("presence_penalty", -2.5, "presence_penalty"),
    ("repetition_penalty", 0, "repetition_penalty"),
    ("stop", ["a", "b", "c", "d", "e"], "stop"),
    ("stop", "", "stop"),
    ("stop", 3, "stop"),
    ("stream", "yes", "stream"),
    ("stream_options", {"include_usage": True}, "stream_options"),
    ("response_format", {"type": "yaml"}, "response_format.type"),
    ("response_format", {"type": "json_schema"}, "response_format"),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "x"}}, "schema"),
    ("messages", [], "messages"),
    ("messages", "hi", "messages"),
    ("messages", [{"role": "function", "content": "x"}], "messages[0].role"),
    ("messages", [{"role": "tool", "content": "x"}], "messages[0].tool_call_id"),
    ("messages", [{"role": "user"}], "messages[0].content"),
    (
        "messages",
        [{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}],
        "messages[0].tool_calls",
    ),
    (
        "messages",
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}],
        "messages[0].tool_calls[0].function.arguments",
    ),
    (
        "messages",
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}],
        "messages[0].content[0]",
    ),
    (
        "messages",
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
        "messages[0].content[0]",
    ),
    ("model", 3, "model"),
]


@pytest.mark.parametrize(("field", "value", "param"), REFUSED)
def test_a_refused_chat_field_is_named(field: str, value: Any, param: str) -> None:
    with pytest.raises(BadField) as caught:
        chat(**{field: value})
    assert caught.value.param.endswith(param)
    assert field.partition("[")[0] in str(caught.value) or param in str(caught.value)
    error = body_of(caught.value)["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == caught.value.param


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("suffix", "end", "suffix"),
        ("tools", [F], "tools"),
        ("max_tokens", 0, "max_tokens"),
        ("best_of", 3, "best_of"),
        ("logit_bias", {"1": 1}, "logit_bias"),
        ("logprobs", 2, "logprobs"),
        ("logprobs", 6, "logprobs"),
        ("logprobs", True, "logprobs"),
        ("messages", [], "messages"),
        ("prompt", [], "prompt"),
        ("prompt", 3, "prompt"),
        ("prompt", ["a", 3], "prompt[1]"),
        ("prompt", [[1], []], "prompt[1]"),
        ("prompt", [1, "a"], "prompt[0]"),
        ("prompt", [True], "prompt[0]"),
        ("max_completion_tokens", 3, "max_completion_tokens"),
    ],
)
def test_a_refused_completion_field_is_named(field: str, value: Any, param: str) -> None:
    with pytest.raises(BadField) as caught:
        complete(**{field: value})
    assert caught.value.param == param


def test_too_many_choices_in_all_are_refused() -> None:
    with pytest.raises(BadField, match="10 prompts times n 13"):
        complete(prompt=["x"] * 10, n=13)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(BadField, match="messages is required") as caught:
        chat_request(b'{"model":"m"}')
    assert caught.value.param == "messages"


def test_fields_that_change_nothing_are_taken() -> None:
    wanted = chat(
        user="u",
        metadata={"a": "b"},
        store=True,
        service_tier="auto",
        parallel_tool_calls=True,
        tools=[],
        tool_choice="none",
        logit_bias={},
        top_logprobs=0,
        audio=None,
        modalities=["text"],
    )
    assert wanted.messages == ({"role": "user", "content": "hi"},)


def test_null_is_the_same_as_absent() -> None:
    wanted = chat(temperature=None, max_tokens=None, stop=None, seed=None, tools=None, n=None)
    assert wanted.sampling.temperature == 1.0
    assert wanted.max_tokens is None
    assert wanted.stops == ()


def test_text_parts_are_joined_and_a_developer_is_the_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    wanted = chat(messages=[{"role": "developer", "content": parts}])
    assert wanted.messages == ({"role": "system", "content": "ab"},)


def test_prompts_of_each_kind() -> None:
    assert complete(prompt="a").prompts == ("a",)
    assert complete(prompt=["a", "b"]).prompts == ("a", "b")
    assert complete(prompt=[1, 2]).prompts == ([1, 2],)
    assert complete(prompt=[[1], [2]]).prompts == ([1], [2])


def test_defaults_are_openais() -> None:
    assert complete().max_tokens == 16
    assert chat().max_tokens is None
    assert chat().sampling.temperature == 1.0
    assert not chat().logprobs
    assert complete(logprobs=0).logprobs


def test_temperature_and_top_p_of_zero_are_greedy() -> None:
    assert chat(temperature=0).sampling.temperature == 0
    assert chat(top_p=0, temperature=1).sampling.temperature == 0


def test_without_a_seed_each_request_has_its_own() -> None:
    assert chat().sampling.seed != chat().sampling.seed
    assert chat(seed=7).sampling.seed == 7
    assert 0 <= chat(seed=-1).sampling.seed < 2**63


def test_a_schema_keeps_the_order_of_its_properties() -> None:
    schema = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "string"}}}
    form = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}
    found = chat(response_format=form).format
    assert found is not None
    assert list(json.loads(found.constraint.text)["properties"]) == ["b", "a"]
    plain = chat(response_format={"type": "json_object"}).format
    assert plain is not None
    assert plain.constraint.text == '{"type":"object"}'
    assert chat(response_format={"type": "text"}).format is None


@pytest.mark.parametrize(
    ("fields", "kind", "field"),
    [
        ({"structured_outputs": {"regex": "a+"}}, "regex", "structured_outputs"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "choice", "structured_outputs"),
        ({"structured_outputs": {"json_object": True}}, "json", "structured_outputs"),
        ({"structured_outputs": {"json": {"type": "string"}}}, "json", "structured_outputs"),
        ({"guided_grammar": 'root ::= "a"'}, "grammar", "guided_grammar"),
        ({"guided_json": '{"type": "string"}'}, "json", "guided_json"),
    ],
)
def test_vllms_names_for_structured_outputs(fields: Any, kind: str, field: str) -> None:
    for found in (chat(**fields).format, complete(**fields).format):
        assert found is not None
        assert (found.constraint.kind, found.field) == (kind, field)


def test_two_forms_of_an_answer_are_refused() -> None:
    with pytest.raises(BadField, match="response_format and guided_regex each say"):
        chat(response_format={"type": "json_object"}, guided_regex="a")


def test_an_answer_goes_back_as_it_came() -> None:
    """As the SDK's `message.model_dump()` has it, nulls and all."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    said = {"role": "assistant", "content": None, "refusal": None, "annotations": None}
    said |= {"audio": None, "function_call": None, "tool_calls": [call]}
    heard = {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "2"}]}
    found = chat(messages=[{"role": "user", "content": "x"}, said, heard]).messages
    assert found[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}
    assert found[2] == {"role": "tool", "content": "2", "tool_call_id": "c1"}


def test_which_tools_may_be_called() -> None:
    other = {"type": "function", "function": {"name": "g", "description": "d"}}
    assert chat(tools=[F], tool_choice="none").tools is None
    auto = chat(tools=[F, other]).tools
    assert auto is not None
    assert ([tool.name for tool in auto.callable_], auto.forced) == (["f", "g"], False)
    named = chat(tools=[F, other], tool_choice={"type": "function", "function": {"name": "g"}})
    assert named.tools is not None
    assert [tool.name for tool in named.tools.callable_] == ["g"]
    assert (named.tools.forced, named.tools.parallel, len(named.tools.shown)) == (True, False, 2)
    with pytest.raises(BadField, match="tool_choice names 'h'; tools has f, g"):
        chat(tools=[F, other], tool_choice={"type": "function", "function": {"name": "h"}})


def test_min_tokens_above_max_tokens_is_refused() -> None:
    with pytest.raises(BadField, match="min_tokens 5 is over max_tokens 4"):
        chat(min_tokens=5, max_tokens=4)


@given(st.binary(max_size=200))
def test_any_bytes_are_either_a_request_or_invalid(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        chat_request(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
FIELDS = ["temperature", "n", "stop", "messages", "response_format", "logprobs", "stream", "x"]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_any_values_are_either_taken_or_refused(fields: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidRequest):
        assert 1 <= chat(**fields).n <= 128
