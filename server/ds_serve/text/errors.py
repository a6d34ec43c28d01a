"""Errors in OpenAI's shape, and the one table that gives each kind its status."""

from __future__ import annotations

from typing import Any

from ds_engines.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineFailure,
    InvalidRequest,
    NotFound,
    Overloaded,
    RateLimited,
    ServeError,
    TooLarge,
    Unavailable,
    Unsupported,
)


class BadField(InvalidRequest):
    """A field of the body is wrong; `param` names it and `code` is OpenAI's, where it has one."""

    def __init__(self, param: str, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class UnknownModel(NotFound):
    """The body names a model that this worker does not serve."""


# The nearest ancestor in this table decides.
_TABLE: dict[type[ServeError], tuple[int, str, str | None]] = {
    TooLarge: (413, "invalid_request_error", "request_too_large"),
    InvalidRequest: (400, "invalid_request_error", None),
    UnknownModel: (404, "invalid_request_error", "model_not_found"),
    NotFound: (404, "invalid_request_error", "not_found"),
    Unsupported: (400, "invalid_request_error", "unsupported_value"),
    RateLimited: (429, "rate_limit_error", "queue_full"),
    Overloaded: (503, "overloaded_error", "overloaded"),
    Unavailable: (503, "service_unavailable_error", "unavailable"),
    DeadlineExceeded: (504, "timeout_error", "deadline_exceeded"),
    Cancelled: (499, "cancelled", "cancelled"),
    EngineFailure: (500, "server_error", "engine_failure"),
    ServeError: (500, "server_error", None),
}


def status_of(error: ServeError) -> int:
    """The HTTP status of an error."""
    return _row(error)[0]


def headers_of(error: ServeError) -> dict[str, str]:
    """`Retry-After`, in whole seconds, where waiting helps."""
    if error.retry_after is None:
        return {}
    return {"retry-after": str(max(1, round(error.retry_after)))}


def body_of(error: ServeError) -> dict[str, Any]:
    """The error in OpenAI's shape."""
    _, kind, code = _row(error)
    param = getattr(error, "param", None)
    code = getattr(error, "code", None) or code
    return {"error": {"message": str(error), "type": kind, "param": param, "code": code}}


def _row(error: ServeError) -> tuple[int, str, str | None]:
    return next(_TABLE[kind] for kind in type(error).__mro__ if kind in _TABLE)
