"""OpenAI's HTTP API over the engine loop, as an ASGI application."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ds_serve
from ds_engines.errors import Unavailable
from ds_engines.openvino_genai import BLOCK
from ds_serve.text import metrics, shared_metrics
from ds_serve.text.answers import Answer, ChatAnswer, CompletionAnswer
from ds_serve.text.anthropic_answer import MessageAnswer
from ds_serve.text.anthropic_request import count_request, messages_request
from ds_serve.text.base_app import BaseApp
from ds_serve.text.bodies import DetokenizeBody, TokenizeBody, convert
from ds_serve.text.errors import UnknownModel
from ds_serve.text.exchange import Exchange
from ds_serve.text.fields import Wanted, chat_request, completion_request
from ds_serve.text.loop_client import LoopClient
from ds_serve.text.plan import Reader, chat_ids, plan
from ds_serve.text.responses import ResponseAnswer, response_request
from ds_serve.text.run import Run
from ds_serve.text.tokenizing import detokenized, tokenized

FINGERPRINT = f"ds-serve-{ds_serve.__version__}-openvino"


class TextApp(BaseApp):
    """Routes, checks and answers; `ready` is called once the model is loaded."""

    def __init__(
        self,
        model: str,
        client: LoopClient,
        request_timeout: float,
        at_once: int,
        lora: Sequence[str] = (),
    ) -> None:
        super().__init__(model, request_timeout, shared_metrics.render, lora)
        self._client = client
        self._metrics = metrics.TextMetrics(model, at_once)
        client.on_load = self._metrics.load
        self._reader: Reader | None = None
        self._routes["/v1/chat/completions"] = ("POST", self._chat)
        self._routes["/v1/completions"] = ("POST", self._complete)
        self._routes["/v1/responses"] = ("POST", self._respond)
        self._routes["/v1/messages"] = ("POST", self._message)
        self._routes["/v1/messages/count_tokens"] = ("POST", self._count)
        for root in ("", "/v1"):
            self._routes[f"{root}/tokenize"] = ("POST", self._tokenize)
            self._routes[f"{root}/detokenize"] = ("POST", self._detokenize)

    def ready(self, reader: Reader, blocks: int) -> None:
        """Begin to serve. `blocks`: of the KV cache."""
        self._metrics.cache(blocks, BLOCK)
        self._reader = reader

    def _trouble(self) -> str | None:
        if self._client.ended.done():
            return str(self._client.ended.result())
        if self._reader is None:
            return "the model is still loading"
        if self.draining:
            return "the server is shutting down"
        return None

    def _longest(self) -> int | None:
        return self._reader.max_seq_len if self._reader is not None else None

    async def _chat(self, exchange: Exchange) -> None:
        await self._generate(exchange, chat_request, ChatAnswer)

    async def _complete(self, exchange: Exchange) -> None:
        await self._generate(exchange, completion_request, CompletionAnswer)

    async def _respond(self, exchange: Exchange) -> None:
        await self._generate(exchange, response_request, ResponseAnswer)

    async def _message(self, exchange: Exchange) -> None:
        await self._generate(exchange, messages_request, MessageAnswer)

    async def _count(self, exchange: Exchange) -> None:
        wanted = count_request(await exchange.body())
        ids = chat_ids(wanted, self._reader_of(wanted.model))
        await exchange.json({"input_tokens": len(ids)})

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
