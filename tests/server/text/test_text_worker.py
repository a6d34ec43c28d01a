"""The real worker with the real model, through OpenAI's own client."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import defaultdict
from typing import Any

import openai
import pytest
from text_worker import MODEL, TextWorker

FRANCE: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
STORY: list[Any] = [{"role": "user", "content": "Tell me a long story about a dragon."}]
CITY = {
    "type": "object",
    "properties": {
        "country": {"enum": ["France", "Spain"]},
        "big": {"type": "boolean"},
    },
    "required": ["country", "big"],
    "additionalProperties": False,
}

pytestmark = pytest.mark.slow


def test_the_capital_of_france(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=FRANCE, temperature=0, max_tokens=30
    )
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == MODEL
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert 20 < answer.usage.prompt_tokens < 60


def test_a_stream_joins_to_the_whole_answer(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": STORY, "temperature": 0, "max_tokens": 40}
    whole = client.chat.completions.create(**asked)
    stream = client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({c.id for c in chunks}) == 1


def test_characters_of_several_tokens_arrive_whole(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Repeat exactly: 世界 🎉 你好 ñandú"}],
        temperature=0,
        max_tokens=40,
        stream=True,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"const": "世界 🎉 你好 ñandú"}},
        },
    )
    parts = [c.choices[0].delta.content or "" for c in stream if c.choices]
    assert json.loads("".join(parts)) == "世界 🎉 你好 ñandú"
    assert not any("\ufffd" in part for part in parts)


def test_a_json_schema_is_kept_to(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=FRANCE,
        temperature=0,
        max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}},
    )
    found = json.loads(answer.choices[0].message.content or "")
    assert found.keys() == {"country", "big"}
    assert found["country"] in {"France", "Spain"}
    assert isinstance(found["big"], bool)


def test_json_object_begins_an_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Describe Paris in JSON."}],
        temperature=0,
        max_tokens=20,
        response_format={"type": "json_object"},
    )
    assert (answer.choices[0].message.content or "").lstrip().startswith("{")


def test_a_schema_that_cannot_be_used_hurts_nobody_else(
    worker: TextWorker, client: openai.OpenAI
) -> None:
    """Such a schema, reaching the library, would spoil every request of the batch."""
    asked: dict[str, Any] = {"model": MODEL, "messages": STORY, "temperature": 0, "max_tokens": 60}
    alone = client.chat.completions.create(**asked).choices[0].message.content
    stream = client.chat.completions.create(**asked, stream=True)
    text = next(iter(stream)).choices[0].delta.content or ""
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no"}}}
    with pytest.raises(openai.BadRequestError, match='Unsupported type "no"') as caught:
        client.chat.completions.create(model=MODEL, messages=FRANCE, response_format=form)
    assert caught.value.param == "response_format"
    text += "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == alone
    assert worker.health() == 200


def test_a_stop_string_ends_the_answer_and_is_not_in_it(client: openai.OpenAI) -> None:
    def ask(**more: Any) -> Any:
        return client.chat.completions.create(
            model=MODEL, messages=FRANCE, temperature=0, max_tokens=30, **more
        ).choices[0]

    # "of Fra" spans tokens.
    cut = ask(stop=["of Fra", "never"])
    assert cut.message.content == "The capital "
    assert cut.finish_reason == "stop"
    streamed = client.chat.completions.create(
        model=MODEL, messages=FRANCE, temperature=0, max_tokens=30, stop="of Fra", stream=True
    )
    assert "".join(c.choices[0].delta.content or "" for c in streamed) == "The capital "


def test_n_choices_have_an_index_each(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": STORY,
        "n": 2,
        "max_tokens": 12,
        "temperature": 1,
        "seed": 5,
    }
    answer = client.chat.completions.create(**asked)
    assert [choice.index for choice in answer.choices] == [0, 1]
    first, second = (choice.message.content for choice in answer.choices)
    assert first != second
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24
    texts: dict[int, str] = defaultdict(str)
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert set(texts) == {0, 1}


def test_a_seed_repeats_a_sampled_answer(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str | None:
        return (
            client.chat.completions.create(
                model=MODEL, messages=STORY, max_tokens=12, temperature=1, seed=seed
            )
            .choices[0]
            .message.content
        )

    assert ask(11) == ask(11)
    assert len({ask(seed) for seed in (1, 2, 3)}) > 1


def test_logprobs_are_of_the_chosen_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=FRANCE, temperature=0, max_tokens=30, logprobs=True
    )
    choice = answer.choices[0]
    assert choice.logprobs is not None
    tokens = choice.logprobs.content or []
    assert "".join(token.token for token in tokens) == choice.message.content
    assert all(token.logprob <= 0 for token in tokens)
    assert bytes(tokens[0].bytes or []) == tokens[0].token.encode()
    assert tokens[0].top_logprobs == []


def test_completions_of_text_of_ids_and_of_lists(client: openai.OpenAI) -> None:
    plain = client.completions.create(
        model=MODEL, prompt="The capital of France is", temperature=0, max_tokens=4, logprobs=1
    )
    assert "Paris" in plain.choices[0].text
    logprobs = plain.choices[0].logprobs
    assert logprobs is not None
    assert "".join(logprobs.tokens or []) == plain.choices[0].text
    assert plain.choices[0].finish_reason == "length"
    several = client.completions.create(
        model=MODEL,
        prompt=["The capital of France is", "One, two, three,"],
        temperature=0,
        max_tokens=4,
    )
    assert [choice.index for choice in several.choices] == [0, 1]
    assert several.choices[0].text == plain.choices[0].text
    ids = client.completions.create(model=MODEL, prompt=[504, 3575, 282, 4649], max_tokens=2)
    assert ids.usage is not None
    assert ids.usage.prompt_tokens == 4


def test_penalties_change_the_answer(client: openai.OpenAI) -> None:
    def ask(**more: Any) -> Any:
        return client.completions.create(
            model=MODEL, prompt="ha ha ha ha ha ha", temperature=0, max_tokens=16, **more
        ).choices[0]

    penalised = ask(frequency_penalty=2.0, presence_penalty=2.0)
    assert ask().text != penalised.text


def test_a_prompt_beyond_the_context_is_refused_with_the_numbers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"8192 tokens.*prompt has 9001") as caught:
        client.completions.create(model=MODEL, prompt="hello" + " world" * 9000)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "prompt"
    with pytest.raises(openai.BadRequestError, match="max_tokens is 8192") as caught:
        client.completions.create(model=MODEL, prompt="hello", max_tokens=8192)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "max_tokens"


def test_the_model_list(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_an_unknown_model_is_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'nope'") as caught:
        client.completions.create(model="nope", prompt="x")
    assert caught.value.code == "model_not_found"


def test_a_refused_field_is_400_in_openais_shape(worker: TextWorker) -> None:
    answer = worker.http.post(
        "/v1/chat/completions", json={"model": MODEL, "messages": FRANCE, "logit_bias": {"1": 2}}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "logit_bias"
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}


def test_bodies_paths_and_methods_that_are_wrong(worker: TextWorker) -> None:
    post = worker.http.post
    assert post("/v1/completions", content=b'{"model":').status_code == 400
    assert post("/v1/completions", content=b"\xff\xfe").status_code == 400
    assert post("/v1/completions", content=b"x" * (17 << 20)).status_code == 413
    assert post("/v1/embeddings", json={}).status_code == 404
    wrong = worker.http.get("/v1/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


def test_the_request_id_is_taken_over_and_logged_without_the_prompt(worker: TextWorker) -> None:
    answer = worker.http.post(
        "/v1/completions",
        json={"model": MODEL, "prompt": "xylophones", "max_tokens": 1},
        headers={"X-Request-Id": "request-42"},
    )
    assert answer.headers["x-request-id"] == "request-42"
    lines = [line for line in worker.log.read_text().splitlines() if "request-42" in line]
    assert len(lines) == 1
    assert "completion_tokens=1" in lines[0]
    assert "xylophones" not in worker.log.read_text()


def test_a_deadline_is_504_and_frees_the_slot(worker: TextWorker) -> None:
    body = {"model": MODEL, "messages": STORY, "max_tokens": 4000, "ignore_eos": True}
    answer = worker.http.post(
        "/v1/chat/completions", json=body, headers={"X-Request-Timeout": "0.5"}
    )
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "deadline_exceeded"
    worker.wait_gauge("vllm:num_requests_running", lambda value: value == 0)
    streamed = worker.http.post(
        "/v1/chat/completions", json=body | {"stream": True}, headers={"X-Request-Timeout": "1.5"}
    )
    last = streamed.text.strip().splitlines()[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
    assert "[DONE]" not in streamed.text
    bad = worker.http.post("/v1/completions", json=body, headers={"X-Request-Timeout": "soon"})
    assert bad.status_code == 400


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(worker: TextWorker, stream: bool) -> None:
    body = {"model": MODEL, "messages": STORY, "max_tokens": 4000, "ignore_eos": True, "n": 3}
    request = json.dumps(body | {"stream": stream}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
    head += f"Content-Length: {len(request)}\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as leaver:
        leaver.connect(str(worker.uds))
        leaver.sendall(head.encode() + request)
        worker.wait_gauge("vllm:num_requests_running", lambda value: value == 3)
    # Left to itself the generation would take minutes.
    worker.wait_gauge("vllm:num_requests_running", lambda value: value == 0, seconds=5)
    assert worker.gauge("vllm:num_requests_waiting") == 0


def test_a_full_queue_is_429_with_retry_after(worker: TextWorker) -> None:
    asked = {"model": MODEL, "prompt": "x", "max_tokens": 2000, "ignore_eos": True, "n": 38}
    with worker.http.stream("POST", "/v1/completions", json=asked | {"stream": True}) as holder:
        lines = holder.iter_lines()  # dropping the iterator would close the stream
        next(lines)
        refused = worker.http.post("/v1/completions", json=asked | {"n": 3})
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
    worker.wait_gauge("vllm:num_requests_running", lambda value: value == 0)
    impossible = worker.http.post("/v1/completions", json=asked | {"n": 41})
    assert impossible.status_code == 400


def test_requests_share_the_batch(worker: TextWorker, client: openai.OpenAI) -> None:
    """Several at once run in the batch together, and each gets its own answer."""
    answers: dict[int, str] = {}
    peak = 0.0

    def ask(number: int) -> None:
        answers[number] = (
            client.completions.create(
                model=MODEL,
                prompt=f"{number}, {number + 1}, {number + 2},",
                temperature=0,
                max_tokens=30,
                extra_body={"ignore_eos": True},
            )
            .choices[0]
            .text
        )

    threads = [threading.Thread(target=ask, args=(10 * number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        peak = max(peak, worker.gauge("vllm:num_requests_running"))
        time.sleep(0.02)
    assert peak > 4
    for number, text in answers.items():
        assert str(number + 3) in text


def test_metrics_have_vllms_names(worker: TextWorker, client: openai.OpenAI) -> None:
    before = worker.gauge("vllm:generation_tokens_total")
    client.completions.create(
        model=MODEL, prompt="x", max_tokens=5, extra_body={"ignore_eos": True}
    )
    assert worker.gauge("vllm:generation_tokens_total") == before + 5
    assert worker.gauge("vllm:time_to_first_token_seconds_count") > 0
    assert worker.gauge("vllm:e2e_request_latency_seconds_count") > 0
    text = worker.http.get("/metrics").text
    labels = f'engine="0",model="{MODEL}",model_name="{MODEL}"'
    assert f"vllm:num_requests_waiting{{{labels}}}" in text
    assert 'vllm:cache_config_info{block_size="32",' in text
