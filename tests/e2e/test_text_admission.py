"""Text requests are let in by their tokens, fairly between keys, across two gateways."""

from __future__ import annotations

import concurrent.futures
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import tritonclient.grpc
from openai_upstream import OpenAIUpstream
from serving import Server, until

from ds_serve.security import keys

CAPACITY = 1000


def chat(tokens: int, text: str = "x", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "m", "messages": messages, "max_tokens": tokens} | more


@pytest.fixture(scope="module")
def secrets() -> dict[str, tuple[str, str]]:
    return {name: keys.make() for name in ("flood", "small", "late")}


@pytest.fixture(scope="module")
def server(
    upstream: OpenAIUpstream,
    secrets: dict[str, tuple[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    file: Path = tmp_path_factory.mktemp("keys") / "keys.toml"
    file.write_text("\n".join(keys.entry(n, secrets[n][1]) for n in secrets) + "priority = 5\n")
    flags = [
        "--open-metrics",
        "--max-tokens-in-flight",
        str(CAPACITY),
        "--max-text-queue",
        "8",
        "--gateways",
        "2",
    ]
    with Server("--model", f"m={upstream.address}", "--api-keys", file, *flags) as running:
        yield running
        assert "Traceback" not in running.log(), running.log()


@pytest.fixture
def ask(server: Server, secrets: dict[str, tuple[str, str]]) -> Any:
    def ask(who: str, body: dict[str, Any]) -> httpx2.Response:
        headers = {"authorization": f"Bearer {secrets[who][0]}"}
        # Those at one time have connections of their own, which reach either gateway.
        url = f"{server.http}/v1/chat/completions"
        return server.client.post(url, json=body, headers=headers)

    return ask


@pytest.fixture
def slow(upstream: OpenAIUpstream) -> Iterator[OpenAIUpstream]:
    upstream.seconds, upstream.most = 0.25, 0
    upstream.seen.clear()
    yield upstream
    upstream.seconds = 0.0


def test_no_more_tokens_are_in_flight_than_there_is_room_for(
    ask: Any, slow: OpenAIUpstream
) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask("small", chat(400)), range(8)))
    assert [answer.status_code for answer in answers] == [200] * 8
    assert slow.most == 2


def test_keys_take_turns_and_the_last_class_waits(
    ask: Any, slow: OpenAIUpstream, server: Server
) -> None:
    def waiting(count: int) -> None:
        until(lambda: server.metric("ds_text_waiting_requests") == count, "they do not wait", 20)

    slow.seconds, slow.paused = 0.0, True
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, "flood", chat(900, "flood")) for _ in range(4)]
        waiting(3)
        asked += [pool.submit(ask, "late", chat(900, "late")) for _ in range(2)]
        waiting(5)
        asked += [pool.submit(ask, "small", chat(900, "small")) for _ in range(2)]
        waiting(7)
        slow.paused = False
        assert {each.result().status_code for each in asked} == {200}
    order = [body["messages"][0]["content"] for body in slow.bodies]
    assert order[:2] == ["flood", "small"]
    assert order[:5].count("small") == 2
    assert order[-2:] == ["late", "late"]
    assert slow.most == 1


def test_a_full_queue_says_when_to_come_again(
    ask: Any, slow: OpenAIUpstream, server: Server
) -> None:
    slow.seconds = 0.05
    with concurrent.futures.ThreadPoolExecutor(28) as pool:
        answers = list(pool.map(lambda _: ask("flood", chat(900)), range(28)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert {answer.status_code for answer in answers} == {200, 429}
    assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in refused)
    assert "full" in refused[0].json()["error"]["message"]


def test_the_gateways_field_priority_is_not_passed_on(ask: Any, upstream: OpenAIUpstream) -> None:
    before = len(upstream.bodies)
    assert ask("small", chat(10, priority=3)).status_code == 200
    (body,) = upstream.bodies[before:]
    assert body == chat(10) | {"priority": 3}, "another server may know the field"


def test_grpc_texts_go_through_the_same_door(
    server: Server, slow: OpenAIUpstream, secrets: dict[str, tuple[str, str]]
) -> None:
    text = tritonclient.grpc.InferInput("text_input", [1], "BYTES")
    text.set_data_from_numpy(np.array([b"x"], np.object_))
    sampling = tritonclient.grpc.InferInput("sampling_parameters", [1], "BYTES")
    sampling.set_data_from_numpy(np.array([b'{"max_tokens": 900}'], np.object_))
    headers = {"authorization": f"Bearer {secrets['small'][0]}"}
    answers: queue.Queue[Any] = queue.Queue()

    def told(result: Any, error: Any) -> None:
        answers.put((result, error))

    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        calls = [client.async_infer("m", [text, sampling], told, headers=headers) for _ in range(3)]
        assert len(calls) == 3
        found = [answers.get(timeout=30) for _ in calls]
    assert [error for _, error in found if error is not None] == []
    assert {result.as_numpy("text_output").item() for result, _ in found} == {b"x"}
    assert slow.most == 1
