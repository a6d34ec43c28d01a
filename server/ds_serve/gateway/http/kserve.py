"""KServe's routes that say what there is: the server, its models, what they have done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response

from ds_engines.spec import TensorSpec
from ds_serve import __version__
from ds_serve.gateway import describe
from ds_serve.gateway.gateway import Gateway
from ds_serve.security.asgi import caller_of


def add(app: FastAPI, gateway: Gateway) -> None:
    _server(app, gateway)
    _models(app, gateway)


JSON_BODY: dict[str, Any] = {
    "requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}}
}
"""What the OpenAPI description says of a body that a route reads by itself."""


def model_route(
    app: FastAPI, method: str, path: str, answer: Callable[[Request, str, str], Awaitable[Any]]
) -> None:
    """The route of a model, and the same with a version; `answer` takes both, "" for none."""

    async def plain(request: Request, model: str) -> Any:
        return await answer(request, model, "")

    async def versioned(request: Request, model: str, version: str) -> Any:
        return await answer(request, model, version)

    about: dict[str, Any] = {"tags": ["kserve"], "description": answer.__doc__ or ""}
    if method == "POST":
        about["openapi_extra"] = JSON_BODY
    models = "/v2/models/{model}"
    app.api_route(f"{models}{path}", methods=[method], **about)(plain)
    app.api_route(f"{models}/versions/{{version}}{path}", methods=[method], **about)(versioned)


def _server(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/v2", tags=["kserve"])
    async def server() -> dict[str, Any]:
        """The server's name, version and extensions."""
        return {
            "name": gateway.name,
            "version": __version__,
            "extensions": list(describe.EXTENSIONS),
        }

    @app.get("/v2/health/live", tags=["kserve"])
    async def live() -> Response:
        """200 while the process answers."""
        return Response()

    @app.get("/v2/health/ready", tags=["kserve"])
    async def ready() -> Response:
        """200 while every model answers, else 503."""
        return Response(status_code=200 if gateway.ready else 503)


def _models(app: FastAPI, gateway: Gateway) -> None:
    async def ready(request: Request, model: str, version: str) -> Response:
        """200 while the model answers, else 503."""
        return Response(status_code=200 if gateway.answers(model, version) else 503)

    async def metadata(request: Request, model: str, version: str) -> dict[str, Any]:
        """The model's inputs and outputs, and its versions."""
        spec = gateway.spec(model, version)
        return {
            "name": spec.name,
            "versions": gateway.versions(spec.name),
            "platform": spec.platform,
            "inputs": [_tensor(tensor) for tensor in spec.inputs],
            "outputs": [_tensor(tensor) for tensor in spec.outputs],
        }

    async def config(request: Request, model: str, version: str) -> dict[str, Any]:
        """The model's configuration, with all that its file leaves out."""
        return describe.config_json(gateway.spec(model, version))

    async def statistics(request: Request, model: str, version: str) -> dict[str, Any]:
        """What the model has done so far, and how long that took."""
        found = []
        for spec in describe.asked_for(gateway, model, version):
            counted = await gateway.statistics(spec.name, spec.version)
            found.append(describe.statistics_json(spec, counted))
        return {"model_stats": found}

    async def all_statistics(request: Request) -> dict[str, Any]:
        """The same of all models."""
        allows = caller_of(request.scope).allows
        found = (await statistics(request, "", ""))["model_stats"]
        return {"model_stats": [each for each in found if allows(each["name"])]}

    app.get("/v2/models/stats", tags=["kserve"])(all_statistics)
    model_route(app, "GET", "/ready", ready)
    model_route(app, "GET", "/config", config)
    model_route(app, "GET", "/stats", statistics)
    model_route(app, "GET", "", metadata)


def _tensor(tensor: TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
