"""The check in front of an ASGI application: every request to it passes here."""

from __future__ import annotations

import logging
from typing import Any

from ds_engines.errors import ServeError, Unauthenticated
from ds_serve import metrics
from ds_serve.anthropic_errors import is_anthropic
from ds_serve.gateway.http import errors
from ds_serve.gateway.http.answer import Answer, Receive, Scope, Send
from ds_serve.security.access import of_http
from ds_serve.security.guard import ANYBODY, Caller, Guard

log = logging.getLogger(__name__)

CALLER = "ds_serve.caller"
AUTHORIZATION = b"authorization"
API_KEY = b"x-api-key"


class Guarded:
    """`application` sees the requests that are let in; `caller_of` tells it whose they are."""

    def __init__(self, application: object, guard: Guard, open_metrics: bool = False) -> None:
        self._application: Any = application
        self._guard = guard
        self._open_metrics = open_metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        try:
            caller = self._let_in(scope)
        except ServeError as error:
            await _refused(scope, error).send(send)
            return
        with caller:
            scope[CALLER] = caller
            await self._application(scope, receive, send)

    def _let_in(self, scope: Scope) -> Caller:
        access = of_http(scope["method"], scope["path"], self._open_metrics)
        if access.kind is None:
            return self._guard.stranger
        return self._guard.check(_given(scope), access.model, access.kind)


def _given(scope: Scope) -> bytes | None:
    """The header with the key; Anthropic's clients have another for it."""
    headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))
    given = headers.get(AUTHORIZATION)
    if given is None and API_KEY in headers and is_anthropic(scope["path"]):
        return b"Bearer " + headers[API_KEY]
    return given


def caller_of(scope: Scope) -> Caller:
    """Whose request it is."""
    caller: Caller = scope.get(CALLER, ANYBODY)
    return caller


def _refused(scope: Scope, error: ServeError) -> Answer:
    answer = errors.for_path(scope["path"])(error)
    if isinstance(error, Unauthenticated):
        answer.headers.append((b"connection", b"close"))  # nobody reads what a stranger sends
    metrics.gateway_responses.labels("http", str(answer.status)).inc()
    fields = {"path": scope["path"], "status": answer.status}
    log.info("refused: %s", error, extra={"fields": fields})
    return answer
