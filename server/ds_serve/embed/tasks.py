"""What each route makes of its body: vectors, scores, ranks, classes."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ds_engines.base import Array
from ds_engines.encoder_tokens import Tokens
from ds_engines.errors import Unsupported
from ds_serve.embed.bodies import (
    ClassifyBody,
    Document,
    EmbeddingsBody,
    RerankBody,
    ScoreBody,
    TokenizeBody,
    inputs,
)
from ds_serve.embed.encoding import Cut, Encoder, unit
from ds_serve.text.bodies import DetokenizeBody
from ds_serve.text.errors import BadField


class Answer(NamedTuple):
    """A body, and what it took: rows and tokens."""

    body: dict[str, Any]
    rows: int = 0
    tokens: int = 0


async def embeddings(body: EmbeddingsBody, encoder: Encoder, model: str) -> Answer:
    """OpenAI's: one vector for each input."""
    _require(not encoder.info.classifies, model, "gives classes, not vectors: ask /v1/classify")
    length = _length(body, encoder)
    rows = await _rows(body, encoder)
    vectors = (await encoder.run(rows))[:, : length or None]
    if _wants_unit(body, encoder):
        vectors = unit(vectors)
    write = _base64 if body.encoding_format == "base64" else np.ascontiguousarray
    data = [
        {"index": index, "object": "embedding", "embedding": write(vector)}
        for index, vector in enumerate(vectors)
    ]
    return _listed("embd", model, data, rows)


async def classify(body: ClassifyBody, encoder: Encoder, model: str) -> Answer:
    """vLLM's: the likeliest label of each input, and all probabilities."""
    _require(encoder.info.classifies, model, "gives vectors, not classes: ask /v1/embeddings")
    rows = await _rows(body, encoder)
    logits = await encoder.run(rows)
    found = encoder.probabilities(logits) if body.use_activation else logits
    labels = encoder.info.labels
    data = [
        {
            "index": index,
            "label": labels[int(logits[index].argmax())],
            "probs": each,
            "num_classes": len(labels),
        }
        for index, each in enumerate(found)
    ]
    return _listed("classify", model, data, rows)


async def score(body: ScoreBody, encoder: Encoder, model: str) -> Answer:
    """vLLM's: how well the texts of each pair go together."""
    left, right = body.sides()
    cut = Cut(body.cut(encoder.info.max_seq_len), body.truncation_side)
    scores, rows = await _scores(left, right, encoder, model, cut, body.use_activation)
    data = [
        {"index": index, "object": "score", "score": float(each)}
        for index, each in enumerate(scores)
    ]
    return _listed("score", model, data, rows)


async def rerank(body: RerankBody, encoder: Encoder, model: str) -> Answer:
    """Jina's and Cohere's: documents by how well they answer the query, the best first."""
    if not body.documents:
        raise BadField("documents", "documents is empty")
    texts = [each.text if isinstance(each, Document) else each for each in body.documents]
    cut = Cut(body.cut(encoder.info.max_seq_len), body.truncation_side)
    scores, rows = await _scores(
        [body.query] * len(texts), texts, encoder, model, cut, body.use_activation
    )
    order = np.argsort(-scores, kind="stable")[: body.top_n or None]
    results = [
        {"index": int(at), "relevance_score": float(scores[at])}
        | ({"document": {"text": texts[at]}} if body.return_documents else {})
        for at in order
    ]
    tokens = _count(rows)
    answer = {
        "id": f"rerank-{secrets.token_hex(12)}",
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "results": results,
    }
    return Answer(answer, len(rows), tokens)


async def tokenize(body: TokenizeBody, encoder: Encoder, model: str) -> Answer:
    """vLLM's: the token ids of a text, which may be longer than the model takes."""
    (row,) = encoder.tokenizer.encode([body.prompt], body.add_special_tokens)
    spelled = [encoder.tokenizer.spelling(token) for token in row.ids]
    answer = {
        "count": len(row.ids),
        "max_model_len": encoder.info.max_seq_len,
        "tokens": row.ids,
        "token_strs": spelled if body.return_token_strs else None,
    }
    return Answer(answer)


async def detokenize(body: DetokenizeBody, encoder: Encoder, model: str) -> Answer:
    """vLLM's: the text of token ids."""
    size = encoder.tokenizer.size
    if wrong := [token for token in body.tokens if token >= size]:
        raise BadField("tokens", f"tokens has id {wrong[0]}; ids are below {size}")
    return Answer({"prompt": encoder.tokenizer.decode(body.tokens)})


async def _rows(body: EmbeddingsBody | ClassifyBody, encoder: Encoder) -> list[Tokens]:
    given = inputs(body.input)
    cut = Cut(body.cut(encoder.info.max_seq_len), body.truncation_side)
    texts = [each for each in given if isinstance(each, str)]
    if texts:
        return await encoder.tokens(texts, "input", cut, body.add_special_tokens)
    return encoder.ids([each for each in given if isinstance(each, list)], "input", cut)


async def _scores(
    left: Sequence[str], right: Sequence[str], encoder: Encoder, model: str, cut: Cut, active: bool
) -> tuple[Array, list[Tokens]]:
    """FP32 [pairs], and the rows that were run. A cross-encoder reads both texts together;
    vectors are compared by their cosine.
    """
    info = encoder.info
    _require(
        len(info.labels) <= 1,
        model,
        f"has {len(info.labels)} classes, and a score is of one: ask /v1/classify",
    )
    if info.classifies:
        rows = await encoder.tokens(list(zip(left, right, strict=True)), "documents", cut)
        logits = await encoder.run(rows)
        return (encoder.probabilities(logits) if active else logits)[:, 0], rows
    # A query that goes with every document is read once.
    texts = list(dict.fromkeys([*left, *right]))
    places = {text: at for at, text in enumerate(texts)}
    rows = await encoder.tokens(texts, "documents", cut)
    vectors = unit(await encoder.run(rows))
    one = vectors[[places[text] for text in left]]
    other = vectors[[places[text] for text in right]]
    return np.asarray((one * other).sum(axis=1)), rows


def _require(fits: bool, model: str, why: str) -> None:
    if not fits:
        raise Unsupported(f"the model {model!r} {why}")


def _length(body: EmbeddingsBody, encoder: Encoder) -> int:
    """How many numbers of each vector are wanted; 0 for all."""
    wanted, allowed = body.dimensions, encoder.info.matryoshka
    if wanted is None or wanted == encoder.width:
        return 0
    if not allowed:
        raise BadField(
            "dimensions",
            f"dimensions is {wanted}; this model's vectors have {encoder.width}, and config.json "
            "does not say that they may be cut (is_matryoshka)",
        )
    fits = (wanted < encoder.width and allowed == (0,)) or wanted in allowed
    if not fits:
        ways = "less" if allowed == (0,) else ", ".join(map(str, allowed))
        raise BadField(
            "dimensions", f"dimensions is {wanted}; vectors have {encoder.width}, or {ways}"
        )
    return wanted


def _wants_unit(body: EmbeddingsBody, encoder: Encoder) -> bool:
    asked = body.use_activation if body.normalize is None else body.normalize
    return encoder.info.normalize if asked is None else asked


def _listed(kind: str, model: str, data: list[dict[str, Any]], rows: list[Tokens]) -> Answer:
    tokens = _count(rows)
    body = {
        "id": f"{kind}-{secrets.token_hex(12)}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": data,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
    }
    return Answer(body, len(rows), tokens)


def _count(rows: Sequence[Tokens]) -> int:
    return sum(len(row.ids) for row in rows)


def _base64(vector: Array) -> str:
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()
