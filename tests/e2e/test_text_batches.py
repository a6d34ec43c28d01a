"""/v1/files and /v1/batches, as OpenAI's client uses them, across restarts and crashes."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai_upstream import OpenAIUpstream
from serving import Server, until

from ds_serve.security import keys

CHAT = "/v1/chat/completions"


def lines(count: int, model: str = "m", **more: Any) -> bytes:
    each = []
    for n in range(count):
        body = {"model": model, "messages": [{"role": "user", "content": f"line {n}"}]}
        each.append({"custom_id": f"id-{n}", "method": "POST", "url": CHAT, "body": body} | more)
    return b"".join(json.dumps(one).encode() + b"\n" for one in each)


@pytest.fixture(scope="module")
def secrets() -> dict[str, tuple[str, str]]:
    return {name: keys.make() for name in ("team", "other")}


@pytest.fixture(scope="module")
def flags(
    upstream: OpenAIUpstream,
    secrets: dict[str, tuple[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> list[str]:
    folder: Path = tmp_path_factory.mktemp("batches")
    file = folder / "keys.toml"
    text = "\n".join(keys.entry(n, secrets[n][1]) + 'models = ["m"]' for n in secrets)
    file.write_text(text)
    given = ["--model", f"m={upstream.address}", "--files", str(folder / "files")]
    return [*given, "--api-keys", str(file), "--batch-requests", "2"]


@pytest.fixture(scope="module")
def server(flags: list[str]) -> Iterator[Server]:
    with Server(*flags) as running:
        yield running
        assert "Traceback" not in running.log(), running.log()


def asking(server: Server, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.http}/v1", api_key=key, max_retries=0)


@pytest.fixture(scope="module")
def client(server: Server, secrets: dict[str, tuple[str, str]]) -> Iterator[openai.OpenAI]:
    with asking(server, secrets["team"][0]) as made:
        yield made


def ended(client: openai.OpenAI, id: str, seconds: float = 30) -> Any:
    def over() -> bool:
        return client.batches.retrieve(id).status in ("completed", "failed", "cancelled")

    until(over, "the batch does not end", seconds, lambda: str(client.batches.retrieve(id)))
    return client.batches.retrieve(id)


def start(client: openai.OpenAI, data: bytes, **more: Any) -> Any:
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint=CHAT, completion_window="24h", **more
    )


def answers(client: openai.OpenAI, id: str | None) -> dict[str, Any]:
    assert id is not None
    text = client.files.content(id).text
    return {one["custom_id"]: one for one in map(json.loads, text.splitlines())}


def test_files_come_back_as_they_were(client: openai.OpenAI) -> None:
    data = bytes(range(256)) * 4000
    file = client.files.create(file=("x.bin", io.BytesIO(data)), purpose="user_data")
    assert (file.filename, file.bytes, file.purpose) == ("x.bin", len(data), "user_data")
    assert file.id.startswith("file-")
    assert client.files.content(file.id).read() == data
    assert client.files.retrieve(file.id) == file
    assert file.id in [one.id for one in client.files.list(purpose="user_data")]
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_a_batch_is_answered(client: openai.OpenAI, upstream: OpenAIUpstream) -> None:
    upstream.most = 0
    upstream.failures = [503, 400]  # the first comes again
    upstream.seconds = 0.02
    batch = start(client, lines(12), metadata={"who": "me"})
    assert (batch.object, batch.endpoint, batch.metadata) == ("batch", CHAT, {"who": "me"})
    batch = ended(client, batch.id)
    upstream.seconds = 0.0
    assert batch.status == "completed"
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (12, 11, 1)
    good, bad = answers(client, batch.output_file_id), answers(client, batch.error_file_id)
    assert len(good) == 11
    for name, answer in good.items():
        content = answer["response"]["body"]["choices"][0]["message"]["content"]
        assert content == name.replace("id-", "line ")
        assert answer["error"] is None
    (failed,) = bad.values()
    assert failed["response"]["status_code"] == 400
    assert upstream.most <= 2, "--batch-requests"
    assert client.files.retrieve(batch.output_file_id or "").purpose == "batch_output"
    assert batch.id in [one.id for one in client.batches.list(limit=1)]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"{}\n", "custom_id"),
        (b"nonsense\n", "line|malformed|JSON"),
        (b"", "no lines"),
        (lines(1) * 2, "line before"),
        (lines(1, url="/v1/embeddings"), "not POST"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(client: openai.OpenAI, data: bytes, says: str) -> None:
    batch = ended(client, start(client, data).id)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data
    message = batch.errors.data[0].message or ""
    assert any(part in message for part in says.split("|"))


def test_a_model_that_the_key_does_not_allow(client: openai.OpenAI) -> None:
    batch = ended(client, start(client, lines(1, "secret")).id)
    (line,) = answers(client, batch.error_file_id).values()
    assert line["response"] is None
    assert "secret" in line["error"]["message"]


def test_keys_see_their_own(
    server: Server, client: openai.OpenAI, secrets: dict[str, tuple[str, str]]
) -> None:
    batch = ended(client, start(client, lines(1)).id)
    with asking(server, secrets["other"][0]) as other:
        assert list(other.files.list()) == []
        assert list(other.batches.list()) == []
        for call in (other.batches.retrieve, other.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                call(batch.id)
        for again in (other.files.content, other.files.delete):
            with pytest.raises(openai.NotFoundError):
                again(batch.output_file_id or "")
        with pytest.raises(openai.NotFoundError):
            other.batches.create(
                input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h"
            )


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/files/..%2f..%2fetc", None),
        ("GET", "/v1/files?limit=0", None),
        ("POST", "/v1/files", {"not": "a form"}),
        ("POST", "/v1/batches", {"endpoint": CHAT}),
        ("POST", "/v1/batches", {"input_file_id": "file-1", "endpoint": "/v2"}),
        ("PUT", "/v1/files", {}),
    ],
)
def test_calls_that_are_wrong(
    server: Server, secrets: dict[str, tuple[str, str]], method: str, path: str, body: Any
) -> None:
    headers = {"authorization": f"Bearer {secrets['team'][0]}"}
    answer = server.client.request(method, server.http + path, json=body, headers=headers)
    assert 400 <= answer.status_code < 500, answer.text
    assert "message" in answer.json()["error"]


def test_a_batch_is_cancelled_and_keeps_its_answers(
    client: openai.OpenAI, upstream: OpenAIUpstream
) -> None:
    upstream.seconds = 0.1
    batch = start(client, lines(200))
    until(lambda: (client.batches.retrieve(batch.id).request_counts or batch).completed > 3, "none")
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    batch = ended(client, batch.id)
    upstream.seconds = 0.0
    assert batch.status == "cancelled"
    assert len(answers(client, batch.output_file_id)) == batch.request_counts.completed > 3


@pytest.mark.slow
def test_a_crash_repeats_no_line_that_was_answered(
    flags: list[str], upstream: OpenAIUpstream, secrets: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    own = [each.replace("/files", "/others") for each in flags]
    upstream.seconds = 0.1
    upstream.seen.clear()
    key = secrets["team"][0]
    with Server(*own) as first, asking(first, key) as client:
        id = start(client, lines(20)).id
        until(lambda: len(upstream.seen) > 6, "nothing is answered")
        first.kill()
    upstream.seconds = 0.0
    with Server(*own) as second, asking(second, key) as client:
        batch = ended(client, id)
        assert batch.request_counts.completed == 20
        assert len(answers(client, batch.output_file_id)) == 20
    asked = Counter(body["messages"][0]["content"] for body in upstream.bodies)
    assert len(asked) == 20
    assert sum(count - 1 for count in asked.values()) <= 2, "those that were under way"


def test_a_folder_has_one_server(server: Server, flags: list[str]) -> None:
    second = Server(*flags).start()
    try:
        assert second.process.wait(30) != 0
        assert "another server uses it" in second.log()
    finally:
        second.close()
