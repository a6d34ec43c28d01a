"""What can go wrong with a call, and what each gRPC status becomes.

ClientError
├── InvalidRequest     the request is wrong; sending it again will not help
│   └── TooLarge       it is larger than the server, or this client, accepts
├── ModelNotFound      no such model or version
├── Unsupported        the server does not offer this
├── AccessDenied       the key is missing, wrong or not allowed to do this
├── Unavailable        nobody answered, or the model is not ready
│   └── Overloaded     the server asks to try again after `retry_after` seconds
├── DeadlineExceeded   no answer within the timeout
├── Cancelled          the call was cancelled
└── ServerFailure      the server failed
"""

from __future__ import annotations

from collections.abc import Iterable

import grpc


class ClientError(Exception):
    """Base of the hierarchy. Alone, it is an error in a stream, which carries no status.

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
    """The key is missing, wrong or not allowed to do this."""


class Unavailable(ClientError):
    """Nobody answered, or the model is not ready."""


class Overloaded(Unavailable):
    """The server cannot take the request now; try again after `retry_after` seconds."""


class DeadlineExceeded(ClientError):
    """No answer within the timeout."""


class Cancelled(ClientError):
    """The call was cancelled."""


class ServerFailure(ClientError):
    """The server failed, or gave an answer that makes no sense."""


_KINDS: dict[grpc.StatusCode, type[ClientError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.ALREADY_EXISTS: InvalidRequest,
    grpc.StatusCode.RESOURCE_EXHAUSTED: TooLarge,
    grpc.StatusCode.NOT_FOUND: ModelNotFound,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
    grpc.StatusCode.UNAUTHENTICATED: AccessDenied,
    grpc.StatusCode.PERMISSION_DENIED: AccessDenied,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
}
_RETRY = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)


def of_status(
    code: grpc.StatusCode,
    message: str | None,
    trailers: Iterable[tuple[str, str | bytes]] | None,
) -> ClientError:
    """The error that a status means. The trailer `retry-after` holds seconds."""
    retry_after = _retry_after(trailers or ())
    kind = _KINDS.get(code, ServerFailure)
    if code in _RETRY and retry_after is not None:
        kind = Overloaded
    return kind(message or f"the call ended with {code.name}", retry_after=retry_after)


def _retry_after(trailers: Iterable[tuple[str, str | bytes]]) -> float | None:
    for key, value in trailers:
        if key == "retry-after":
            try:
                return float(value)
            except ValueError:
                return None
    return None
