"""What a server that is told to stop does with the texts it is writing."""

from __future__ import annotations

import concurrent.futures
import json
import signal
from typing import Any

import httpx2
import openai
import pytest
from serving import Server, gone, until
from texts import ENDLESS, STORY, TEXT

from ds_client import Client, ClientError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def begin(server: Server, pool: concurrent.futures.Executor, tokens: int) -> Any:
    """Four texts of so many tokens: a stream, a whole answer, a gRPC stream, OpenAI's client."""
    sampling: dict[str, Any] = {"max_tokens": tokens, "ignore_eos": True, "temperature": 0}

    def stream() -> list[str]:
        body = ENDLESS | {"max_tokens": tokens, "stream": True}
        url = f"{server.http}/v1/completions"
        with httpx2.stream("POST", url, json=body, timeout=120) as answer:
            return [line for line in answer.iter_lines() if line]

    def whole() -> httpx2.Response:
        body = ENDLESS | {"max_tokens": tokens}
        return httpx2.post(f"{server.http}/v1/completions", json=body, timeout=120)

    def grpc() -> list[str] | ClientError:
        with Client(server.grpc) as client:
            try:
                return list(client.generate(TEXT, "Once upon a time", **sampling))
            except ClientError as error:
                return error

    def chat() -> list[Any] | openai.APIError:
        base = f"{server.http}/v1"
        with openai.OpenAI(base_url=base, api_key="none", max_retries=0) as client:
            try:
                return list(
                    client.chat.completions.create(
                        model=TEXT, messages=STORY, max_tokens=tokens, temperature=0,
                        stream=True, extra_body={"ignore_eos": True},
                    )
                )  # fmt: skip
            except openai.APIError as error:
                return error

    begun = [pool.submit(each) for each in (stream, whole, grpc, chat)]
    first_tokens = "vllm:time_to_first_token_seconds_count"
    until(lambda: server.metric(first_tokens) == 4, "not all are being written")
    return begun


def test_what_is_being_written_is_finished(gguf: Any) -> None:
    with Server("--model", TEXT) as server, concurrent.futures.ThreadPoolExecutor(4) as pool:
        begun = begin(server, pool, 100)
        family = [*server.gateways(), server.worker(TEXT), server.engine_loop(TEXT)]
        server.process.send_signal(signal.SIGTERM)
        stream, whole, grpc, chat = (future.result(60) for future in begun)
        assert server.process.wait(30) == 0
        log = server.log()
    assert stream[-1] == "data: [DONE]"
    assert json.loads(stream[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert whole.status_code == 200
    assert whole.json()["usage"]["completion_tokens"] == 100
    assert isinstance(grpc, list)
    assert len(grpc) > 50
    assert chat[-1].choices[0].finish_reason == "length"
    assert all(gone(pid) for pid in family)
    assert "Traceback" not in log


@pytest.mark.parametrize("grpc_server", ["native", "grpcio"])
def test_what_is_not_finished_in_time_fails_clearly(gguf: Any, grpc_server: str) -> None:
    flags = ["--drain-timeout", "1", "--grpc-server", grpc_server]
    with (
        Server("--model", TEXT, *flags) as server,
        concurrent.futures.ThreadPoolExecutor(4) as pool,
    ):
        begun = begin(server, pool, 7000)
        family = [*server.gateways(), server.worker(TEXT), server.engine_loop(TEXT)]
        server.process.send_signal(signal.SIGTERM)
        stream, whole, grpc, chat = (future.result(60) for future in begun)
        assert server.process.wait(30) == 0
        log = server.log()
    assert "data: [DONE]" not in stream
    assert len(stream) > 1
    error = json.loads(stream[-1].removeprefix("data: "))["error"]
    assert "shut" in error["message"]
    assert whole.status_code == 503
    assert "shut" in whole.json()["error"]["message"]
    assert isinstance(grpc, ClientError)
    assert "shut" in str(grpc)
    assert isinstance(chat, openai.APIError)
    assert "shut" in str(chat)
    assert all(gone(pid) for pid in family)
    assert "Traceback" not in log
