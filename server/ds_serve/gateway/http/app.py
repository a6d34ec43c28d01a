"""The ASGI application: the two hot paths by hand, the rest by FastAPI."""

from __future__ import annotations

from ds_serve import metrics
from ds_serve.gateway.budget import Budget
from ds_serve.gateway.gateway import Gateway
from ds_serve.gateway.http import rest
from ds_serve.gateway.http.answer import Receive, Scope, Send
from ds_serve.gateway.http.infer import PATH, InferRoute
from ds_serve.gateway.http.openai import OpenAIRoutes
from ds_serve.gateway.http.request_ids import RequestIds


class Application:
    """Picks the route. `in_flight` counts the requests that have no answer yet."""

    def __init__(self, gateway: Gateway, budget: Budget) -> None:
        ids = RequestIds()
        self._infer = InferRoute(gateway, budget, ids)
        self._openai = OpenAIRoutes(gateway, budget, ids)
        self._rest = rest.build(gateway)
        self._in_flight = metrics.in_flight.labels("http")
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._rest(scope, receive, send)
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
                await self._rest(scope, receive, send)
        finally:
            self.in_flight -= 1
            self._in_flight.set(self.in_flight)
