"""The OpenAI routes: read which model is meant, then pass bytes through in both directions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import orjson

from ds_engines.errors import (
    Cancelled,
    EngineFailure,
    InvalidRequest,
    NotFound,
    ServeError,
)
from ds_serve import metrics
from ds_serve.gateway.budget import Budget
from ds_serve.gateway.gateway import Gateway
from ds_serve.gateway.http import errors
from ds_serve.gateway.http.answer import Answer, Receive, Scope, Send, Watch
from ds_serve.gateway.http.body import read_body
from ds_serve.gateway.http.kserve_codec import header_timeout
from ds_serve.gateway.http.request_ids import HEADER, RequestIds
from ds_serve.security.asgi import caller_of

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger(__name__)

PASSED_ON = (b"accept", b"content-type")
PASSED_BACK = ("content-type", "content-length", "retry-after", "cache-control", "allow")
EVENT_END = b"\n\n"


class OpenAIRoutes:
    """Every path below /v1/ that names its model in a JSON body."""

    def __init__(self, gateway: Gateway, budget: Budget, ids: RequestIds) -> None:
        self._gateway = gateway
        self._budget = budget
        self._ids = ids

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        request_id = self._ids.of(headers.get(HEADER))
        stream = _Stream(send, request_id, closing=self._gateway.draining)
        try:
            status = await self._pass(scope, headers, receive, stream)
        except Cancelled:
            log.info("cancelled", extra={"fields": {"request_id": request_id.decode()}})
            return
        except ServeError as error:
            status = await self._refuse(scope["path"], stream, error)
        metrics.gateway_responses.labels("http", str(status)).inc()

    async def _pass(
        self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, stream: _Stream
    ) -> int:
        body = await read_body(headers, receive, self._budget)
        watch = Watch(receive)
        try:
            model = _model(body)
            caller_of(scope).require(model)
            backend = self._gateway.text(model)
            passed = {
                name.decode(): headers[name].decode("latin-1")
                for name in PASSED_ON
                if name in headers
            }
            timeout = header_timeout(headers, self._gateway.limits.text_timeout)
            passed["x-request-id"] = stream.request_id.decode()
            passed["x-request-timeout"] = f"{timeout:g}"
            path = scope["path"]
            async with backend.forward(scope["method"], path, body, passed) as answer:
                await stream.copy(answer)
                return answer.status
        except asyncio.CancelledError:
            if watch.gone:
                raise Cancelled("the client left") from None
            raise
        except ServeError:
            raise
        except Exception as error:
            log.exception("the gateway failed on %s", scope["path"])
            raise EngineFailure("the server failed on this request; its log says why") from error
        finally:
            watch.stop()
            self._budget.give(len(body))

    async def _refuse(self, path: str, stream: _Stream, error: ServeError) -> int:
        code = "model_not_found" if isinstance(error, NotFound) else None
        param = "model" if isinstance(error, NotFound) else None
        answer = errors.openai(error, param, code)
        fields = {
            "request_id": stream.request_id.decode(),
            "path": path,
            "status": answer.status,
        }
        log.log(
            logging.WARNING if answer.status >= 500 else logging.INFO,
            "refused: %s",
            error,
            extra={"fields": fields},
        )
        await stream.fail(answer)
        return answer.status


class _Stream:
    """The client's side of one answer: started or not, whole or broken off."""

    def __init__(self, send: Send, request_id: bytes, *, closing: bool) -> None:
        self.request_id = request_id
        self._send = send
        self._started = False
        self._has_events = False
        self._extra = [(HEADER, request_id)]
        if closing:
            self._extra.append((b"connection", b"close"))

    async def copy(self, answer: aiohttp.ClientResponse) -> None:
        self._has_events = answer.content_type == "text/event-stream"
        pieces = _events if self._has_events else _pieces
        async for piece in pieces(answer.content):
            # The first bytes are awaited before the status is passed on, so that a worker which
            # dies before them is still answered with a status that says so.
            await self._start(answer)
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        await self._start(answer)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _start(self, answer: aiohttp.ClientResponse) -> None:
        if self._started:
            return
        headers = [
            (name.encode(), answer.headers[name].encode("latin-1"))
            for name in PASSED_BACK
            if name in answer.headers
        ]
        self._started = True
        start = {"status": answer.status, "headers": headers + self._extra}
        await self._send({"type": "http.response.start", **start})

    async def fail(self, answer: Answer) -> None:
        """The error as an answer, or as the last event of a stream that has begun. Any other
        answer breaks off, and its connection closes: the one sign that is left.
        """
        if not self._started:
            await answer.send(self._send, self._extra)
        elif self._has_events:
            event = b"data: " + b"".join(answer.chunks) + EVENT_END
            await self._send({"type": "http.response.body", "body": event, "more_body": False})


async def _pieces(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    while data := await content.readany():
        yield data


async def _events(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Whole events only, so that one with an error can follow wherever the worker breaks off."""
    held = b""
    async for data in _pieces(content):
        events, end, held = (held + data).rpartition(EVENT_END)
        if end:
            yield events + end
    if held:
        yield held


def _model(body: bytes) -> str:
    try:
        parsed: Any = orjson.loads(body)
    except ValueError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    model = parsed.get("model") if isinstance(parsed, dict) else None
    if not isinstance(model, str) or not model:
        raise InvalidRequest("the body must be a JSON object with the model's name in 'model'")
    return model
