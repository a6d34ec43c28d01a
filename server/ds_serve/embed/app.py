"""An encoder's routes, as an ASGI application."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import orjson

from ds_engines.errors import ServeError, Unavailable
from ds_serve.embed import metrics, tasks
from ds_serve.embed.bodies import (
    ClassifyBody,
    EmbeddingsBody,
    RerankBody,
    ScoreBody,
    TokenizeBody,
)
from ds_serve.embed.encoding import Encoder
from ds_serve.embed.tasks import Answer
from ds_serve.text import shared_metrics
from ds_serve.text.base_app import BaseApp, Handler
from ds_serve.text.bodies import DetokenizeBody, convert
from ds_serve.text.errors import UnknownModel
from ds_serve.text.exchange import Exchange

log = logging.getLogger("ds_serve.embed.request")

Body = TypeVar("Body", bound=msgspec.Struct)
Task = Callable[[Body, Encoder, str], Awaitable[Answer]]


class EncoderApp(BaseApp):
    """Serves from `ready` on."""

    def __init__(self, model: str, request_timeout: float, batch_tokens: int) -> None:
        super().__init__(model, request_timeout, shared_metrics.render)
        self._metrics = metrics.EncoderMetrics(model, batch_tokens)
        self.on_load = self._metrics.load
        self._encoder: Encoder | None = None
        self._post(("/v1/embeddings", "/embeddings"), EmbeddingsBody, tasks.embeddings)
        self._post(("/v1/rerank", "/v2/rerank", "/rerank"), RerankBody, tasks.rerank)
        self._post(("/v1/score", "/score"), ScoreBody, tasks.score)
        self._post(("/v1/classify", "/classify"), ClassifyBody, tasks.classify)
        self._post(("/v1/tokenize", "/tokenize"), TokenizeBody, tasks.tokenize)
        self._post(("/v1/detokenize", "/detokenize"), DetokenizeBody, tasks.detokenize)

    def ready(self, encoder: Encoder) -> None:
        """Begin to serve."""
        self._encoder = encoder

    def _post(self, paths: tuple[str, ...], kind: type[Body], task: Task[Body]) -> None:
        async def handle(exchange: Exchange) -> None:
            fields = convert(await exchange.body(), kind)
            encoder = self._encoder_of(getattr(fields, "model", None))
            await exchange.while_connected(self._timed(exchange, task(fields, encoder, self.model)))

        handler: Handler = handle
        for path in paths:
            self._routes[path] = ("POST", handler)

    async def _timed(self, exchange: Exchange, work: Awaitable[Answer]) -> None:
        """Answer, and leave one line in the log, which has nothing of the inputs."""
        outcome, rows, tokens = "cancelled", 0, 0
        try:
            answer = await work
            outcome, rows, tokens = "ok", answer.rows, answer.tokens
            await exchange.answer(_encoded(answer.body), 200, "application/json")
        except ServeError as error:
            outcome = error.kind
            raise
        finally:
            seconds = time.monotonic() - exchange.arrived
            self._metrics.ended(outcome, tokens, seconds)
            fields = {
                "request_id": exchange.id,
                "path": exchange.path,
                "outcome": outcome,
                "inputs": rows,
                "prompt_tokens": tokens,
                "seconds": round(seconds, 4),
            }
            log.info("request ended", extra={"fields": fields})

    def _encoder_of(self, model: str | None) -> Encoder:
        if model is not None and model != self.model:
            raise UnknownModel(f"no model {model!r} here; this worker serves {self.model!r}")
        if self.draining:
            raise Unavailable("the server is shutting down")
        if self._encoder is None:
            raise Unavailable("the model is still loading")
        return self._encoder

    def _trouble(self) -> str | None:
        if self._encoder is None:
            return "the model is still loading"
        return "the server is shutting down" if self.draining else None

    def _longest(self) -> int | None:
        return self._encoder.info.max_seq_len if self._encoder is not None else None


def _encoded(body: dict[str, Any]) -> bytes:
    # The shortest digits that are the same FP32 number, half as long as FP64's.
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
