"""Errors of the domain as gRPC statuses. The one table from error to code."""

from __future__ import annotations

import logging
import math

from grpc import StatusCode

from ds_engines.errors import KINDS, Cancelled, ServeError
from ds_serve import metrics
from ds_serve.gateway.http.request_ids import HEADER

log = logging.getLogger(__name__)

CODES = {
    "InvalidRequest": StatusCode.INVALID_ARGUMENT,
    "TooLarge": StatusCode.RESOURCE_EXHAUSTED,
    "NotFound": StatusCode.NOT_FOUND,
    "Unsupported": StatusCode.UNIMPLEMENTED,
    "Unauthenticated": StatusCode.UNAUTHENTICATED,
    "Forbidden": StatusCode.PERMISSION_DENIED,
    "Overloaded": StatusCode.UNAVAILABLE,
    "RateLimited": StatusCode.RESOURCE_EXHAUSTED,
    "Unavailable": StatusCode.UNAVAILABLE,
    "Lost": StatusCode.UNAVAILABLE,
    "DeadlineExceeded": StatusCode.DEADLINE_EXCEEDED,
    "Cancelled": StatusCode.CANCELLED,
    "EngineFailure": StatusCode.INTERNAL,
    "OutOfMemory": StatusCode.RESOURCE_EXHAUSTED,
    "ConfigError": StatusCode.INVALID_ARGUMENT,
    "LoadError": StatusCode.INTERNAL,
    "ServeError": StatusCode.INTERNAL,
}
assert KINDS.keys() == CODES.keys(), "every kind of error has a code"


Trailers = tuple[tuple[str, str | bytes], ...]


def refusal(method: str, request_id: bytes, error: ServeError) -> tuple[StatusCode, str, Trailers]:
    """Status, message and trailers of a call that failed; it is counted and logged."""
    code = CODES[error.kind]
    metrics.gateway_responses.labels("grpc", code.name).inc()
    shown = request_id.decode()
    if not isinstance(error, Cancelled):
        severe = code in (StatusCode.INTERNAL, StatusCode.UNAVAILABLE)
        level = logging.WARNING if severe else logging.INFO
        fields = {"request_id": shown, "method": method, "status": code.name}
        log.log(level, "refused: %s", error, extra={"fields": fields})
    trailers: list[tuple[str, str | bytes]] = [(HEADER.decode(), shown), ("error-kind", error.kind)]
    if error.retry_after is not None:
        trailers.append(("retry-after", str(math.ceil(error.retry_after))))
    return code, str(error), tuple(trailers)
