"""What can go wrong with a call, and what each gRPC status becomes.

ClientError
├── InvalidRequest       the request is wrong; sending it again will not help
│   └── TooLarge         it is larger than the server, or this client, accepts
├── ModelNotFound        no such model or version
├── Unsupported          the server does not offer this
├── AccessDenied         the key is not good for this
│   ├── Unauthenticated  it is missing or wrong
│   └── Forbidden        it does not allow this model, or this call
├── Unavailable          nobody answered, or the model is not ready
│   ├── Unreachable      no connection: the request was never sent
│   ├── Overloaded       refused, not run: try again after `retry_after` seconds
│   │   └── RateLimited  the key, or the text model, has reached its limit
│   └── Lost             a worker died with the request, which may have run
├── DeadlineExceeded     no answer within the timeout
├── Cancelled            the call was cancelled, or the client is closed
└── ServerFailure        the server failed
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc


class ClientError(Exception):
    """Base of the hierarchy. Alone, it is an error in a stream of a server that does not say more.

    `retry_after` is in seconds; None where the server gives no such advice.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class InvalidRequest(ClientError):
    """The request is wrong."""


class TooLarge(InvalidRequest):
    """The request, or the answer, is larger than is accepted."""


class ModelNotFound(ClientError):
    """No such model or version."""


class Unsupported(ClientError):
    """The server does not offer this."""


class AccessDenied(ClientError):
    """The key is not good for this."""


class Unauthenticated(AccessDenied):
    """The key is missing or wrong."""


class Forbidden(AccessDenied):
    """The key does not allow this model, or this call."""


class Unavailable(ClientError):
    """Nobody answered, or the model is not ready."""


class Unreachable(Unavailable):
    """No connection could be made, so that nothing was sent."""


class Overloaded(Unavailable):
    """Refused before it ran: the queue is full, or the model is starting again."""


class RateLimited(Overloaded):
    """The key, or the text model, has reached its limit."""


class Lost(Unavailable):
    """The model's worker went away with the request, which may have run."""


class DeadlineExceeded(ClientError):
    """No answer within the timeout."""


class Cancelled(ClientError):
    """The call was cancelled, or the client is closed."""


class ServerFailure(ClientError):
    """The server failed, or gave an answer that makes no sense."""


_STATUSES: dict[grpc.StatusCode, type[ClientError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.ALREADY_EXISTS: InvalidRequest,
    grpc.StatusCode.RESOURCE_EXHAUSTED: TooLarge,
    grpc.StatusCode.NOT_FOUND: ModelNotFound,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: Forbidden,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
}
_KINDS: dict[str, type[ClientError]] = {
    kind.__name__: kind
    for kind in (InvalidRequest, TooLarge, Unsupported, Unauthenticated, Forbidden, Unavailable,
                 Overloaded, RateLimited, Lost, DeadlineExceeded, Cancelled)
} | {"NotFound": ModelNotFound, "ConfigError": InvalidRequest}  # fmt: skip
"""By what ds-serve calls its errors."""

_REFUSALS: dict[type[ClientError], type[ClientError]] = {
    Unavailable: Overloaded,
    TooLarge: RateLimited,
}
"""What an error is that comes with the advice when to try again."""

_UNREACHED = ("failed to connect", "DNS resolution failed", "name resolution failure")
"""How gRPC's own messages begin where there never was a connection."""


def of_status(
    code: grpc.StatusCode,
    message: str | None,
    trailers: Iterable[tuple[str, str | bytes]] | None,
) -> ClientError:
    """The error that a status means. Trailers: `retry-after` holds seconds, and `error-kind`
    ds-serve's own name for it.
    """
    said = dict(trailers or ())
    retry_after = _seconds(said.get("retry-after"))
    kind = _KINDS.get(str(said.get("error-kind"))) or _STATUSES.get(code, ServerFailure)
    if code is grpc.StatusCode.UNAVAILABLE and (message or "").startswith(_UNREACHED):
        kind = Unreachable
    return _made(kind, message or f"the call ended with {code.name}", retry_after)


def of_call(error: Any) -> ClientError:
    """Of the exception that a call of gRPC's raises, blocking or not."""
    return of_status(error.code(), error.details(), error.trailing_metadata())


def of_kind(kind: str, message: str, retry_after: float | None) -> ClientError:
    """The error that ds-serve calls `kind`; in a stream, where there is no status."""
    return _made(_KINDS.get(kind, ServerFailure), message, retry_after)


def _made(kind: type[ClientError], message: str, retry_after: float | None) -> ClientError:
    if retry_after is not None:
        kind = _REFUSALS.get(kind, kind)
    return kind(message, retry_after=retry_after)


def _seconds(value: str | bytes | None) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return None
