"""What carries the service's methods: pygrpc-native, alone or with Envoy, or grpcio itself.

All offer grpc.aio's interface. pygrpc-native does HTTP/2 and gRPC's framing in Rust threads,
outside the interpreter lock, and answers two to four times as many unary calls; it hands streams
of requests to a server behind it, grpcio or Envoy, and has no TLS.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha.reflection_pb2 import (
    ServerReflectionRequest,
    ServerReflectionResponse,
)

from ds_engines.errors import EngineFailure, InvalidRequest, ServeError
from ds_proto.service import METHODS, SERVICE
from ds_serve import metrics
from ds_serve.gateway.config import Limits
from ds_serve.gateway.gateway import Gateway
from ds_serve.gateway.grpc import envoy, reflection
from ds_serve.gateway.grpc.errors import refusal
from ds_serve.gateway.grpc.health import HEALTH, Health, model_in
from ds_serve.gateway.grpc.quick import QuickServer, given_id
from ds_serve.gateway.grpc.service import InferenceService
from ds_serve.gateway.http.request_ids import HEADER, RequestIds
from ds_serve.security.guard import Caller, Guard, Identity
from ds_serve.security.rpc import Metadata, let_in, let_in_health, let_in_stream, shown
from ds_serve.security.tls import TLS, grpc_credentials
from ds_serve.spans import parent_in
from ds_serve.tracing import Tracer

log = logging.getLogger(__name__)

ID = HEADER.decode()
INFER = "ModelInfer"
"""The one unary method that is told of its caller's deadline and span."""

Context = grpc.aio.ServicerContext[Any, Any]
Methods = dict[str, Any]
NO_TLS = TLS()


def build(
    service: InferenceService,
    carrier: str,
    address: str,
    limits: Limits,
    *,
    compressed: bool = False,
    tls: TLS = NO_TLS,
) -> grpc.aio.Server:
    """A server bound to `address`, to be started. `compressed`: answers leave in gzip. That, and a
    limit of connections, grpcio alone has.
    """
    largest = limits.max_request_bytes
    options = [
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", largest),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", 10_000),
    ]
    ids = RequestIds()
    server: grpc.aio.Server
    if carrier == "grpcio":
        gzip = grpc.Compression.Gzip if compressed else None
        if limits.max_connections:
            options.append(("grpc.max_allowed_incoming_connections", limits.max_connections))
        server = grpc.aio.server(options=options, compression=gzip)
    elif carrier == "pyvoy":
        server = envoy.application.build(service, ids, options, largest)
    else:
        server = QuickServer(service, ids, options)
    for name, methods in services(service, ids).items():
        if carrier == "grpcio":
            generic = grpc.method_handlers_generic_handler(name, methods)
            server.add_generic_rpc_handlers((generic,))
        else:
            server.add_registered_method_handlers(name, methods)
    if tls.on:
        server.add_secure_port(address, grpc_credentials(tls))
    else:
        server.add_insecure_port(address)
    return server


def services(service: InferenceService, ids: RequestIds) -> dict[str, Methods]:
    """Every service of the port by its name, and its methods by theirs."""
    return {
        SERVICE: {name: _handler(service, name, ids) for name in METHODS},
        HEALTH: _health(service.gateway, service.guard, ids),
        reflection.V1: _reflection(service.guard, ids),
        reflection.ALPHA: _reflection(service.guard, ids),
    }


def _health(gateway: Gateway, guard: Guard, ids: RequestIds) -> Methods:
    health = Health(gateway)
    read, write = _reader(HealthCheckRequest), HealthCheckResponse.SerializeToString

    def enter(request: Any, metadata: Metadata) -> Caller:
        return let_in_health(guard, model_in(request), metadata)

    check = _unary(health.check, "Check", ids, enter)

    async def watch(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            if isinstance(request, ServeError):
                raise request
            enter(request, context.invocation_metadata())
        except ServeError as error:
            await _abort(context, "Watch", ids, error)
        async for reply in health.watch(request):
            yield reply

    return {
        "Check": grpc.unary_unary_rpc_method_handler(check, read, write),
        "Watch": grpc.unary_stream_rpc_method_handler(watch, read, write),
    }


def _reflection(guard: Guard, ids: RequestIds) -> Methods:
    async def answers(
        requests: AsyncIterable[Any], left: float | None, parent: str, identity: Identity
    ) -> AsyncIterator[Any]:
        async for request in requests:
            yield reflection.answer(request)

    answer = _stream(answers, reflection.METHOD, ids, guard)
    read = _reader(ServerReflectionRequest)
    write = ServerReflectionResponse.SerializeToString
    return {reflection.METHOD: grpc.stream_stream_rpc_method_handler(answer, read, write)}


def _handler(
    service: InferenceService, name: str, ids: RequestIds
) -> grpc.RpcMethodHandler[Any, Any]:
    method = METHODS[name]
    call = getattr(service, name)
    read = _reader(method.request)
    write: Any = method.response.SerializeToString
    if method.server_streaming:
        stream = _stream(call, name, ids, service.guard)
        return grpc.stream_stream_rpc_method_handler(stream, read, write)
    tracer = service.gateway.tracer if name == INFER else None
    unary = _unary(call, name, ids, partial(let_in, service.guard, name), tracer)
    return grpc.unary_unary_rpc_method_handler(unary, read, write)


def _reader(kind: Any) -> Callable[[bytes], Any]:
    """Reads a message. Bytes that are none become the error to answer with: what is raised here
    grpcio would answer itself, with the exception's class and no more.
    """

    def read(data: bytes) -> Any:
        try:
            return kind.FromString(data)
        except DecodeError:
            return InvalidRequest(f"the request's bytes are no {kind.DESCRIPTOR.full_name}")

    return read


def _unary(
    call: Callable[..., Awaitable[Any]],
    name: str,
    ids: RequestIds,
    enter: Callable[[Any, Metadata], Caller],
    tracer: Tracer | None = None,
) -> Callable[[Any, Context], Awaitable[Any]]:
    """`enter` lets the caller in, or raises what refuses it. With `tracer` the method is told the
    caller's deadline and, while requests are traced, its span.
    """
    succeeded = metrics.gateway_responses.labels("grpc", "OK")

    async def answer(request: Any, context: Context) -> Any:
        try:
            if isinstance(request, ServeError):
                raise request
            with enter(request, context.invocation_metadata()) as caller:
                if tracer is None:
                    reply = shown(caller, await call(request))
                else:
                    parent = parent_in(context.invocation_metadata() or ()) if tracer.on else ""
                    reply = await call(request, context.time_remaining(), parent, caller)
        except ServeError as error:
            await _abort(context, name, ids, error)
        except Exception:
            log.exception("the gateway failed on %s", name)
            await _abort(context, name, ids, EngineFailure("the server failed; its log says why"))
        else:
            succeeded.inc()
            if given := given_id(context.invocation_metadata() or ()):
                context.set_trailing_metadata(((ID, ids.of(given).decode()),))
            return reply

    return answer


def _stream(
    call: Callable[..., AsyncIterator[Any]], name: str, ids: RequestIds, guard: Guard
) -> Callable[..., Any]:
    async def answer(requests: Any, context: Context) -> AsyncIterator[Any]:
        try:
            identity = let_in_stream(guard, context.invocation_metadata())
        except ServeError as error:
            await _abort(context, name, ids, error)
        unread: list[ServeError] = []
        # Always: requests of this stream may be traced later.
        left, parent = context.time_remaining(), parent_in(context.invocation_metadata() or ())
        try:
            async for reply in call(_readable(requests, unread), left, parent, identity):
                yield reply
        except ServeError as error:
            await _abort(context, name, ids, error)
        if unread:
            await _abort(context, name, ids, unread[0])

    return answer


async def _readable(requests: AsyncIterable[Any], unread: list[ServeError]) -> AsyncIterator[Any]:
    """The requests up to the first that could not be read, which goes into `unread`."""
    async for request in requests:
        if isinstance(request, ServeError):
            unread.append(request)
            return
        yield request


async def _abort(context: Context, name: str, ids: RequestIds, error: ServeError) -> None:
    """Answer with the error's status; the request's id goes into the trailers and the log."""
    code, message, trailers = refusal(
        name, ids.of(given_id(context.invocation_metadata() or ())), error
    )
    await context.abort(code, message, trailers)
