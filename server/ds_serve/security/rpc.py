"""The check in front of gRPC's methods, whichever server carries them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ds_proto import grpc_service_pb2 as pb
from ds_serve.security.access import of_rpc
from ds_serve.security.guard import ANYBODY, Caller, Guard, Identity, Kind

AUTHORIZATION = "authorization"

Metadata = Iterable[tuple[str, str | bytes]] | None


def authorization_of(metadata: Metadata) -> str | bytes | None:
    for name, value in metadata or ():
        if name == AUTHORIZATION:
            return value
    return None


def let_in(guard: Guard, name: str, request: Any, metadata: Metadata) -> Caller:
    """For a method of the inference service with one request; close the caller when it has been
    answered. Raises Unauthenticated, Forbidden, RateLimited.
    """
    access = of_rpc(name, request)
    if access.kind is None:
        return ANYBODY
    return guard.check(authorization_of(metadata), access.model, access.kind)


def let_in_health(guard: Guard, model: str, metadata: Metadata) -> Caller:
    """For gRPC's health service. `model` is "" where the server itself is asked for, which needs no
    key; strangers are not told which models there are.
    """
    if not model:
        return guard.stranger
    return guard.check(authorization_of(metadata), model, Kind.READ)


def let_in_stream(guard: Guard, metadata: Metadata) -> Identity:
    """For ModelStreamInfer, where it begins; then `let_in_next` for each request."""
    return guard.identify(authorization_of(metadata))


def let_in_next(identity: Identity, name: str, request: Any) -> Caller:
    """For one request of a stream; what it raises is that request's answer."""
    access = of_rpc(name, request)
    return ANYBODY if access.kind is None else identity.enter(access.model, access.kind)


def shown(caller: Caller, reply: Any) -> Any:
    """The reply, without the models that the caller may not see."""
    if isinstance(reply, pb.RepositoryIndexResponse):
        _keep(reply.models, caller)
    elif isinstance(reply, pb.ModelStatisticsResponse):
        _keep(reply.model_stats, caller)
    return reply


def _keep(entries: Any, caller: Caller) -> None:
    kept = [entry for entry in entries if caller.allows(entry.name)]
    if len(kept) < len(entries):
        del entries[:]
        entries.extend(kept)
