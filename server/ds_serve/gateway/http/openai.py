"""The OpenAI routes: read which model is meant, then pass bytes through in both directions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import orjson

from ds_engines.errors import InvalidRequest, NotFound, ServeError
from ds_engines.spec import ModelSpec
from ds_serve.gateway.http import errors
from ds_serve.gateway.http.answer import Answer, Scope
from ds_serve.gateway.http.frame import EVENT_END, Framed, Out
from ds_serve.gateway.http.kserve_codec import header_timeout
from ds_serve.security.asgi import caller_of

if TYPE_CHECKING:
    import aiohttp

PASSED_ON = (b"accept", b"content-type", b"traceparent", b"tracestate")
PASSED_BACK = ("content-type", "content-length", "retry-after", "cache-control", "allow")


class OpenAIRoutes(Framed):
    """Every path below /v1/ that names its model in a JSON body."""

    async def answer(
        self, scope: Scope, headers: dict[bytes, bytes], body: bytes, out: Out
    ) -> None:
        model = _model(body)
        if out.trace is not None:
            out.trace.model = model
        caller_of(scope).require(model)
        backend = self._gateway.text(model)
        passed = {
            name.decode(): headers[name].decode("latin-1") for name in PASSED_ON if name in headers
        }
        timeout = header_timeout(headers, self._gateway.limits.text_timeout)
        passed["x-request-id"] = out.request_id.decode()
        passed["x-request-timeout"] = f"{timeout:g}"
        if out.trace is not None:
            passed |= out.trace.passed_on()
            out.trace.mark("REQUEST_START")
        async with backend.forward(scope["method"], scope["path"], body, passed) as answer:
            await _copy(answer, out, backend.spec)

    def refusal(self, error: ServeError) -> Answer:
        if isinstance(error, NotFound):
            return errors.openai(error, "model", "model_not_found")
        return errors.openai(error)


async def _copy(answer: aiohttp.ClientResponse, out: Out, spec: ModelSpec) -> None:
    headers = [
        (name.encode(), answer.headers[name].encode("latin-1"))
        for name in PASSED_BACK
        if name in answer.headers
    ]
    out.has_events = answer.content_type == "text/event-stream"
    pieces = _events if out.has_events else _pieces
    async for piece in pieces(answer.content):
        if out.trace is not None:
            out.trace.told(spec, out.request_id.decode(), final=False)
        # The first bytes are awaited before the status is passed on, so that a worker which dies
        # before them is still answered with a status that says so.
        await out.start(answer.status, headers)
        await out.write(piece)
    if out.trace is not None:
        out.trace.told(spec, out.request_id.decode(), final=True)
        if answer.status >= 400:
            said = f"the model's worker answered {answer.status}"
            out.trace.failed(spec.name, spec.version, said)
    await out.start(answer.status, headers)
    await out.end()


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
