"""Forms of answers by vLLM's names, prompts echoed, and tokenizing, by the real worker."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import openai
import pytest
from text_worker import MODEL, TextWorker

ASKED: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
    "max_tokens": 40,
}
PROMPT = "The capital of France is"

pytestmark = pytest.mark.slow


@pytest.fixture
def said(client: openai.OpenAI) -> Callable[..., str]:
    def ask(**fields: Any) -> str:
        answer = client.chat.completions.create(**ASKED, extra_body=fields)
        return answer.choices[0].message.content or ""

    return ask


def test_forms_are_kept_to(said: Callable[..., str]) -> None:
    assert re.fullmatch(r"[A-Z]{3}-\d{4}", said(structured_outputs={"regex": r"[A-Z]{3}-\d{4}"}))
    assert said(structured_outputs={"choice": ["décédé", "Rome"]}) in {"décédé", "Rome"}
    assert said(guided_choice=["only"]) == "only"
    grammar = 'root ::= "yes, " place\nplace ::= "Paris" | "Rome"'
    assert said(structured_outputs={"grammar": grammar}) in {"yes, Paris", "yes, Rome"}
    found = said(
        structured_outputs={
            "json": {"type": "array", "items": {"enum": [7]}, "minItems": 2, "maxItems": 2}
        }
    )
    assert json.loads(found) == [7, 7]


def test_forms_that_cannot_be_are_named(client: openai.OpenAI) -> None:
    def refused(fields: dict[str, Any]) -> openai.BadRequestError:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**ASKED, extra_body=fields)
        return caught.value

    wrong: list[tuple[dict[str, Any], str]] = [
        ({"regex": "("}, "the regular expression cannot be used"),
        ({"regex": "(a{1000}){1000}"}, "counted repeats"),
        ({"grammar": 'root ::= "a'}, "the grammar cannot be used"),
        ({"grammar": "nothing"}, "the grammar cannot be used"),
        ({"choice": []}, "choice has 0 strings"),
        ({"json": "{"}, "not JSON"),
    ]
    for form, says in wrong:
        error = refused({"structured_outputs": form})
        assert says in str(error)
        assert error.param == "structured_outputs"
    assert refused({"guided_regex": "["}).param == "guided_regex"


def test_a_prompt_is_echoed(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "temperature": 0, "max_tokens": 4}
    plain = client.completions.create(**asked)
    echoed = client.completions.create(**asked, echo=True)
    assert echoed.choices[0].text == PROMPT + plain.choices[0].text
    assert echoed.usage == plain.usage
    chunks = client.completions.create(**asked, echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == echoed.choices[0].text
    nothing = client.completions.create(**asked | {"max_tokens": 0}, echo=True)
    assert nothing.choices[0].text == PROMPT
    assert nothing.usage is not None
    assert nothing.usage.completion_tokens == 0


def test_echo_with_logprobs_needs_prompts_computed(
    client: openai.OpenAI, start: Callable[..., TextWorker]
) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": PROMPT * 9, "temperature": 0, "logprobs": 1}
    with pytest.raises(openai.BadRequestError, match="--prefix-caching=false") as caught:
        client.completions.create(**asked, echo=True)
    assert caught.value.param == "echo"
    with pytest.raises(openai.BadRequestError, match="cache_salt"):
        client.completions.create(**asked, extra_body={"cache_salt": "a"})
    other = start("--prefix-caching=false", "--cache-size-mb", "64", "--max-seq-len", "100")
    other.wait_ready()
    one, two = (
        other.openai().completions.create(
            **asked, max_tokens=3, echo=True, extra_body={"cache_salt": "a"}
        )
        for _ in range(2)
    )
    logprobs = two.choices[0].logprobs
    assert logprobs is not None
    assert logprobs == one.choices[0].logprobs
    assert "".join(logprobs.tokens or []) == two.choices[0].text
    assert two.usage is not None
    values = logprobs.token_logprobs or []
    assert len(values) == two.usage.total_tokens
    assert values[0] is None
    assert all(value <= 0 for value in values[1:])
    assert logprobs.text_offset is not None
    assert logprobs.text_offset[:2] == [0, 3]
    with pytest.raises(openai.BadRequestError, match=r"100 tokens.*has 200"):
        other.openai().completions.create(model=MODEL, prompt=[500] * 200)


def test_tokens_there_and_back(worker: TextWorker) -> None:
    post = worker.http.post
    for root in ("", "/v1"):
        found = post(
            f"{root}/tokenize", json={"model": MODEL, "prompt": "naïve", "return_token_strs": True}
        ).json()
        assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
        assert found["max_model_len"] > 1000
        back = post(f"{root}/detokenize", json={"tokens": found["tokens"]})
        assert back.json() == {"prompt": "naïve"}
    chat = post("/tokenize", json={"model": MODEL, "messages": ASKED["messages"]}).json()
    text = post("/detokenize", json={"tokens": chat["tokens"]}).json()["prompt"]
    assert text.endswith(
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": ASKED["messages"]}, "prompt"),
        ("/detokenize", {"tokens": [10**6]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
    ]
    for path, body, param in wrong:
        answer = post(path, json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param
    assert post("/tokenize", json={"model": "nope", "prompt": "a"}).status_code == 404


def test_stop_tokens_and_fields_that_clients_send(
    worker: TextWorker, client: openai.OpenAI
) -> None:
    found = worker.http.post("/tokenize", json={"prompt": " France"}).json()["tokens"]
    cut = client.chat.completions.create(
        **ASKED,
        user="u",
        metadata={"a": "b"},
        store=False,
        extra_body={"stop_token_ids": found, "priority": 5, "skip_special_tokens": True},
    )
    assert cut.choices[0].finish_reason == "stop"
    assert cut.choices[0].message.content == "The capital of"
