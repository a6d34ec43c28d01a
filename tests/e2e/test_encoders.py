"""Embeddings, ranks, scores and classes through the gateway, by clients that others wrote."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from typing import Any

import encoder_folders
import httpx2
import numpy as np
import openai
import pytest
import tritonclient.grpc
import tritonclient.http
from serving import Server
from tritonclient.utils import InferenceServerException

CASES = encoder_folders.cases()
MINILM = "all-minilm-l6-v2"
TONE = CASES["bert"]
"""A classifier of three labels."""
CROSS = CASES["roberta"]
"""A cross-encoder."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("encoders")
    tone = encoder_folders.write(folder / "tone", TONE)
    cross = encoder_folders.write(folder / "cross", CROSS, {"is_matryoshka": True})
    cut = encoder_folders.write(folder / "cut", CASES["mpnet"], {"matryoshka_dimensions": [4, 8]})
    models = [f"--model={each}" for each in (MINILM, tone, cross, cut)]
    with Server(*models) as running:
        yield running
        assert running.stop() == 0
        assert "Traceback" not in running.log(), running.log()
        assert "eating food" not in running.log(), "inputs are nobody's business"


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.http}/v1", api_key="none", max_retries=0) as made:
        yield made


def post(server: Server, path: str, **body: Any) -> Any:
    answer = server.client.post(server.http + path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(server: Server, path: str, **body: Any) -> dict[str, Any]:
    answer = server.client.post(server.http + path, json=body)
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


def test_embeddings_are_those_of_sentence_transformers(client: openai.OpenAI) -> None:
    reference = encoder_folders.minilm()
    for encoding in ("float", "base64"):
        found = client.embeddings.create(
            model=MINILM, input=reference["sentences"], encoding_format=encoding
        )
        vectors = np.array([decoded(each.embedding) for each in found.data])
        expected = np.array(reference["vectors"])
        cosines = (vectors * expected).sum(1) / np.linalg.norm(expected, axis=1)
        assert cosines.min() > 0.99999
        assert [each.index for each in found.data] == [0, 1, 2, 3, 4]
        assert found.usage.prompt_tokens == found.usage.total_tokens == 197


def decoded(vector: Any) -> Any:
    if isinstance(vector, str):
        return np.frombuffer(base64.b64decode(vector), dtype="<f4")
    return vector


def test_inputs_may_be_token_ids(client: openai.OpenAI, server: Server) -> None:
    text = "A man is eating food."
    tokens = post(server, "/tokenize", model=MINILM, prompt=text, return_token_strs=True)
    assert tokens["token_strs"][:3] == ["[CLS]", "a", "man"]
    assert (tokens["count"], tokens["max_model_len"]) == (8, 256)
    back = post(server, "/detokenize", model=MINILM, tokens=tokens["tokens"][1:-1])
    assert back["prompt"] == "a man is eating food."
    said = client.embeddings.create(model=MINILM, input=text).data[0].embedding
    for ids in (tokens["tokens"], [tokens["tokens"]]):
        found = client.embeddings.create(model=MINILM, input=ids).data[0].embedding
        np.testing.assert_allclose(found, said, atol=1e-6)


def test_long_inputs_are_refused_or_cut(server: Server) -> None:
    long = "word " * 300
    error = refused(server, "/v1/embeddings", model=MINILM, input=["short", long])
    assert "input[1] has 302 tokens, and the model takes 256" in error["message"]
    assert error["code"] == "context_length_exceeded"
    for more in ({"truncate_prompt_tokens": -1}, {"truncation": True}):
        found = post(server, "/v1/embeddings", model=MINILM, input=long, **more)
        assert found["usage"]["prompt_tokens"] == 256
    found = post(server, "/v1/embeddings", model=MINILM, input=long, truncate_prompt_tokens=10)
    assert found["usage"]["prompt_tokens"] == 10
    error = refused(server, "/v1/embeddings", model=MINILM, input="a", truncate_prompt_tokens=999)
    assert "it must be 1 to 256" in error["message"]


def test_vectors_are_cut_where_the_model_was_trained_for_it(client: openai.OpenAI) -> None:
    whole = client.embeddings.create(model="cut", input="the cat").data[0].embedding
    short = client.embeddings.create(model="cut", input="the cat", dimensions=4).data[0].embedding
    np.testing.assert_allclose(short, np.array(whole[:4]) / np.linalg.norm(whole[:4]), atol=1e-5)
    with pytest.raises(openai.BadRequestError, match="dimensions is 5; vectors have 16, or 4, 8"):
        client.embeddings.create(model="cut", input="the cat", dimensions=5)
    with pytest.raises(openai.BadRequestError, match="vectors have 384, and config"):
        client.embeddings.create(model=MINILM, input="the cat", dimensions=5)


@pytest.mark.parametrize("path", ["/v1/classify", "/classify"])
def test_classes_are_those_of_transformers(server: Server, path: str) -> None:
    found = post(server, path, model="tone", input=TONE["texts"])
    logits = np.array(TONE["of_texts"])
    powers = np.exp(logits - logits.max(1, keepdims=True))
    expected = powers / powers.sum(1, keepdims=True)
    np.testing.assert_allclose([each["probs"] for each in found["data"]], expected, atol=1e-4)
    labels = [["bad", "good", "neither"][at] for at in logits.argmax(1)]
    assert [each["label"] for each in found["data"]] == labels
    assert {each["num_classes"] for each in found["data"]} == {3}
    plain = post(server, path, model="tone", input=TONE["texts"][0], use_activation=False)
    np.testing.assert_allclose(plain["data"][0]["probs"], logits[0], atol=1e-3)


@pytest.mark.parametrize("path", ["/v1/score", "/score"])
def test_a_cross_encoder_scores_pairs(server: Server, path: str) -> None:
    left, right = zip(*CROSS["pairs"], strict=True)
    found = post(server, path, model="cross", text_1=left, text_2=right)
    expected = 1 / (1 + np.exp(-np.array(CROSS["of_pairs"])[:, 0]))
    np.testing.assert_allclose([each["score"] for each in found["data"]], expected, atol=1e-4)
    error = refused(server, path, model="cross", text_1=["a", "b"], text_2=["a", "b", "c"])
    assert "text_1 has 2 texts and text_2 3" in error["message"]


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank"])
def test_documents_come_by_their_score(server: Server, path: str) -> None:
    documents = ["the film was bad", "a dog ran", {"text": "the cat"}]
    scores = post(
        server, "/score", model="cross", text_1="the cat", text_2=["the film was bad", "a dog ran",
        "the cat"],
    )["data"]  # fmt: skip
    best = sorted(range(3), key=lambda at: -scores[at]["score"])
    found = post(server, path, model="cross", query="the cat", documents=documents, top_n=2)
    assert [each["index"] for each in found["results"]] == best[:2]
    for each in found["results"]:
        assert each["relevance_score"] == pytest.approx(scores[each["index"]]["score"], abs=1e-5)
        assert each["document"]["text"] in ("the film was bad", "a dog ran", "the cat")


def test_vectors_rank_by_their_cosine(server: Server) -> None:
    documents = ["Trains leave hourly.", "A meal of pasta is ready.", "Stocks fell."]
    found = post(server, "/v1/rerank", model=MINILM, query="dinner", documents=documents)
    assert found["results"][0]["index"] == 1
    vectors = post(server, "/v1/embeddings", model=MINILM, input=["dinner", *documents])["data"]
    query, *others = [np.array(each["embedding"]) for each in vectors]
    for each in found["results"]:
        assert each["relevance_score"] == pytest.approx(query @ others[each["index"]], abs=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v1/embeddings", {"model": "tone", "input": "a"}, "'tone' gives classes, not vectors"),
        ("/v1/classify", {"model": MINILM, "input": "a"}, "gives vectors, not classes"),
        ("/v1/score", {"model": "tone", "text_1": "a", "text_2": "b"}, "3 classes"),
        ("/v1/embeddings", {"model": MINILM, "input": []}, "input holds nothing"),
        ("/v1/embeddings", {"model": MINILM, "input": [[5, 99999]]}, "ids are 0 to 30521"),
        ("/v1/embeddings", {"model": MINILM, "input": "a", "colour": 1}, "colour is not a field"),
        ("/v1/rerank", {"model": MINILM, "query": "a", "documents": []}, "documents is empty"),
    ],
)
def test_what_is_wrong_is_named(server: Server, path: str, body: dict[str, Any], said: str) -> None:
    assert said in refused(server, path, **body)["message"]


async def test_many_clients_at_once_each_get_their_own(server: Server) -> None:
    sentences = [
        f"Sentence {number} is about {'very ' * (number % 40)}much." for number in range(48)
    ]
    base = f"{server.http}/v1"
    async with openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0) as client:
        found = await asyncio.gather(
            *(client.embeddings.create(model=MINILM, input=each) for each in sentences)
        )
        together = await client.embeddings.create(model=MINILM, input=sentences)
    for one, other in zip(found, together.data, strict=True):
        np.testing.assert_allclose(one.data[0].embedding, other.embedding, atol=1e-5)


@pytest.mark.parametrize("kind", [tritonclient.http, tritonclient.grpc])
def test_vectors_and_classes_over_kserve(server: Server, client: openai.OpenAI, kind: Any) -> None:
    address = server.grpc if kind is tritonclient.grpc else server.http_address
    texts = ["A man is eating food.", "Stocks fell."]
    said = client.embeddings.create(model=MINILM, input=texts).data
    with kind.InferenceServerClient(address) as triton:
        assert triton.is_model_ready(MINILM)
        found = triton.infer(MINILM, [tensor(kind, texts)], request_id="7")
        vectors = found.as_numpy("embedding")
        assert (vectors.dtype, vectors.shape) == (np.float32, (2, 384))
        np.testing.assert_allclose(vectors, [each.embedding for each in said], atol=1e-6)
        tone = triton.infer("tone", [tensor(kind, TONE["texts"])])
        best = np.array(TONE["of_texts"]).argmax(1)
        assert (tone.as_numpy("probabilities").argmax(1) == best).all()
        labels = [["bad", "good", "neither"][at].encode() for at in best]
        assert tone.as_numpy("label").tolist() == labels
        wanted = [kind.InferRequestedOutput("probabilities", class_count=1)]
        ranked = triton.infer("tone", [tensor(kind, TONE["texts"][:1])], outputs=wanted)
        assert ranked.as_numpy("probabilities").item().endswith(b":" + labels[0])
        short = triton.infer("cut", [tensor(kind, ["the cat"])], parameters={"dimensions": 4})
        assert short.as_numpy("embedding").shape == (1, 4)
        with pytest.raises(InferenceServerException, match=r"input\[0\] has 302 tokens"):
            triton.infer(MINILM, [tensor(kind, ["word " * 300])])
        with pytest.raises(InferenceServerException, match="input holds nothing"):
            triton.infer(MINILM, [tensor(kind, [])])


def tensor(kind: Any, texts: list[str]) -> Any:
    made = kind.InferInput("text", [len(texts)], "BYTES")
    made.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=np.object_))
    return made


def test_kserve_says_what_an_encoder_takes_and_gives(server: Server) -> None:
    about = server.client.get(f"{server.http}/v2/models/{MINILM}").json()
    assert about["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert about["outputs"] == [{"name": "embedding", "datatype": "FP32", "shape": [-1, 384]}]
    tone = server.client.get(f"{server.http}/v2/models/tone").json()
    assert [each["name"] for each in tone["outputs"]] == ["probabilities", "label"]
    assert tone["outputs"][0]["shape"] == [-1, 3]
    counted = server.client.get(f"{server.http}/v2/models/{MINILM}/stats").json()
    assert counted["model_stats"][0]["inference_count"] > 0
    made = post(server, f"/v2/models/{MINILM}/generate", text="the cat", truncation=True)
    assert len(made["embedding"]) == 384


def test_a_deadline_is_kept(server: Server) -> None:
    answer = server.client.post(
        f"{server.http}/v1/embeddings",
        json={"model": MINILM, "input": ["many words " * 60] * 500},
        headers={"X-Request-Timeout": "0.05"},
    )
    assert answer.status_code == 504, answer.text
    short = httpx2.Timeout(30)
    after = server.client.post(
        f"{server.http}/v1/embeddings", json={"model": MINILM, "input": "next"}, timeout=short
    )
    assert after.status_code == 200, "what was given up is not run before others"


def test_models_say_what_they_take(server: Server) -> None:
    listed = {each["id"] for each in server.client.get(f"{server.http}/v1/models").json()["data"]}
    assert listed == {MINILM, "tone", "cross", "cut"}
