"""KServe's routes that change something: shared memory, the repository, traces and logs."""

from __future__ import annotations

import base64
import binascii
from typing import Any, TypeVar

import msgspec
import orjson
from fastapi import FastAPI, Request, Response

from ds_engines.errors import InvalidRequest
from ds_serve.gateway import cuda_memory, describe
from ds_serve.gateway.budget import Budget
from ds_serve.gateway.control import LogValues, TraceValues
from ds_serve.gateway.gateway import Gateway
from ds_serve.gateway.http.body import read_body
from ds_serve.gateway.http.kserve import JSON_BODY, model_route
from ds_serve.gateway.regions import Region
from ds_serve.security.asgi import caller_of

T = TypeVar("T")

Json = dict[str, Any]


def add(app: FastAPI, gateway: Gateway, budget: Budget) -> None:
    _system_memory(app, gateway, budget)
    _cuda_memory(app, gateway, budget)
    _repository(app, gateway, budget)
    _trace(app, gateway, budget)
    _logging(app, gateway, budget)


class _Registration(msgspec.Struct):
    key: str
    byte_size: int
    offset: int = 0


class _CudaRegistration(msgspec.Struct):
    raw_handle: dict[str, str]
    device_id: int
    byte_size: int


class _Index(msgspec.Struct):
    ready: bool = False


class _Load(msgspec.Struct):
    """What a model is loaded with in place of its own: `config`, and `file:<path>` in base64."""

    parameters: dict[str, str] = {}


class _UnloadParameters(msgspec.Struct, frozen=True):
    unload_dependents: bool = False


class _Unload(msgspec.Struct):
    parameters: _UnloadParameters = _UnloadParameters()


async def _read(request: Request, budget: Budget, kind: type[T]) -> T:
    """The body, read as JSON of that kind; an empty one is {}. Raises InvalidRequest."""
    body = await read_body(dict(request.scope["headers"]), request.receive, budget)
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body of {request.url.path}: {error}") from None
    finally:
        budget.give(len(body))


def _system_memory(app: FastAPI, gateway: Gateway, budget: Budget) -> None:
    path = "/v2/systemsharedmemory"

    def said(name: str) -> list[Json]:
        return [
            {"name": one.name, "key": one.key, "offset": one.offset, "byte_size": one.byte_size}
            for one in gateway.regions.status(name).values()
        ]

    @app.get(f"{path}/status", tags=["kserve"])
    async def regions() -> list[Json]:
        """The registered regions of shared memory."""
        return said("")

    @app.get(f"{path}/region/{{name}}/status", tags=["kserve"])
    async def region(name: str) -> list[Json]:
        """One of them."""
        return said(name)

    @app.post(f"{path}/region/{{name}}/register", tags=["kserve"], openapi_extra=JSON_BODY)
    async def register(name: str, request: Request) -> Response:
        """Make a region known; the body holds key, offset and byte_size."""
        given = await _read(request, budget, _Registration)
        gateway.regions.register(Region(name, given.key, given.offset, given.byte_size))
        return Response()

    @app.post(f"{path}/region/{{name}}/unregister", tags=["kserve"])
    async def unregister(name: str) -> Response:
        """Forget a region."""
        gateway.regions.unregister(name)
        return Response()

    @app.post(f"{path}/unregister", tags=["kserve"])
    async def unregister_all() -> Response:
        """Forget all regions."""
        gateway.regions.unregister("")
        return Response()


def _cuda_memory(app: FastAPI, gateway: Gateway, budget: Budget) -> None:
    path = "/v2/cudasharedmemory"

    def said(name: str) -> list[Json]:
        return [
            {"name": region.name, "device_id": region.device, "byte_size": region.byte_size}
            for region in gateway.regions.status(name, cuda=True).values()
        ]

    @app.get(f"{path}/status", tags=["kserve"])
    async def regions() -> list[Json]:
        """The registered regions on GPUs."""
        return said("")

    @app.get(f"{path}/region/{{name}}/status", tags=["kserve"])
    async def region(name: str) -> list[Json]:
        """One of them."""
        return said(name)

    @app.post(f"{path}/region/{{name}}/register", tags=["kserve"], openapi_extra=JSON_BODY)
    async def register(name: str, request: Request) -> Response:
        """Make a region known; the body holds raw_handle, device_id and byte_size."""
        given = await _read(request, budget, _CudaRegistration)
        handle = cuda_memory.decoded(given.raw_handle.get("b64", ""))
        cuda_memory.register(gateway.regions, name, handle, given.device_id, given.byte_size)
        return Response()

    @app.post(f"{path}/region/{{name}}/unregister", tags=["kserve"])
    async def unregister(name: str) -> Response:
        """Forget a region."""
        gateway.regions.unregister(name, cuda=True)
        return Response()

    @app.post(f"{path}/unregister", tags=["kserve"])
    async def unregister_all() -> Response:
        """Forget all regions on GPUs."""
        gateway.regions.unregister("", cuda=True)
        return Response()


def _repository(app: FastAPI, gateway: Gateway, budget: Budget) -> None:
    path = "/v2/repository"
    about: dict[str, Any] = {"tags": ["kserve"], "openapi_extra": JSON_BODY}

    @app.post(f"{path}/index", **about)
    async def index(request: Request) -> list[Json]:
        """All models and their states; with {"ready": true} those that answer."""
        given = await _read(request, budget, _Index)
        found = await gateway.control.index(given.ready)
        return [
            {"name": each.name, "version": each.version, "state": each.state, "reason": each.reason}
            for each in found
            if caller_of(request.scope).allows(each.name)
        ]

    @app.post(f"{path}/models/{{model}}/load", **about)
    async def load(model: str, request: Request) -> Response:
        """Load a model, or load it anew; answered when it is ready."""
        given = await _read(request, budget, _Load)
        config, files = _overrides(given.parameters)
        await gateway.control.load(model, config, files)
        return Response()

    @app.post(f"{path}/models/{{model}}/unload", **about)
    async def unload(model: str, request: Request) -> Response:
        """Stop serving a model."""
        given = await _read(request, budget, _Unload)
        await gateway.control.unload(model, given.parameters.unload_dependents)
        return Response()

    _named_repository(app, path)


def _named_repository(app: FastAPI, path: str) -> None:
    async def refused(repository: str) -> None:
        """Refused: repositories have no names."""
        describe.check_repository(repository)

    async def model_refused(repository: str, model: str) -> None:
        """Refused: repositories have no names."""
        describe.check_repository(repository)

    app.post(f"{path}/{{repository}}/index", tags=["kserve"])(refused)
    for what in ("load", "unload"):
        whole = f"{path}/{{repository}}/models/{{model}}/{what}"
        app.post(whole, tags=["kserve"])(model_refused)


def _overrides(parameters: dict[str, str]) -> tuple[str | None, dict[str, bytes]]:
    """The configuration and the files that a model is loaded with, in place of its own."""
    config, files = None, {}
    for name, text in parameters.items():
        if name == describe.CONFIG:
            config = text
        elif name.startswith(describe.FILE):
            files[name.removeprefix(describe.FILE)] = _file(name, text)
        else:
            raise InvalidRequest(
                f"a load has no parameter {name!r}; there are 'config' and 'file:<path>'"
            )
    return config, files


def _file(name: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"parameter {name!r} is not base64: {error}") from None


def _trace(app: FastAPI, gateway: Gateway, budget: Budget) -> None:
    async def tell(request: Request, model: str, version: str) -> Json:
        """The trace settings."""
        return _traced(await gateway.control.trace(_known(model, version)))

    async def change(request: Request, model: str, version: str) -> Json:
        """Change some trace settings; null brings back the default."""
        given = await _read(request, budget, Json)
        changes = {name: _texts(name, value) for name, value in given.items()}
        return _traced(await gateway.control.trace(_known(model, version), changes))

    def _known(model: str, version: str) -> str:
        if model:
            gateway.state(model, version)
        return model

    @app.get("/v2/trace/setting", tags=["kserve"])
    async def tell_all(request: Request) -> Json:
        """The trace settings of models that have none of their own."""
        return await tell(request, "", "")

    @app.post("/v2/trace/setting", tags=["kserve"], openapi_extra=JSON_BODY)
    async def change_all(request: Request) -> Json:
        """Change some of them; null brings back the default."""
        return await change(request, "", "")

    model_route(app, "GET", "/trace/setting", tell)
    model_route(app, "POST", "/trace/setting", change)


def _texts(name: str, value: Any) -> list[str] | None:
    """A setting's value as gRPC has it."""
    values = value if isinstance(value, list) else [value]
    if value is None:
        return None
    if not all(isinstance(each, str) or type(each) is int for each in values):
        raise InvalidRequest(f"trace setting {name!r} is {value!r}; it must be a text or texts")
    return [str(each) for each in values]


def _traced(values: TraceValues) -> Json:
    """Only the level may have several values, and is a list."""
    return {
        name: value if name == "trace_level" else ",".join(value) for name, value in values.items()
    }


def _logging(app: FastAPI, gateway: Gateway, budget: Budget) -> None:
    @app.get("/v2/logging", tags=["kserve"])
    async def tell() -> LogValues:
        """The log settings."""
        return await gateway.control.log()

    @app.post("/v2/logging", tags=["kserve"], openapi_extra=JSON_BODY)
    async def change(request: Request) -> Response:
        """Change some log settings; null brings back the default."""
        changes = await _read(request, budget, dict[str, bool | int | str | None])
        settings = await gateway.control.log(changes)
        return Response(orjson.dumps(settings), media_type="application/json")
