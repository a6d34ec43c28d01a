"""Routes, checks and answers of an OpenAI server, whatever the model does."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from ds_engines.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineFailure,
    NotFound,
    ServeError,
    Unavailable,
)
from ds_serve.text import answers
from ds_serve.text.exchange import Exchange, Receive, Send

log = logging.getLogger("ds_serve.text")

Handler = Callable[[Exchange], Awaitable[None]]


class BaseApp(ABC):
    """An ASGI application of one model. `render` gives its metrics as text; a `request_timeout`,
    in seconds, of 0 is none.
    """

    def __init__(
        self,
        model: str,
        request_timeout: float,
        render: Callable[[], bytes],
        lora: Sequence[str] = (),
    ) -> None:
        self.model = model
        self.draining = False
        self._timeout = request_timeout
        self._render = render
        self._lora = lora
        self._created = int(time.time())
        self._exchanges = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._routes: dict[str, tuple[str, Handler]] = {
            "/health": ("GET", self._health),
            "/metrics": ("GET", self._render_metrics),
            "/v1/models": ("GET", self._models),
        }

    @abstractmethod
    def _trouble(self) -> str | None:
        """Why it cannot answer now; None where it can."""

    @abstractmethod
    def _longest(self) -> int | None:
        """The most tokens; None before the model is loaded."""

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
            raise NotFound(f"no such path: {exchange.path}; model {self.model!r} has {self._paths}")
        if exchange.method not in (method, "HEAD" if method == "GET" else method):
            message = f"{exchange.path} takes {method}, not {exchange.method}"
            body = {"message": message, "type": "invalid_request_error"}
            error = {"error": body | {"param": None, "code": "method_not_allowed"}}
            await exchange.json(error, 405, allow=method)
            return
        await handler(exchange)

    @property
    def _paths(self) -> str:
        """What it can be asked, for those who ask for something else."""
        posted = [path for path, (method, _) in self._routes.items() if method == "POST"]
        return ", ".join(path for path in posted if path.startswith("/v1/"))

    async def _health(self, exchange: Exchange) -> None:
        trouble = self._trouble()
        if trouble is not None:
            raise Unavailable(trouble)
        await exchange.json({"status": "ok", "model": self.model})

    async def _render_metrics(self, exchange: Exchange) -> None:
        content_type = "text/plain; version=1.0.0; charset=utf-8"
        await exchange.answer(self._render(), 200, content_type)

    async def _models(self, exchange: Exchange) -> None:
        await exchange.json(self._model_list())

    def _model_list(self) -> dict[str, Any]:
        return answers.models(self.model, self._created, self._longest(), self._lora)
