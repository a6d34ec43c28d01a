"""Triton's generate routes: a text in and a text out as plain JSON, whole or as events."""

from __future__ import annotations

import re
from contextlib import aclosing

from ds_engines.errors import ServeError
from ds_serve.gateway.http import errors, generate_codec
from ds_serve.gateway.http.answer import JSON, Answer, Scope
from ds_serve.gateway.http.frame import Framed, Out, event
from ds_serve.gateway.http.kserve_codec import header_timeout
from ds_serve.gateway.requests import InferRequest
from ds_serve.security.asgi import caller_of

PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/(generate|generate_stream)")
EVENTS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
]


class GenerateRoute(Framed):
    """POST /v2/models/{model}[/versions/{version}]/generate[_stream]."""

    async def answer(
        self, scope: Scope, headers: dict[bytes, bytes], body: bytes, out: Out
    ) -> None:
        match = PATH.fullmatch(scope["path"])
        assert match is not None, "the application has matched the path"
        if out.trace is not None:
            out.trace.model, out.trace.version = match[1], match[2] or ""
        spec = self._gateway.spec(match[1], match[2] or "")
        seconds = header_timeout(headers, self._gateway.seconds(spec.name))
        as_events = match[3] == "generate_stream"
        request = generate_codec.decode(spec, body, seconds, stream=as_events)
        request.partition = caller_of(scope).name
        request.rank = caller_of(scope).priority
        request.trace = out.trace
        if as_events:
            await self._stream(request, out)
        else:
            encoded = generate_codec.encode(await self._gateway.infer(request))
            await out.whole(Answer(200, [encoded], [(b"content-type", JSON)]))

    def refusal(self, error: ServeError) -> Answer:
        return errors.kserve(error)

    async def _stream(self, request: InferRequest, out: Out) -> None:
        """The status is sent with the first event."""
        out.has_events = True
        async with aclosing(self._gateway.submit(request)) as replies:  # type: ignore[type-var]
            async for reply in replies:
                if reply.outputs or reply.parameters:
                    await out.start(200, EVENTS)
                    await out.write(event(generate_codec.encode(reply)))
        await out.start(200, EVENTS)
        await out.end()
