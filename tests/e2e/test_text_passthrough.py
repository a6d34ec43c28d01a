"""Everything that a text worker offers passes through, with the gateway's checks before it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai_upstream import OpenAIUpstream
from serving import Server

from ds_serve.security import keys

MODEL = "base"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def secrets() -> dict[str, tuple[str, str]]:
    return {name: keys.make() for name in ("team", "other", "boss")}


@pytest.fixture(scope="module")
def server(
    upstream: OpenAIUpstream,
    secrets: dict[str, tuple[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    limits = {"team": f'models = ["{MODEL}"]', "other": 'models = ["x*"]', "boss": "admin = true"}
    text = "\n".join(keys.entry(n, secrets[n][1]) + limits[n] for n in secrets)
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    file.write_text(text)
    with Server("--model", f"{MODEL}={upstream.address}", "--api-keys", file) as running:
        yield running
        assert "Traceback" not in running.log(), running.log()


@pytest.fixture
def ask(server: Server, secrets: dict[str, tuple[str, str]]) -> Any:
    def ask(method: str, path: str, who: str = "team", **named: Any) -> httpx2.Response:
        headers = named.pop("headers", {"authorization": f"Bearer {secrets[who][0]}"})
        return server.client.request(method, server.http + path, headers=headers, **named)

    return ask


PATHS = [
    *(f"/v1/{name}" for name in ("chat/completions", "completions", "responses", "embeddings")),
    *(f"/v1/{name}" for name in ("rerank", "score", "moderations", "some/new/path", "messages")),
    *("/tokenize", "/detokenize", "/score", "/rerank", "/v2/rerank", "/pooling", "/classify"),
    *("/invocations", "/v1/messages/count_tokens"),
]


@pytest.mark.parametrize("path", PATHS)
def test_every_path_reaches_the_worker_byte_by_byte(
    ask: Any, upstream: OpenAIUpstream, path: str
) -> None:
    body = b'{ "model":"base" ,"messages":[{"role":"user","content":"hi"}], "odd": 1.0e2}'
    answer = ask("POST", path + "?a=b%20c", content=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-ds-serve-model"] == MODEL
    method, asked, headers, received = upstream.seen[-1]
    assert (method, asked, received) == ("POST", path + "?a=b%20c", body)
    assert "authorization" not in {name.lower() for name in headers}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize", "/v1/messages", "/classify"])
def test_a_key_must_allow_the_model(ask: Any, path: str) -> None:
    assert ask("POST", path, "other", json=CHAT).status_code == 403
    assert ask("POST", path, json=CHAT, headers={}).status_code == 401


def test_a_form_goes_to_the_model_that_a_part_names(ask: Any, upstream: OpenAIUpstream) -> None:
    sound = bytes(range(256)) * 100
    files = {"file": ("a.wav", sound, "audio/wav")}
    answer = ask("POST", "/v1/audio/transcriptions", data={"model": MODEL}, files=files)
    assert answer.json()["text"] == "heard"
    assert sound in upstream.seen[-1][3]
    wrong = ask("POST", "/v1/audio/translations", data={"x": "1"}, files=files)
    assert wrong.status_code == 400
    assert "'model'" in wrong.json()["error"]["message"]


def test_openai_s_client_streams_and_transcribes(
    server: Server, secrets: dict[str, tuple[str, str]]
) -> None:
    key = secrets["team"][0]
    with openai.OpenAI(base_url=f"{server.http}/v1", api_key=key, max_retries=0) as client:
        chunks = client.chat.completions.create(**CHAT, stream=True)
        assert [chunk.choices[0].delta.content for chunk in chunks] == ["one", "two", "three"]
        with pytest.raises(openai.APIError, match="went away"):
            list(client.chat.completions.create(**CHAT, stream=True, user="break"))
        heard = client.audio.transcriptions.create(model=MODEL, file=("a.wav", b"RIFF"))
        assert heard.text == "heard"


def test_what_a_model_has_made_is_found_by_its_id(ask: Any) -> None:
    assert ask("GET", "/v1/responses/resp_1").json() == {"id": "resp_1"}
    assert ask("DELETE", "/v1/responses/resp_1").status_code == 200
    assert ask("POST", "/v1/responses/resp_1/cancel").status_code == 200
    assert ask("GET", "/v1/responses/resp_9").status_code == 404
    assert ask("GET", "/v1/responses/resp_1", "other").status_code == 404


def test_anthropic_s_key_and_errors(ask: Any, secrets: dict[str, tuple[str, str]]) -> None:
    headers = {"x-api-key": secrets["team"][0], "anthropic-version": "2023-06-01"}
    assert ask("POST", "/v1/messages", json=CHAT, headers=headers).status_code == 200
    refused = ask("POST", "/v1/messages", json=CHAT | {"model": "none"}, headers=headers)
    assert refused.status_code == 403
    assert refused.json()["type"] == "error"
    assert refused.json()["error"]["type"] == "permission_error"
    strange = ask("POST", "/v1/messages", json=CHAT, headers={"x-api-key": "x"})
    assert strange.json()["error"]["type"] == "authentication_error"
    other = ask("POST", "/v1/chat/completions", json=CHAT, headers=headers)
    assert other.status_code == 401, "only Anthropic's paths know the header"


def test_a_worker_s_error_at_anthropic_s_path_has_its_shape(
    ask: Any, upstream: OpenAIUpstream
) -> None:
    upstream.failures = [404]
    answer = ask("POST", "/v1/messages", json=CHAT)
    assert answer.status_code == 404
    assert answer.json() == {
        "type": "error",
        "error": {"type": "not_found_error", "message": "failed with 404"},
    }


def test_adapters_are_an_administrator_s_and_have_names(ask: Any) -> None:
    adapter = {"lora_name": "pirate", "lora_path": "/x"}
    assert ask("POST", "/v1/load_lora_adapter", json=adapter).status_code == 403
    assert ask("POST", "/v1/chat/completions", json=CHAT | {"model": "pirate"}).status_code == 403
    assert ask("POST", "/v1/load_lora_adapter", "boss", json=adapter).text == "done"
    answer = ask("POST", "/v1/chat/completions", json=CHAT | {"model": "pirate"})
    assert answer.json()["model"] == "pirate"
    assert answer.headers["x-ds-serve-model"] == MODEL
    listed = ask("GET", "/v1/models").json()["data"]
    assert [(card["id"], card.get("parent")) for card in listed] == [
        (MODEL, None),
        ("pirate", MODEL),
    ]
    assert listed[0]["max_model_len"] == 4096
    assert ask("GET", "/v1/models/pirate", "boss").json()["id"] == "pirate"
    assert ask("GET", "/v1/models", "other").json()["data"] == []
    assert ask("POST", "/v1/unload_lora_adapter", "boss", json=adapter).status_code == 200
    gone = ask("POST", "/v1/chat/completions", "boss", json=CHAT | {"model": "pirate"})
    assert gone.status_code == 404


def test_a_form_that_is_too_large_is_refused_before_it_is_read(
    server: Server, secrets: dict[str, tuple[str, str]]
) -> None:
    head = (
        "POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\ncontent-length: 300000000\r\n"
        "content-type: multipart/form-data; boundary=b\r\n"
        f"authorization: Bearer {secrets['team'][0]}\r\n\r\n"
    )
    host, port = server.http_address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_realtime_is_refused_by_name(ask: Any, secrets: dict[str, tuple[str, str]]) -> None:
    key = {"authorization": f"Bearer {secrets['team'][0]}"}
    upgrade = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    headers = key | upgrade | {"sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="}
    answer = ask("GET", "/v1/realtime?model=base", headers=headers)
    assert answer.status_code == 501
    assert "websockets" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches"])
def test_without_a_folder_for_them_there_are_no_files(ask: Any, path: str) -> None:
    answer = ask("GET", path)
    assert answer.status_code == 501
    assert "--files" in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"model": 3}', b'{"model": "base"', b"\xff"])
def test_a_body_that_names_no_model(ask: Any, body: bytes) -> None:
    answer = ask("POST", "/v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert json.loads(answer.content)["error"]["type"] == "invalid_request_error"
