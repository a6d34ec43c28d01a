"""Triton's generate extension, and what is counted of a text model."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from serving import Server, until
from texts import ENDLESS, FILES, TEXT

pytestmark = pytest.mark.slow

PROMPT = "The capital of France is"
SAMPLING: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
BODY = {"id": "42", "text_input": PROMPT, "parameters": SAMPLING}


def url(server: Server, kind: str, model: str = TEXT) -> str:
    return f"{server.http}/v2/models/{model}/{kind}"


def events(server: Server, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = server.client.post(url(server, "generate_stream"), json=body)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    lines = answer.text.split("\n\n")
    assert lines.pop() == ""
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@pytest.fixture
def expected(client: openai.OpenAI) -> str:
    """The same text as OpenAI's API gives it."""
    return client.completions.create(model=TEXT, prompt=PROMPT, **SAMPLING).choices[0].text


@pytest.mark.parametrize("kind", ["generate", "versions/1/generate"])
def test_a_text_comes_whole(server: Server, expected: str, kind: str) -> None:
    answer = server.client.post(url(server, kind), json=BODY)
    assert answer.json() == {
        "model_name": TEXT,
        "model_version": "1",
        "id": "42",
        "text_output": expected,
    }


def test_a_text_comes_in_pieces(server: Server, expected: str) -> None:
    found = events(server, BODY)
    assert len(found) > 5
    assert "".join(event["text_output"] for event in found) == expected
    assert {(event["id"], event["model_name"]) for event in found} == {("42", TEXT)}


def test_a_stream_may_be_told_to_wait(server: Server, expected: str) -> None:
    (event,) = events(server, BODY | {"stream": False})
    assert event["text_output"] == expected


@pytest.mark.parametrize("kind", ["generate", "generate_stream"])
def test_what_is_wrong_is_said_before_anything_begins(server: Server, kind: str) -> None:
    wrong = server.client.post(url(server, kind), json=BODY | {"parameters": {"temperature": "x"}})
    assert wrong.status_code == 400
    assert "temperature" in wrong.json()["error"]
    missing = server.client.post(url(server, kind), json={})
    assert missing.status_code == 400
    assert "text_input" in missing.json()["error"]
    unknown = server.client.post(url(server, kind, "nobody"), json=BODY)
    assert unknown.status_code == 404
    assert server.client.get(url(server, kind)).status_code == 405


def test_a_client_that_leaves_ends_the_text(server: Server, idle: Callable[[], None]) -> None:
    sampling = {name: ENDLESS[name] for name in ("temperature", "max_tokens", "ignore_eos")}
    body = {"text_input": ENDLESS["prompt"], "parameters": sampling}
    with server.client.stream("POST", url(server, "generate_stream"), json=body) as answer:
        lines = answer.iter_lines()  # which ends the answer where it is dropped
        assert "text_output" in next(lines)
        until(lambda: server.metric("vllm:num_requests_running") == 1, "it does not run")
    idle()


def test_a_tensor_model_answers_too(server: Server) -> None:
    answer = server.client.post(url(server, "generate", FILES), json={"bytes": [0] * 2048})
    assert answer.status_code == 200
    assert len(answer.json()["target_label"]) == 214


def test_statistics_count_texts(server: Server) -> None:
    def counted() -> tuple[int, int, int]:
        (found,) = server.get(f"/v2/models/{TEXT}/stats").json()["model_stats"]
        success = found["inference_stats"]["success"]
        return found["inference_count"], success["count"], success["ns"]

    before = counted()
    server.client.post(url(server, "generate"), json=BODY)
    until(lambda: counted()[0] == before[0] + 1, "the text is not counted", 10)
    after = counted()
    assert after[1] == before[1] + 1
    assert after[2] > before[2]
