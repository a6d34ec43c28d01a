"""Errors of the domain as gRPC statuses. The one table from error to code."""

from __future__ import annotations

from grpc import StatusCode

from ds_engines.errors import KINDS

CODES = {
    "InvalidRequest": StatusCode.INVALID_ARGUMENT,
    "TooLarge": StatusCode.RESOURCE_EXHAUSTED,
    "NotFound": StatusCode.NOT_FOUND,
    "Unsupported": StatusCode.UNIMPLEMENTED,
    "Overloaded": StatusCode.UNAVAILABLE,
    "RateLimited": StatusCode.RESOURCE_EXHAUSTED,
    "Unavailable": StatusCode.UNAVAILABLE,
    "DeadlineExceeded": StatusCode.DEADLINE_EXCEEDED,
    "Cancelled": StatusCode.CANCELLED,
    "EngineFailure": StatusCode.INTERNAL,
    "ConfigError": StatusCode.INVALID_ARGUMENT,
    "LoadError": StatusCode.INTERNAL,
    "ServeError": StatusCode.INTERNAL,
}
assert KINDS.keys() == CODES.keys(), "every kind of error has a code"
