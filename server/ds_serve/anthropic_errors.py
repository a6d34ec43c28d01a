"""Anthropic's errors, which the gateway and the text workers write alike."""

from __future__ import annotations

KINDS: dict[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""The type of an error, by its status; any other is its client's or the server's fault."""


def is_anthropic(path: str) -> bool:
    """Whether a path is one of Anthropic's."""
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def error_body(status: int, message: str) -> dict[str, object]:
    """`{"type": "error", "error": {"type", "message"}}`."""
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}
