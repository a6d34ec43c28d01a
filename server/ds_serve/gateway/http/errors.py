"""Errors of the domain as HTTP answers. The one table from error to status."""

from __future__ import annotations

import math
from collections.abc import Callable

from ds_engines.errors import KINDS, ServeError
from ds_serve.anthropic_errors import error_body, is_anthropic
from ds_serve.gateway.http.answer import JSON, Answer
from ds_serve.gateway.text_body import UNVERSIONED

STATUS = {
    "InvalidRequest": 400,
    "TooLarge": 413,
    "NotFound": 404,
    "Unsupported": 501,
    "Unauthenticated": 401,
    "Forbidden": 403,
    "Overloaded": 503,
    "RateLimited": 429,
    "Unavailable": 503,
    "Lost": 503,
    "DeadlineExceeded": 504,
    "Cancelled": 499,
    "EngineFailure": 500,
    "OutOfMemory": 503,
    "ConfigError": 400,
    "LoadError": 500,
    "ServeError": 500,
}
assert KINDS.keys() == STATUS.keys(), "every kind of error has a status"

OPENAI: dict[str, tuple[str, str | None]] = {
    "InvalidRequest": ("invalid_request_error", None),
    "TooLarge": ("invalid_request_error", "request_too_large"),
    "NotFound": ("invalid_request_error", "not_found"),
    "Unsupported": ("invalid_request_error", "unsupported_value"),
    "Unauthenticated": ("invalid_request_error", "invalid_api_key"),
    "Forbidden": ("permission_error", "permission_denied"),
    "RateLimited": ("rate_limit_error", "queue_full"),
    "Overloaded": ("overloaded_error", "overloaded"),
    "Unavailable": ("service_unavailable_error", "unavailable"),
    "Lost": ("service_unavailable_error", "unavailable"),
    "DeadlineExceeded": ("timeout_error", "deadline_exceeded"),
}
"""OpenAI's type and code of an error; the text workers' own errors say the same."""


def kserve(error: ServeError) -> Answer:
    """`{"error": message}`."""
    return _answer(error, {"error": str(error)})


def openai(error: ServeError, param: str | None = None, code: str | None = None) -> Answer:
    """`{"error": {"message", "type", "param", "code"}}`."""
    return _answer(error, openai_body(error, param, code))


def openai_body(
    error: ServeError, param: str | None = None, code: str | None = None
) -> dict[str, object]:
    kind, usual = OPENAI.get(error.kind, ("server_error", None))
    return {"error": {"message": str(error), "type": kind, "param": param, "code": code or usual}}


def anthropic(error: ServeError) -> Answer:
    """`{"type": "error", "error": {"type", "message"}}`."""
    return _answer(error, error_body(STATUS[error.kind], str(error)))


def for_path(path: str) -> Callable[[ServeError], Answer]:
    """What gives an error the shape that clients of this path know."""
    if is_anthropic(path):
        return anthropic
    return openai if path.startswith("/v1/") or path in UNVERSIONED else kserve


def _answer(error: ServeError, body: dict[str, object]) -> Answer:
    headers = [(b"content-type", JSON)]
    if error.kind == "Unauthenticated":
        headers.append((b"www-authenticate", b"Bearer"))
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % math.ceil(error.retry_after)))
    return Answer.json(STATUS[error.kind], body, headers)
