"""Two real vLLM servers of one model behind ds-serve: every path, adapters, a death, the end."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import real_vllm
from serving import Server, children, gone, until

from ds_serve.security import keys

pytestmark = real_vllm.MARKS
QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
ASKED: dict[str, Any] = {"model": "chat", "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def secrets() -> dict[str, tuple[str, str]]:
    return {name: keys.make() for name in ("team", "boss")}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home, model = tmp_path_factory.mktemp("adapters"), Path(real_vllm.MODEL)
    names = ("poet", "rover")
    return {name: real_vllm.adapter(home / name, model, at) for at, name in enumerate(names)}


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory,
    secrets: dict[str, tuple[str, str]],
    adapters: dict[str, Path],
) -> Iterator[Server]:
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    file.write_text(
        keys.entry("team", secrets["team"][1])
        + keys.entry("boss", secrets["boss"][1])
        + "admin = true\n"
    )
    chat = f"chat={real_vllm.MODEL}?replicas=2&max_seq_len=1024&lora=poet={adapters['poet']}"
    flags = ["--engine", "vllm", "--model", chat, "--api-keys", file, "--drain-timeout", "60"]
    flags += ["--dtype", "float32"]  # of 16 bits on a CPU SmolLM2 knows less
    with real_vllm.serving(*flags, "--", "--enforce-eager") as running:
        running.client.headers["authorization"] = f"Bearer {secrets['boss'][0]}"
        until(lambda: len(replicas(running)) == 2, "there are not two", 300, running.log)
        yield running


@pytest.fixture
def client(server: Server, secrets: dict[str, tuple[str, str]]) -> Iterator[openai.OpenAI]:
    key = secrets["team"][0]
    with openai.OpenAI(base_url=f"{server.http}/v1", api_key=key, max_retries=0) as made:
        yield made


def answered(server: Server) -> list[float]:
    """Requests, by the replica."""
    return [
        server.metric("vllm:request_success_total", model="chat", replica=str(number))
        for number in (0, 1)
    ]


def api_servers(server: Server) -> list[int]:
    """Process ids of vLLM's servers, each below a process of ours."""
    ours = [pid for pid in children(server.process.pid) if "ds_serve.vllm" in command(pid)]
    return [pid for guard in ours for pid in children(guard) if "vllm" in command(pid)]


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def replicas(server: Server) -> set[str]:
    """Those that tell their metrics, and so are ready."""
    found = re.findall(r'vllm:num_requests_running{.*replica="(\d)"', server.get("/metrics").text)
    return set(found)


def completion(client: openai.OpenAI, model: str = "chat", prompt: str = "Once upon") -> str:
    return client.completions.create(**ASKED | {"model": model}, prompt=prompt).choices[0].text


def test_chats_go_on_where_they_began_and_others_are_spread(
    server: Server, client: openai.OpenAI
) -> None:
    before = answered(server)
    for number in range(8):
        completion(client, prompt=f"Story {number} is about")
    assert all(now > then for now, then in zip(answered(server), before, strict=True))
    history, before = list(QUESTION), answered(server)
    for _ in range(3):
        answer = client.chat.completions.create(**ASKED, messages=history)
        history += [answer.choices[0].message.model_dump(include={"role", "content"}), *QUESTION]
    grown = [now - then for now, then in zip(answered(server), before, strict=True)]
    assert sorted(grown) == [0, 3]


def test_openai_s_client(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        **ASKED, messages=QUESTION, logprobs=True, top_logprobs=2
    )
    (choice,) = answer.choices
    assert "Paris" in (choice.message.content or "")
    tokens = (choice.logprobs and choice.logprobs.content) or []
    assert [len(token.top_logprobs) for token in tokens] == [2] * len(tokens)
    assert len(tokens) > 3
    said = client.responses.create(
        model="chat", input="What is the capital of France?", temperature=0, max_output_tokens=12
    )
    assert "Paris" in said.output_text
    events = client.responses.create(
        model="chat", input="Say yes.", max_output_tokens=8, stream=True
    )
    assert "response.completed" in [event.type for event in events]


def test_anthropic_s_client(server: Server, secrets: dict[str, tuple[str, str]]) -> None:
    with anthropic.Anthropic(base_url=server.http, api_key=secrets["team"][0]) as client:
        asked: dict[str, Any] = {"model": "chat", "messages": QUESTION, "max_tokens": 12}
        asked["extra_body"] = {"temperature": 0}
        message = client.messages.create(**asked)
        assert "Paris" in message.content[0].text  # type: ignore[union-attr]
        with client.messages.stream(**asked) as stream:
            assert "Paris" in "".join(stream.text_stream)
        assert client.messages.count_tokens(model="chat", messages=QUESTION).input_tokens > 5


def test_tokens_there_and_back(server: Server) -> None:
    text = "The cat sat on the mat."
    found = server.client.post(f"{server.http}/tokenize", json={"model": "chat", "prompt": text})
    ids = found.json()["tokens"]
    back = server.client.post(f"{server.http}/detokenize", json={"model": "chat", "tokens": ids})
    assert back.json()["prompt"] == text


def test_adapters_come_and_go_in_all_of_them(
    server: Server, client: openai.OpenAI, adapters: dict[str, Path]
) -> None:
    plain = completion(client)
    assert completion(client, "poet") != plain
    body = {"lora_name": "rover", "lora_path": str(adapters["rover"])}
    load, unload = (f"{server.http}/v1/{what}load_lora_adapter" for what in ("", "un"))
    with pytest.raises(openai.PermissionDeniedError, match="no administrator"):
        client.post("/load_lora_adapter", cast_to=object, body=body)
    done = server.client.post(load, json=body)
    assert done.status_code == 200, done.text
    assert [model.id for model in client.models.list()] == ["chat", "poet", "rover"]
    before = answered(server)
    for number in range(8):
        prompt = f"Once upon {number}"
        assert completion(client, "rover", prompt) != completion(client, prompt=prompt)
    assert all(now > then for now, then in zip(answered(server), before, strict=True))
    assert server.client.post(unload, json={"lora_name": "rover"}).status_code == 200
    with pytest.raises(openai.NotFoundError):
        completion(client, "rover")


def test_one_that_dies_is_left_and_comes_back(server: Server, client: openai.OpenAI) -> None:
    before = set(api_servers(server))
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    until(lambda: gone(victim), "it is still there")
    assert server.ready()
    for number in range(4):
        completion(client, prompt=f"Story {number} is about")
    until(lambda: len(replicas(server)) == 2, "the other is not back", 300, server.log)
    assert len(before & set(api_servers(server))) == 1


def test_the_end_waits_for_what_is_being_written(server: Server, client: openai.OpenAI) -> None:
    ended: list[str | None] = []
    asked = ASKED | {"max_tokens": 300, "extra_body": {"ignore_eos": True}}

    def ask() -> None:
        answer = client.completions.create(**asked, prompt="A long story:")
        ended.append(answer.choices[0].finish_reason)

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: server.metric("vllm:num_requests_running") > 0, "it does not run", 30)
    assert server.stop(90) == 0
    asking.join(10)
    assert ended == ["length"]
