"""Errors of the domain as HTTP answers. The one table from error to status."""

from __future__ import annotations

import math

from ds_engines.errors import KINDS, ServeError
from ds_serve.gateway.http.answer import JSON, Answer

STATUS = {
    "InvalidRequest": 400,
    "TooLarge": 413,
    "NotFound": 404,
    "Unsupported": 501,
    "Overloaded": 503,
    "RateLimited": 429,
    "Unavailable": 503,
    "DeadlineExceeded": 504,
    "Cancelled": 499,
    "EngineFailure": 500,
    "ConfigError": 400,
    "LoadError": 500,
    "ServeError": 500,
}
assert KINDS.keys() == STATUS.keys(), "every kind of error has a status"

OPENAI_TYPES = {
    400: "invalid_request_error",
    404: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    501: "invalid_request_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def kserve(error: ServeError) -> Answer:
    """`{"error": message}`."""
    return _answer(error, {"error": str(error)})


def openai(error: ServeError, param: str | None = None, code: str | None = None) -> Answer:
    """`{"error": {"message", "type", "param", "code"}}`."""
    return _answer(error, openai_body(error, param, code))


def openai_body(
    error: ServeError, param: str | None = None, code: str | None = None
) -> dict[str, object]:
    kind = OPENAI_TYPES.get(STATUS[error.kind], "server_error")
    return {"error": {"message": str(error), "type": kind, "param": param, "code": code}}


def _answer(error: ServeError, body: dict[str, object]) -> Answer:
    headers = [(b"content-type", JSON)]
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % math.ceil(error.retry_after)))
    return Answer.json(STATUS[error.kind], body, headers)
