"""OpenAI's HTTP API over the engine loop, as an ASGI application."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

import ds_serve
from ds_engines.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineFailure,
    NotFound,
    ServeError,
    Unavailable,
)
from ds_serve.text import answers, metrics
from ds_serve.text.answers import Answer, ChatAnswer, CompletionAnswer
from ds_serve.text.bodies import DetokenizeBody, TokenizeBody, convert
from ds_serve.text.errors import UnknownModel
from ds_serve.text.exchange import Exchange, Receive, Send
from ds_serve.text.fields import Wanted, chat_request, completion_request
from ds_serve.text.loop_client import LoopClient
from ds_serve.text.plan import Reader, plan
from ds_serve.text.run import Run
from ds_serve.text.tokenizing import detokenized, tokenized

log = logging.getLogger("ds_serve.text")

FINGERPRINT = f"ds-serve-{ds_serve.__version__}-openvino"

Handler = Callable[[Exchange], Awaitable[None]]


class TextApp:
    """Routes, checks and answers; `ready` is called once the model is loaded."""

    def __init__(
        self,
        model: str,
        client: LoopClient,
        request_timeout: float,
        at_once: int,
        lora: Sequence[str] = (),
    ) -> None:
        self.model = model
        self._client = client
        self._timeout = request_timeout
        self._metrics = metrics.TextMetrics(model, at_once)
        client.on_load = self._metrics.load
        self._created = int(time.time())
        self._lora = lora
        self._reader: Reader | None = None
        self.draining = False
        self._exchanges = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._routes: dict[str, tuple[str, Handler]] = {
            "/health": ("GET", self._health),
            "/metrics": ("GET", self._render_metrics),
            "/v1/models": ("GET", self._models),
            "/v1/chat/completions": ("POST", self._chat),
            "/v1/completions": ("POST", self._complete),
        }
        for root in ("", "/v1"):
            self._routes[f"{root}/tokenize"] = ("POST", self._tokenize)
            self._routes[f"{root}/detokenize"] = ("POST", self._detokenize)

    def ready(self, reader: Reader) -> None:
        """Begin to serve."""
        self._reader = reader

    async def idle(self) -> None:
        """Wait until no exchange is under way."""
        await self._idle.wait()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        self._exchanges += 1
        self._idle.clear()
        try:
            await self._answer(exchange)
        finally:
            self._exchanges -= 1
            if self._exchanges == 0:
                self._idle.set()

    async def _answer(self, exchange: Exchange) -> None:
        try:
            async with asyncio.timeout(exchange.timeout(self._timeout)):
                await self._route(exchange)
        except Cancelled:
            return
        except TimeoutError:
            await exchange.fail(DeadlineExceeded("the request's deadline passed"))
        except ServeError as error:
            await exchange.fail(error)
        except Exception:
            log.exception("a request failed", extra={"fields": {"request_id": exchange.id}})
            await exchange.fail(EngineFailure(f"internal error; request id {exchange.id}"))

    async def _route(self, exchange: Exchange) -> None:
        for model in self._model_list()["data"]:
            if exchange.path == f"/v1/models/{model['id']}":
                await exchange.json(model)
                return
        method, handler = self._routes.get(exchange.path, ("", None))
        if handler is None:
            raise NotFound(f"no such path: {exchange.path}")
        if exchange.method not in (method, "HEAD" if method == "GET" else method):
            message = f"{exchange.path} takes {method}, not {exchange.method}"
            body = {"message": message, "type": "invalid_request_error"}
            error = {"error": body | {"param": None, "code": "method_not_allowed"}}
            await exchange.json(error, 405, allow=method)
            return
        await handler(exchange)

    async def _health(self, exchange: Exchange) -> None:
        trouble = self._trouble()
        if trouble is not None:
            raise Unavailable(trouble)
        await exchange.json({"status": "ok", "model": self.model})

    def _trouble(self) -> str | None:
        if self._client.ended.done():
            return str(self._client.ended.result())
        if self._reader is None:
            return "the model is still loading"
        if self.draining:
            return "the server is shutting down"
        return None

    async def _render_metrics(self, exchange: Exchange) -> None:
        content_type = "text/plain; version=1.0.0; charset=utf-8"
        await exchange.answer(metrics.render(), 200, content_type)

    async def _models(self, exchange: Exchange) -> None:
        await exchange.json(self._model_list())

    def _model_list(self) -> dict[str, Any]:
        longest = self._reader.max_seq_len if self._reader is not None else None
        return answers.models(self.model, self._created, longest, self._lora)

    async def _chat(self, exchange: Exchange) -> None:
        await self._generate(exchange, chat_request, ChatAnswer)

    async def _complete(self, exchange: Exchange) -> None:
        await self._generate(exchange, completion_request, CompletionAnswer)

    async def _generate(
        self,
        exchange: Exchange,
        check: Callable[[bytes], Wanted],
        answer: Callable[[str, str, bool], Answer],
    ) -> None:
        body = await exchange.body()
        if self.draining:
            raise Unavailable("the server is shutting down")
        wanted = check(body)
        reader = self._reader_of(wanted.model)
        lora = wanted.model if wanted.model in self._lora else ""
        run = Run(
            exchange,
            wanted,
            jobs=plan(wanted, reader, lora),
            answer=answer(wanted.model, FINGERPRINT, wanted.logprobs),
            reader=reader,
            metrics=self._metrics,
        )
        await exchange.while_connected(run.serve(self._client))

    def _reader_of(self, model: str | None) -> Reader:
        """Raises UnknownModel, and Unavailable while the model loads. None means the one model."""
        if model is not None and model != self.model and model not in self._lora:
            known = ", ".join(repr(name) for name in (self.model, *self._lora))
            raise UnknownModel(f"no model {model!r} here; this worker serves {known}")
        if self._reader is None:
            raise Unavailable("the model is still loading")
        return self._reader

    async def _tokenize(self, exchange: Exchange) -> None:
        fields = convert(await exchange.body(), TokenizeBody)
        await exchange.json(tokenized(fields, self._reader_of(fields.model)))

    async def _detokenize(self, exchange: Exchange) -> None:
        fields = convert(await exchange.body(), DetokenizeBody)
        await exchange.json(detokenized(fields, self._reader_of(fields.model)))
