"""The ASGI application: the hot paths by hand, the rest by FastAPI."""

from __future__ import annotations

from pathlib import Path

from ds_serve import metrics
from ds_serve.anthropic_errors import is_anthropic
from ds_serve.gateway.budget import Budget
from ds_serve.gateway.gateway import Gateway
from ds_serve.gateway.http import generate, openai, rest
from ds_serve.gateway.http.answer import Message, Receive, Scope, Send
from ds_serve.gateway.http.anthropic import AnthropicRoutes
from ds_serve.gateway.http.files import PATH as FILES
from ds_serve.gateway.http.files import FilesRoute
from ds_serve.gateway.http.frame import Route
from ds_serve.gateway.http.infer import PATH, InferRoute
from ds_serve.gateway.http.openai import OpenAIRoutes
from ds_serve.gateway.http.request_ids import HEADER, RequestIds
from ds_serve.security.guard import EVERYBODY, Guard


class Application:
    """Picks the route."""

    def __init__(
        self,
        gateway: Gateway,
        budget: Budget,
        guard: Guard = EVERYBODY,
        files: Path | None = None,
    ) -> None:
        """`files`: the run folder, where a process in it keeps files and batches."""
        self._ids = RequestIds()
        self._in_flight = metrics.Tally(metrics.in_flight.labels("http").inc)
        self.infer = InferRoute(gateway, budget, self._ids, self._in_flight, guard)
        self._openai = OpenAIRoutes(gateway, budget, self._ids)
        self._anthropic = AnthropicRoutes(gateway, budget, self._ids)
        self._files = FilesRoute(gateway, budget, self._ids, files)
        self._generate = generate.GenerateRoute(gateway, budget, self._ids)
        self._rest = rest.build(gateway, budget)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._seldom(scope, receive, send)
            return
        path: str = scope["path"]
        if scope["method"] == "POST" and PATH.fullmatch(path):
            await self.infer(scope, receive, send)
            return
        route = self._route(scope["method"], path) or self._seldom
        if route == self._seldom and scope["method"] != "POST":
            await self._seldom(scope, receive, send)
            return
        self._in_flight.add(1)
        try:
            await route(scope, receive, send)
        finally:
            self._in_flight.add(-1)

    def _route(self, method: str, path: str) -> Route | None:
        """None where FastAPI knows the path, or nobody does."""
        if FILES.fullmatch(path):
            return self._files
        if openai.takes(method, path):
            return self._anthropic if is_anthropic(path) else self._openai
        if method == "POST" and generate.PATH.fullmatch(path):
            return self._generate
        return None

    async def _seldom(self, scope: Scope, receive: Receive, send: Send) -> None:
        """FastAPI's routes, whose answers carry the request's id too."""
        request_id = self._ids.of(dict(scope["headers"]).get(HEADER))

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (HEADER, request_id)]
            await send(message)

        await self._rest(scope, receive, named)
