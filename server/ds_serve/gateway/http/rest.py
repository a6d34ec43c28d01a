"""The routes that are asked for seldom: models, metadata, health, metrics."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from ds_engines.errors import InvalidRequest, NotFound, ServeError
from ds_engines.spec import TensorSpec
from ds_serve import __version__, metrics
from ds_serve.gateway import describe
from ds_serve.gateway.gateway import READY, Gateway
from ds_serve.gateway.http import errors
from ds_serve.gateway.http.answer import Answer
from ds_serve.gateway.regions import Region
from ds_serve.transport.messages import ModelState

STARTED = int(time.time())


HOT_PATHS = (
    ("/v1/chat/completions", "openai", "A chat model's answer, streamed or not"),
    ("/v1/completions", "openai", "The continuation of a text, streamed or not"),
    ("/v2/models/{model}/infer", "kserve", "A model's outputs for these tensors"),
    ("/v2/models/{model}/versions/{version}/infer", "kserve", "The same, of one version"),
)


def build(gateway: Gateway) -> FastAPI:
    """All routes but inference and the OpenAI calls that carry a body."""
    app = FastAPI(
        title="ds-serve",
        version=__version__,
        description="Every model behind OpenAI REST and KServe v2.",
    )
    _hot_paths(app)
    _health(app, gateway)
    _openai(app, gateway)
    _kserve(app, gateway)
    _shared_memory(app, gateway)
    app.add_exception_handler(ServeError, _refused)
    app.add_exception_handler(404, _no_route)
    app.add_exception_handler(405, _no_method)
    return app


def _hot_paths(app: FastAPI) -> None:
    """What the application answers by itself: named here for /docs, and for 405 to a GET."""

    async def answered_before() -> None:
        raise NotFound("this path is not answered here")

    body = {"requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}}}
    for path, tag, summary in HOT_PATHS:
        app.post(path, tags=[tag], summary=summary, openapi_extra=body)(answered_before)


def _health(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/health/live", tags=["health"])
    async def live() -> dict[str, str]:
        """200 while the process answers."""
        return {"status": "live"}

    @app.get("/health/ready", tags=["health"])
    async def ready() -> JSONResponse:
        """200 while every model answers; otherwise 503 and what each one waits for."""
        return _ready(gateway)

    @app.get("/health", tags=["health"], include_in_schema=False)
    async def health() -> JSONResponse:
        return _ready(gateway)

    @app.get("/metrics", tags=["health"])
    async def prometheus() -> Response:
        """All processes' metrics in Prometheus text form."""
        metrics.tell_all()
        await gateway.tell_metrics()
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _ready(gateway: Gateway) -> JSONResponse:
    if gateway.ready:
        return JSONResponse({"status": "ready"})
    status = "draining" if gateway.draining else "not ready"
    return JSONResponse({"status": status, "models": gateway.unready()}, 503, {"Retry-After": "1"})


def _openai(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/v1/models", tags=["openai"])
    async def models() -> dict[str, Any]:
        """The text models that answer."""
        return {"object": "list", "data": [_card(state) for state in _texts(gateway)]}

    @app.get("/v1/models/{model:path}", tags=["openai"])
    async def model(model: str) -> Any:
        for state in _texts(gateway):
            if state.name == model:
                return _card(state)
        error = NotFound(f"there is no text model {model!r}")
        return _response(errors.openai(error, "model", "model_not_found"))


def _texts(gateway: Gateway) -> list[ModelState]:
    return [
        state
        for state in gateway.states()
        if state.state == READY and state.spec is not None and state.spec.task == "text"
    ]


def _card(state: ModelState) -> dict[str, Any]:
    return {"id": state.name, "object": "model", "created": STARTED, "owned_by": "ds-serve"}


def _shared_memory(app: FastAPI, gateway: Gateway) -> None:
    path = "/v2/systemsharedmemory"

    def said(name: str) -> list[dict[str, Any]]:
        return [msgspec.to_builtins(region) for region in gateway.regions.status(name).values()]

    @app.get(f"{path}/status", tags=["kserve"])
    async def regions() -> list[dict[str, Any]]:
        """The registered regions of shared memory."""
        return said("")

    @app.get(f"{path}/region/{{name}}/status", tags=["kserve"])
    async def region(name: str) -> list[dict[str, Any]]:
        return said(name)

    @app.post(f"{path}/region/{{name}}/register", tags=["kserve"])
    async def register(name: str, request: Request) -> Response:
        """Make a region known; the body holds key, offset and byte_size."""
        try:
            given = msgspec.json.decode(await request.body(), type=_Registration)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"key, offset and byte_size are needed: {error}") from None
        gateway.regions.register(Region(name, given.key, given.offset, given.byte_size))
        return Response()

    @app.post(f"{path}/region/{{name}}/unregister", tags=["kserve"])
    async def unregister(name: str) -> Response:
        gateway.regions.unregister(name)
        return Response()

    @app.post(f"{path}/unregister", tags=["kserve"])
    async def unregister_all() -> Response:
        gateway.regions.unregister("")
        return Response()


class _Registration(msgspec.Struct):
    key: str
    byte_size: int
    offset: int = 0


def _kserve(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/v2", tags=["kserve"])
    async def server() -> dict[str, Any]:
        return {
            "name": describe.SERVER,
            "version": __version__,
            "extensions": list(describe.EXTENSIONS),
        }

    @app.get("/v2/health/live", tags=["kserve"])
    async def live() -> Response:
        return Response()

    @app.get("/v2/health/ready", tags=["kserve"])
    async def ready() -> Response:
        return Response(status_code=200 if gateway.ready else 503)

    def model_route(path: str, answer: Callable[[str, str], Awaitable[Any]]) -> None:
        async def plain(model: str) -> Any:
            return await answer(model, "")

        async def versioned(model: str, version: str) -> Any:
            return await answer(model, version)

        app.get(f"/v2/models/{{model}}{path}", tags=["kserve"])(plain)
        app.get(f"/v2/models/{{model}}/versions/{{version}}{path}", tags=["kserve"])(versioned)

    async def model_ready(model: str, version: str) -> Response:
        state = gateway.state(model, version)
        return Response(status_code=200 if state.state == READY else 503)

    async def metadata(model: str, version: str) -> dict[str, Any]:
        spec = gateway.spec(model, version)
        return {
            "name": spec.name,
            "versions": [spec.version],
            "platform": spec.platform,
            "inputs": [_tensor(tensor) for tensor in spec.inputs],
            "outputs": [_tensor(tensor) for tensor in spec.outputs],
        }

    async def config(model: str, version: str) -> dict[str, Any]:
        return describe.config_json(gateway.spec(model, version))

    async def statistics(model: str, version: str) -> dict[str, Any]:
        spec = gateway.spec(model, version)
        counted = await gateway.statistics(model, version)
        return {"model_stats": [describe.statistics_json(spec, counted)]}

    async def all_statistics() -> dict[str, Any]:
        ready = [state.name for state in gateway.states() if state.state == READY]
        return {"model_stats": [(await statistics(n, ""))["model_stats"][0] for n in ready]}

    app.get("/v2/models/stats", tags=["kserve"])(all_statistics)
    model_route("/ready", model_ready)
    model_route("/config", config)
    model_route("/stats", statistics)
    model_route("", metadata)


def _tensor(tensor: TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}


def _response(answer: Answer) -> Response:
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    return Response(b"".join(answer.chunks), answer.status, headers)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServeError)
    shape = errors.openai if request.url.path.startswith("/v1/") else errors.kserve
    return _response(shape(error))


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
