"""The routes that are asked for seldom, but KServe's: health, metrics, the list of models."""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from ds_engines.errors import InvalidRequest, NotFound, ServeError
from ds_serve import __version__, metrics
from ds_serve.gateway import worker_metrics
from ds_serve.gateway.budget import Budget
from ds_serve.gateway.gateway import Gateway
from ds_serve.gateway.http import compression, control, docs_page, errors, kserve
from ds_serve.gateway.http.answer import Answer
from ds_serve.security.asgi import caller_of
from ds_serve.security.guard import Caller

PROMETHEUS = b"text/plain; version=0.0.4; charset=utf-8"


HOT_PATHS = (
    ("/v1/chat/completions", "openai", "A chat model's answer, streamed or not"),
    ("/v1/completions", "openai", "The continuation of a text, streamed or not"),
    ("/v2/models/{model}/infer", "kserve", "A model's outputs for these tensors"),
    ("/v2/models/{model}/versions/{version}/infer", "kserve", "The same, of one version"),
    ("/v2/models/{model}/generate", "kserve", "A text model's answer to a text"),
    ("/v2/models/{model}/versions/{version}/generate", "kserve", "The same, of one version"),
    ("/v2/models/{model}/generate_stream", "kserve", "The same as server-sent events"),
    ("/v2/models/{model}/versions/{version}/generate_stream", "kserve", "Of one version"),
)


def build(gateway: Gateway, budget: Budget) -> FastAPI:
    """All routes but inference and the OpenAI calls that carry a body."""
    app = FastAPI(
        title="ds-serve",
        version=__version__,
        description="Every model behind OpenAI REST and KServe v2.",
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
    )
    _hot_paths(app)
    _health(app, gateway)
    _openai(app, gateway)
    kserve.add(app, gateway)
    control.add(app, gateway, budget)
    docs_page.add(app)
    app.add_exception_handler(ServeError, _refused)
    app.add_exception_handler(404, _no_route)
    app.add_exception_handler(405, _no_method)
    return app


def _hot_paths(app: FastAPI) -> None:
    """What the application answers by itself: named here for /docs, and for 405 to a GET."""

    async def answered_before() -> None:
        raise NotFound("this path is not answered here")

    for path, tag, summary in HOT_PATHS:
        named = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"{(\w+)}", path)
        ]
        extra = kserve.JSON_BODY | ({"parameters": named} if named else {})
        app.post(path, tags=[tag], summary=summary, openapi_extra=extra)(answered_before)


def _health(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/health/live", tags=["health"])
    async def live() -> dict[str, str]:
        """200 while the process answers."""
        return {"status": "live"}

    @app.get("/health/ready", tags=["health"])
    async def ready(request: Request) -> JSONResponse:
        """200 while every model answers; otherwise 503 and, without API keys, what each one waits
        for.
        """
        return _ready(gateway, caller_of(request.scope))

    @app.get("/health", tags=["health"], include_in_schema=False)
    async def health(request: Request) -> JSONResponse:
        return _ready(gateway, caller_of(request.scope))

    _metrics(app, gateway)


def metrics_alone(gateway: Gateway) -> FastAPI:
    """The metrics, for a port of their own."""
    app = FastAPI(openapi_url=None)
    _metrics(app, gateway)
    return app


def _metrics(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/metrics", tags=["health"])
    async def prometheus(request: Request) -> Response:
        """All processes' metrics in Prometheus text form."""
        metrics.tell_all()
        await gateway.tell_metrics()
        pages = await worker_metrics.pages(gateway.states())
        text = worker_metrics.merged(metrics.render(), pages)
        answer = Answer(200, [text], [(b"content-type", PROMETHEUS)])
        coding = compression.accepted(dict(request.scope["headers"]))
        return _response(compression.packed(answer, coding) if coding else answer)


def _ready(gateway: Gateway, caller: Caller) -> JSONResponse:
    if gateway.ready:
        away = gateway.away(caller)
        return JSONResponse({"status": "ready"} | ({"models": away} if away else {}))
    status = "draining" if gateway.draining else "not ready"
    said = {"status": status, "models": gateway.unready(caller)}
    return JSONResponse(said, 503, {"Retry-After": "1"})


def _openai(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/v1/models", tags=["openai"])
    async def models(request: Request) -> dict[str, Any]:
        """The text models that answer, and their adapters."""
        allows = caller_of(request.scope).allows
        return {"object": "list", "data": await gateway.names.cards(allows)}

    @app.get("/v1/models/{model:path}", tags=["openai"])
    async def model(model: str) -> Any:
        """One of them."""
        card = await gateway.names.card(model)
        if card is not None:
            return card
        error = NotFound(f"there is no text model {model!r}")
        return _response(errors.openai(error, "model", "model_not_found"))


def _response(answer: Answer) -> Response:
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    return Response(b"".join(answer.chunks), answer.status, headers)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServeError)
    return _response(errors.for_path(request.url.path)(error))


async def _no_route(request: Request, error: Exception) -> Response:
    path = request.url.path
    return await _refused(
        request,
        NotFound(f"there is no {request.method} {path}; /docs lists what there is"),
    )


async def _no_method(request: Request, error: Exception) -> Response:
    message = f"{request.url.path} does not take {request.method}"
    body: dict[str, Any] = {"error": message}
    if request.url.path.startswith("/v1/"):
        body = errors.openai_body(InvalidRequest(message), None, "method_not_allowed")
    return JSONResponse(body, 405, getattr(error, "headers", None))
