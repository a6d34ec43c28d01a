"""A real vLLM that fetches its model from a server which speaks the hub's language."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import model_origins
import pytest
import real_vllm
from model_origins import Answer, Asked

pytestmark = real_vllm.MARKS
NAME = "org/tiny"


class Hub(model_origins.Hub):
    """With what transformers and vLLM ask of it besides."""

    def answer(self, asked: Asked, query: dict[str, list[str]], host: str) -> Answer:
        at_main = asked._replace(path=asked.path.replace("/resolve/main/", self._resolved))
        if asked.path.startswith(f"/api/models/{NAME}/tree/"):
            return Answer(
                200, json.dumps(self._tree()).encode(), {"Content-Type": "application/json"}
            )
        if asked.path == f"/api/models/{NAME}":
            at_main = asked._replace(path=f"/api/models/{NAME}/revision/main")
        found = super().answer(at_main, query, host)
        name = at_main.path.removeprefix(f"/{NAME}{self._resolved}")
        if found.status == 404 and name != at_main.path:
            missing = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.COMMIT}
            return Answer(404, b"", missing)
        if found.status == 302:
            data = self.contents[name]
            linked = {"X-Linked-Etag": f'"{model_origins.sha256(data)}"'}
            linked |= {"X-Linked-Size": str(len(data)), "X-Repo-Commit": self.COMMIT}
            return found._replace(headers={**found.headers, **linked})
        return found

    @property
    def _resolved(self) -> str:
        return f"/resolve/{self.COMMIT}/"

    def _tree(self) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
            for name, data in self.contents.items()
        ]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = {file.name: file.read_bytes() for file in Path(real_vllm.MODEL).iterdir()}
    with Hub(files, {name for name in files if name.endswith(".safetensors")}) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
        yield running


def test_an_id_of_the_hub_is_fetched_and_told_of(hub: Hub) -> None:
    flags = [
        "--engine",
        "vllm",
        "--max-seq-len",
        "256",
        "--dtype",
        "float32",
        "--",
        "--enforce-eager",
    ]
    with real_vllm.serving("--model", NAME, *flags) as server:
        body = {"model": "tiny", "prompt": "The capital of France is", "max_tokens": 4}
        answer = server.client.post(f"{server.http}/v1/completions", json=body | {"temperature": 0})
        assert "Paris" in answer.json()["choices"][0]["text"]
        assert re.search(r"model tiny: downloading, [\d.]+ GB so far", server.log())
    assert any(asked.path.endswith("model.safetensors") for asked in hub.seen)


def test_one_that_the_hub_does_not_have(hub: Hub) -> None:
    server = real_vllm.Server("--model", "org/other", "--engine", "vllm")
    try:
        assert server.start().process.wait(real_vllm.START_SECONDS) == 1
        assert "the model hub has no model org/other" in server.log()
    finally:
        server.close()
