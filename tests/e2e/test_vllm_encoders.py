"""Vectors, ranks and classes of a real vLLM behind ds-serve, beside those of the CPU's encoder."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import encoder_folders
import numpy as np
import openai
import pytest
import real_vllm
from serving import Server

from ds_serve.catalogue import fetch
from ds_serve.security import keys

pytestmark = real_vllm.MARKS
CASES = encoder_folders.cases()
TEXTS, PAIRS = CASES["bert"]["texts"], CASES["roberta"]["pairs"]
CLASSES = ["bad", "good", "neither"]
DOCUMENTS = ["the film was bad", "a dog ran", "the cat sat on the mat"]


@pytest.fixture(scope="module")
def key() -> tuple[str, str]:
    """With keys each body gets a salt, which every path has to take."""
    return keys.make()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, key: tuple[str, str]) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("models")
    file = home / "keys.toml"
    file.write_text(keys.entry("team", key[1]))
    folders = {
        "vectors": fetch("all-minilm-l6-v2").parent,
        "tone": real_vllm.encoder(home / "tone", CASES["bert"]),
        "cross": real_vllm.encoder(home / "cross", CASES["roberta"]),
    }
    engines = {"": "engine=vllm&dtype=float32", "-cpu": "engine=encoder"}
    flags = [f"--model={n}{e}={f}?{engines[e]}" for n, f in folders.items() for e in engines]
    with real_vllm.serving(*flags, "--api-keys", file, "--", "--enforce-eager") as running:
        running.client.headers["authorization"] = f"Bearer {key[0]}"
        yield running
        assert "Traceback" not in running.log(), running.log()


def post(server: Server, path: str, **body: Any) -> Any:
    answer = server.client.post(server.http + path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def decoded(vector: Any) -> Any:
    if isinstance(vector, str):
        return np.frombuffer(base64.b64decode(vector), dtype="<f4")
    return vector


def test_vectors_are_those_of_sentence_transformers(server: Server, key: tuple[str, str]) -> None:
    reference = encoder_folders.minilm()
    # The longest is cut at another place by each.
    sentences, expected = reference["sentences"][:4], np.array(reference["vectors"][:4])
    with openai.OpenAI(base_url=f"{server.http}/v1", api_key=key[0], max_retries=0) as client:
        for encoding in ("float", "base64"):
            found: Any = client.embeddings.create(
                model="vectors", input=sentences, encoding_format=encoding
            )
            vectors = np.array([decoded(each.embedding) for each in found.data])
            assert (vectors * expected).sum(1).min() > 0.9999
            assert found.usage.prompt_tokens > 20


def test_classes_are_those_of_the_cpu(server: Server) -> None:
    for path in ("/classify", "/v1/classify"):
        found = post(server, path, model="tone", input=TEXTS)["data"]
        expected = post(server, "/classify", model="tone-cpu", input=TEXTS)["data"]
        assert [each["label"] for each in found] == [each["label"] for each in expected]
        assert {each["label"] for each in found} <= set(CLASSES)
        np.testing.assert_allclose(
            [each["probs"] for each in found], [each["probs"] for each in expected], atol=1e-3
        )


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_scores_are_those_of_the_cpu(server: Server, path: str) -> None:
    left, right = map(list, zip(*PAIRS, strict=True))
    found, expected = (
        post(server, path, model=model, text_1=left, text_2=right)["data"]
        for model in ("cross", "cross-cpu")
    )
    np.testing.assert_allclose(
        [each["score"] for each in found], [each["score"] for each in expected], atol=1e-3
    )


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents_come_in_the_cpus_order(server: Server, path: str) -> None:
    found, expected = (
        post(server, path, model=model, query="the cat", documents=DOCUMENTS)["results"]
        for model in ("cross", "cross-cpu")
    )
    assert [each["index"] for each in found] == [each["index"] for each in expected]
    best = post(server, path, model="vectors", query="cat", documents=DOCUMENTS)["results"][0]
    assert best["document"]["text"] == "the cat sat on the mat"


def test_texts_are_tokenized(server: Server) -> None:
    body = {"prompt": "A man is eating food."}
    found, expected = (
        post(server, "/tokenize", model=model, **body)["tokens"]
        for model in ("vectors", "vectors-cpu")
    )
    assert found == expected


def test_without_the_key_nothing_is_answered(server: Server) -> None:
    body = {"model": "tone", "input": "the cat"}
    refused = server.client.post(
        f"{server.http}/classify", json=body, headers={"authorization": "Bearer no"}
    )
    assert refused.status_code == 401
    assert server.metric("vllm:request_success_total", model="tone") > 0
