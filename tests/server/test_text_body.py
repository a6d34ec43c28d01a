"""What the gateway reads out of bodies, and how it changes one field of them."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_engines.errors import InvalidRequest
from ds_serve.gateway.text_body import model_part, read_form, read_json, with_fields, with_model

CHAT = "/v1/chat/completions"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from(["model", "a", 'q"', "\\", "ü"]), JSON, max_size=5)


@given(body=OBJECTS, values=OBJECTS, indent=st.booleans())
def test_a_field_is_changed_and_no_other(
    body: dict[str, Any], values: dict[str, Any], indent: bool
) -> None:
    data = orjson.dumps(body, option=orjson.OPT_INDENT_2 if indent else 0)
    wanted = {k: v for k, v in (body | values).items() if values.get(k, v) is not None or v is None}
    wanted = {k: v for k, v in wanted.items() if k not in values or values[k] is not None}
    assert orjson.loads(with_fields(data, values)) == wanted


def test_other_bytes_stay_as_they_are() -> None:
    body = b'{ "a":1.0E+2 , "model" : "x" ,"b":"\\u00fc" }'
    changed = with_fields(body, {"model": "y"})
    assert b'"a":1.0E+2' in changed
    assert b'"b":"\\u00fc"' in changed


def test_of_two_models_the_last_counts_and_both_are_changed() -> None:
    body = b'{"model":"one","mod\\u0065l":"two"}'
    assert read_json(CHAT, body).model == "two"
    assert orjson.loads(with_model(b"", body, "x")) == {"model": "x"}
    assert b"one" not in with_model(b"", body, "x")


def test_tokens_are_the_prompt_s_and_the_answer_s() -> None:
    text = "x" * 4000
    chat = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 100}
    assert 1100 <= read_json(CHAT, orjson.dumps(chat)).tokens <= 1120
    assert 1200 <= read_json(CHAT, orjson.dumps(chat | {"n": 2})).tokens <= 1220
    assert read_json("/tokenize", orjson.dumps(chat)).tokens == 0
    assert 1000 <= read_json("/v1/embeddings", orjson.dumps(chat)).tokens <= 1020
    picture = "data:image/png;base64," + "A" * 400_000
    seen = read_json(CHAT, orjson.dumps({"model": "m", "prompt": picture, "max_tokens": 1}))
    assert seen.tokens < 1100


def test_turns_of_one_conversation_begin_alike() -> None:
    turns: list[Any] = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    one = read_json(CHAT, orjson.dumps({"model": "m", "messages": turns}))
    turns += [{"role": "assistant", "content": "a"}, {"role": "user", "content": "v"}]
    two = read_json(CHAT, orjson.dumps({"messages": turns, "model": "m", "temperature": 0}))
    turns[1] = {"role": "user", "content": "w"}
    other = read_json(CHAT, orjson.dumps({"model": "m", "messages": turns}))
    assert one.prefix == two.prefix != other.prefix


FORM = b"multipart/form-data; boundary=XX"


def form(*parts: tuple[bytes, bytes]) -> bytes:
    each = [
        b'--XX\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % part for part in parts
    ]
    return b"".join(each) + b"--XX--\r\n"


def test_a_form_s_model_is_read_and_changed() -> None:
    body = form((b"file", b'\r\n\r\nname="model"\x00\xff'), (b"model", b"m1"), (b"z", b"1"))
    assert read_form(FORM, body).model == "m1"
    assert with_model(FORM, body, "other") == body.replace(b"m1", b"other")


@pytest.mark.parametrize("body", [b"", b"--XX", form((b"file", b"x")), form((b"model", b""))])
def test_a_form_without_a_model_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="model"):
        read_form(FORM, body)


def test_a_form_without_a_boundary_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="boundary"):
        model_part(b"multipart/form-data", b"")


@pytest.mark.parametrize("body", [b'{"model": "\x80a"}', b'{"model": "a", "cache_salt": "\xff"}'])
def test_a_body_that_is_not_utf8_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="JSON"):
        read_json("/v1/completions", body)


def test_what_the_gateway_does_not_read_may_be_anything() -> None:
    body = b'{"\x80": 1, "model": "a"}'
    assert read_json("/v1/completions", body).model == "a"
    assert with_fields(body, {"model": "b"}) == b'{"\x80": 1,"model":"b"}'
