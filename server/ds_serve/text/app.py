"""OpenAI's HTTP API over the engine loop, as an ASGI application."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
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
from ds_engines.openvino_tokenizer import TextTokenizer
from ds_serve.text import answers, metrics
from ds_serve.text.answers import Answer, ChatAnswer, CompletionAnswer
from ds_serve.text.errors import UnknownModel
from ds_serve.text.exchange import Exchange, Receive, Send
from ds_serve.text.fields import Wanted, chat_request, completion_request
from ds_serve.text.loop_client import LoopClient
from ds_serve.text.messages import Loaded
from ds_serve.text.plan import plan
from ds_serve.text.run import Run

log = logging.getLogger("ds_serve.text")

FINGERPRINT = f"ds-serve-{ds_serve.__version__}-openvino"

Handler = Callable[[Exchange], Awaitable[None]]


class TextApp:
    """Routes, checks and answers; `ready` is called once the model is loaded."""

    def __init__(
        self, model: str, client: LoopClient, request_timeout: float, at_once: int
    ) -> None:
        self.model = model
        self._client = client
        self._timeout = request_timeout
        self._metrics = metrics.TextMetrics(model, at_once)
        client.on_load = self._metrics.load
        self._created = int(time.time())
        self._tokenizer: TextTokenizer | None = None
        self._max_seq_len: int | None = None
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

    def ready(self, tokenizer: TextTokenizer, loaded: Loaded) -> None:
        """Begin to serve."""
        self._tokenizer = tokenizer
        self._max_seq_len = loaded.max_seq_len

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
        if exchange.path == f"/v1/models/{self.model}":
            await exchange.json(self._model_list()["data"][0])
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
        if self._tokenizer is None:
            return "the model is still loading"
        if self.draining:
            return "the server is shutting down"
        return None

    async def _render_metrics(self, exchange: Exchange) -> None:
        text = metrics.render()
        if text is None:
            raise NotFound("these metrics are part of the server's own /metrics")
        await exchange.answer(text, 200, "text/plain; version=1.0.0; charset=utf-8")

    async def _models(self, exchange: Exchange) -> None:
        await exchange.json(self._model_list())

    def _model_list(self) -> dict[str, Any]:
        return answers.models(self.model, self._created, self._max_seq_len)

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
        if wanted.model != self.model:
            raise UnknownModel(f"no model {wanted.model!r} here; this worker serves {self.model!r}")
        if self._tokenizer is None or self._max_seq_len is None:
            raise Unavailable("the model is still loading")
        jobs = plan(wanted, self._tokenizer, self._max_seq_len)
        run = Run(
            exchange,
            wanted,
            jobs=jobs,
            answer=answer(self.model, FINGERPRINT, wanted.logprobs),
            pieces=self._tokenizer.pieces,
            metrics=self._metrics,
        )
        await exchange.while_connected(run.serve(self._client))
