"""The ASGI application: the two hot paths by hand, the rest by FastAPI."""

from __future__ import annotations

from ds_serve import metrics
from ds_serve.gateway.budget import Budget
from ds_serve.gateway.gateway import Gateway
from ds_serve.gateway.http import rest
from ds_serve.gateway.http.answer import Message, Receive, Scope, Send
from ds_serve.gateway.http.infer import PATH, InferRoute
from ds_serve.gateway.http.openai import OpenAIRoutes
from ds_serve.gateway.http.request_ids import HEADER, RequestIds


class Application:
    """Picks the route. `in_flight` counts the requests that have no answer yet."""

    def __init__(self, gateway: Gateway, budget: Budget) -> None:
        self._ids = RequestIds()
        self._infer = InferRoute(gateway, budget, self._ids)
        self._openai = OpenAIRoutes(gateway, budget, self._ids)
        self._rest = rest.build(gateway)
        self._in_flight = metrics.in_flight.labels("http")
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._seldom(scope, receive, send)
            return
        path: str = scope["path"]
        self.in_flight += 1
        self._in_flight.set(self.in_flight)
        try:
            if PATH.fullmatch(path):
                await self._infer(scope, receive, send)
            elif path.startswith("/v1/"):
                await self._openai(scope, receive, send)
            else:
                await self._seldom(scope, receive, send)
        finally:
            self.in_flight -= 1
            self._in_flight.set(self.in_flight)

    async def _seldom(self, scope: Scope, receive: Receive, send: Send) -> None:
        """FastAPI's routes, whose answers carry the request's id too."""
        request_id = self._ids.of(dict(scope["headers"]).get(HEADER))

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (HEADER, request_id)]
            await send(message)

        await self._rest(scope, receive, named)
