"""Models on other servers: keys, retries, circuit breakers, stand-ins, several servers alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest
from openai_upstream import OpenAIUpstream
from serving import Server, until


class Servers(NamedTuple):
    small: OpenAIUpstream
    cloud: OpenAIUpstream
    twins: tuple[OpenAIUpstream, OpenAIUpstream]
    gone: Path
    server: Server

    def chat(self, model: str, text: str = "hi", **more: Any) -> Any:
        body = {"model": model, "messages": [{"role": "user", "content": text}]} | more
        headers = {"authorization": "Bearer client's", "x-other": "y"}
        url = f"{self.server.http}/v1/chat/completions"
        return self.server.client.post(url, json=body, headers=headers)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder: Path = tmp_path_factory.mktemp("up")
    (folder / "key").write_text("sk-cloud\n")
    one, two = OpenAIUpstream(folder / "one"), OpenAIUpstream(folder / "two")
    with OpenAIUpstream() as small, OpenAIUpstream() as cloud, one, two:
        flags = ["--model", f"small={small.address}#tiny", "--model", f"cloud={cloud.address}#big"]
        flags += ["--model", f"alone={cloud.address}#big", "--fallback", "small=cloud"]
        flags += ["--model", f"twins={one.address},{two.address}#m"]
        flags += ["--model", f"gone=unix:{folder / 'gone'}#m", "--upstream-probe", "0.2"]
        flags += ["--upstream-key", f"cloud={folder / 'key'}"]
        with Server(*flags) as server:
            yield Servers(small, cloud, (one, two), folder / "gone", server)
            assert "Traceback" not in server.log(), server.log()
            assert "sk-cloud" not in server.log()


def test_the_server_s_key_and_the_model_s_own_name(servers: Servers) -> None:
    answer = servers.chat("cloud")
    assert answer.headers["x-ds-serve-model"] == "cloud"
    method, path, headers, _ = servers.cloud.seen[-1]
    assert (method, path) == ("POST", "/v1/chat/completions")
    assert headers["authorization"] == "Bearer sk-cloud"
    assert "x-other" not in headers
    assert servers.cloud.bodies[-1]["model"] == "big"
    assert answer.json()["model"] == "big", "what the other server says is left as it is"
    servers.chat("small")
    assert "authorization" not in servers.small.seen[-1][2]


def test_openai_s_client_streams_through_it(servers: Servers) -> None:
    base = f"{servers.server.http}/v1"
    with openai.OpenAI(base_url=base, api_key="none", max_retries=0) as client:
        chat: Any = {"model": "cloud", "messages": [{"role": "user", "content": "x"}]}
        chunks = client.chat.completions.create(**chat, stream=True)
        assert [chunk.choices[0].delta.content for chunk in chunks] == ["one", "two", "three"]


@pytest.mark.parametrize("failures", [[503], [500, 0], [429]])
def test_it_is_asked_again_before_the_first_byte(servers: Servers, failures: list[int]) -> None:
    before = len(servers.cloud.seen)
    servers.cloud.failures = list(failures)
    assert servers.chat("alone").status_code == 200
    assert len(servers.cloud.seen) - before == len(failures) + 1


@pytest.mark.parametrize(("status", "retry"), [(400, ""), (429, "3600")])
def test_it_is_not_asked_again(servers: Servers, status: int, retry: str) -> None:
    before = len(servers.cloud.seen)
    servers.cloud.failures, servers.cloud.retry_after = [status], retry
    answer = servers.chat("alone")
    servers.cloud.retry_after = ""
    assert answer.status_code == status
    assert answer.headers.get("retry-after", "") == retry
    assert len(servers.cloud.seen) - before == 1


def test_a_stream_that_breaks_off_is_not_begun_again(servers: Servers) -> None:
    before = len(servers.cloud.seen)
    answer = servers.chat("alone", stream=True, user="break")
    assert "went away" in answer.text
    assert len(servers.cloud.seen) - before == 1


def test_a_key_that_is_refused_is_not_the_client_s(servers: Servers) -> None:
    servers.cloud.failures = [401]
    answer = servers.chat("alone")
    assert answer.status_code == 503
    assert "--upstream-key alone=FILE" in answer.json()["error"]["message"]


def test_a_deadline_holds_for_other_servers_too(servers: Servers) -> None:
    servers.cloud.seconds = 5.0
    url = f"{servers.server.http}/v1/completions"
    body = {"model": "cloud", "prompt": "x"}
    answer = servers.server.client.post(url, json=body, headers={"x-request-timeout": "0.2"})
    servers.cloud.seconds = 0.0
    assert answer.status_code == 504


@pytest.mark.parametrize("failures", [[429] * 3, [503] * 3, [0] * 9])
def test_the_stand_in_answers_where_the_model_does_not(
    servers: Servers, failures: list[int]
) -> None:
    before = len(servers.small.seen)
    servers.small.failures = list(failures)
    answer = servers.chat("small")
    assert answer.status_code == 200
    assert answer.headers["x-ds-serve-model"] == "cloud"
    assert servers.cloud.bodies[-1]["model"] == "big"
    # A connection that was idle may have been closed meanwhile: that is no try.
    assert 3 <= len(servers.small.seen) - before <= 6
    servers.small.failures = []
    assert servers.chat("small").headers["x-ds-serve-model"] == "small"


def test_what_is_wrong_with_the_request_is_no_failure(servers: Servers) -> None:
    servers.small.failures = [400]
    answer = servers.chat("small")
    assert (answer.status_code, answer.headers["x-ds-serve-model"]) == (400, "small")


def test_servers_alike_keep_to_their_prompts_and_stand_in_for_each_other(servers: Servers) -> None:
    one, two = servers.twins
    for text in map(str, range(8)):
        for _ in range(3):
            assert servers.chat("twins", text).status_code == 200
    for twin in (one, two):
        texts = [body["messages"][0]["content"] for body in twin.bodies]
        assert texts
        assert all(texts.count(text) == 3 for text in texts)
    texts = [body["messages"][0]["content"] for body in one.bodies]
    one.failures = [0]
    assert servers.chat("twins", texts[0]).status_code == 200


def test_a_server_that_is_not_there_is_found_out_without_a_request(servers: Servers) -> None:
    server = servers.server
    ready = f"{server.http}/v2/models/gone/ready"

    def breaker(state: int) -> bool:
        return bool(server.metric("ds_upstream_breaker", model="gone") == state)

    def asked() -> float:
        return float(server.metric("ds_upstream_answers_total", model="gone", code="200"))

    until(lambda: breaker(2), "nobody looked for it")
    assert server.client.get(ready).status_code == 503
    whole = server.client.get(f"{server.http}/health/ready")
    assert (whole.status_code, list(whole.json()["models"])) == (200, ["gone"])
    refused = servers.chat("gone")
    assert (refused.status_code, "left alone" in refused.text) == (503, True)
    assert 1 <= int(refused.headers["retry-after"]) <= 10
    assert asked() == 0
    with OpenAIUpstream(servers.gone) as back:
        until(lambda: breaker(0), "it is not found")
        assert server.client.get(ready).status_code == 200
        assert servers.chat("gone").status_code == 200
        assert len(back.seen) == 1, "looks are no requests of a client"
    until(lambda: breaker(2), "it is not missed")


def test_a_server_that_fails_again_and_again_is_left_alone(servers: Servers) -> None:
    server, cloud = servers.server, servers.cloud
    cloud.failures = [500] * 6
    assert [servers.chat("alone").status_code for _ in range(2)] == [500, 503]
    cloud.failures = []
    before = len(cloud.seen)
    refused = servers.chat("alone")
    assert refused.status_code == 503
    assert "left alone" in refused.json()["error"]["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 5
    assert len(cloud.seen) == before
    assert server.metric("ds_upstream_breaker", model="alone") == 2
    assert server.metric("ds_upstream_answers_total", model="alone", code="500") >= 5
    until(lambda: servers.chat("alone").status_code == 200, "it is not asked again", 15)
    assert server.metric("ds_upstream_breaker", model="alone") == 0
