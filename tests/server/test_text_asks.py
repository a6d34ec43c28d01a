"""What a worker gets of a request: without what is the gateway's, with the key's own salt."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from ds_serve.gateway.text_body import read_json
from ds_serve.gateway.text_way import Ask, prefix_of, salted

PATH = "/v1/chat/completions"


def ask(key: str = "", path: str = PATH, **fields: Any) -> Ask:
    body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}]} | fields)
    about = read_json(path, body)
    return Ask("POST", path, body, {}, 1.0, about, key=key, priority=about.priority)


def test_a_body_that_nothing_is_to_be_changed_in_is_the_same() -> None:
    plain = ask()
    assert plain.for_engine("vllm") is plain.body
    assert ask("team").for_engine("openvino-genai") == ask("team").body


def test_priorities_are_the_gateway_s() -> None:
    given = ask(priority=3)
    assert "priority" not in orjson.loads(given.for_engine("vllm"))
    assert given.for_engine("upstream") is given.body
    assert "priority" not in orjson.loads(given.for_engine("encoder"))


def test_an_engine_with_a_queue_of_its_own_gets_the_priority_that_counts() -> None:
    given = ask(priority=3)
    assert orjson.loads(given.for_engine("openvino-genai"))["priority"] == 3
    given.priority = 7  # the least that the key may say
    assert orjson.loads(given.for_engine("openvino-genai"))["priority"] == 7
    counted = ask(path="/tokenize?a=b", priority=3)
    assert "priority" not in orjson.loads(counted.for_engine("openvino-genai"))


def test_keys_share_no_prefixes_in_vllm() -> None:
    def salt(key: str, **fields: Any) -> Any:
        return orjson.loads(ask(key, **fields).for_engine("vllm")).get("cache_salt")

    assert salt("") is None
    assert salt("a") == salt("a") != salt("b")
    mine, theirs = salt("a", cache_salt="x"), salt("b", cache_salt="x")
    assert mine != theirs
    assert mine != salt("a")
    assert salt("b", cache_salt=salted("a", "")) != salt("a"), "nobody gets into another's"


@pytest.mark.parametrize(
    ("path", "plain"),
    [
        ("/v1/classify", "/classify"),
        ("/v1/tokenize?a=/v1/classify", "/tokenize?a=/v1/classify"),
        ("/classify", "/classify"),
        ("/v1/score", "/v1/score"),
        ("/v1/classify/more", "/v1/classify/more"),
    ],
)
def test_vllm_has_some_paths_without_v1_alone(path: str, plain: str) -> None:
    given = ask(path=path)
    assert given.path_for("vllm") == plain
    assert given.path_for("encoder") == path


def test_only_the_model_s_own_name_is_another_there() -> None:
    assert orjson.loads(ask().for_engine("upstream", ("m", "big")))["model"] == "big"
    adapter = ask(model="pirate")
    assert adapter.for_engine("upstream", ("m", "big")) is adapter.body


def test_keys_have_replicas_of_their_own() -> None:
    assert prefix_of(ask("a"), "prefix") == prefix_of(ask("a"), "prefix")
    assert prefix_of(ask("a"), "prefix") != prefix_of(ask("b"), "prefix")
    assert prefix_of(ask("a"), "random") != prefix_of(ask("a"), "random")
