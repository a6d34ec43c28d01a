"""Triton's generate routes: a text in and a text out as plain JSON, whole or as events."""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import aclosing

from ds_engines.errors import Cancelled, EngineFailure, ServeError
from ds_serve import metrics
from ds_serve.gateway.budget import Budget
from ds_serve.gateway.gateway import Gateway
from ds_serve.gateway.http import errors, generate_codec
from ds_serve.gateway.http.answer import JSON, Answer, Receive, Scope, Send, Watch
from ds_serve.gateway.http.body import read_body
from ds_serve.gateway.http.kserve_codec import header_timeout
from ds_serve.gateway.http.request_ids import HEADER, RequestIds
from ds_serve.gateway.requests import InferRequest
from ds_serve.security.asgi import caller_of

log = logging.getLogger(__name__)

PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/(generate|generate_stream)")
EVENTS = b"text/event-stream; charset=utf-8"


class GenerateRoute:
    """POST /v2/models/{model}[/versions/{version}]/generate[_stream]."""

    def __init__(self, gateway: Gateway, budget: Budget, ids: RequestIds) -> None:
        self._gateway = gateway
        self._budget = budget
        self._ids = ids

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        out = _Out(send, self._ids.of(headers.get(HEADER)), closing=self._gateway.draining)
        try:
            await self._run(scope, headers, receive, out)
        except Cancelled:
            return
        except ServeError as error:
            await out.fail(error, scope["path"])
        metrics.gateway_responses.labels("http", str(out.status)).inc()

    async def _run(
        self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, out: _Out
    ) -> None:
        path = scope["path"]
        body = await read_body(headers, receive, self._budget)
        watch = Watch(receive)
        try:
            await self._answer(scope, headers, body, out)
        except asyncio.CancelledError:
            if watch.gone:
                raise Cancelled("the client left") from None
            raise
        except ServeError:
            raise
        except Exception as error:
            log.exception("the gateway failed on %s", path)
            raise EngineFailure("the server failed on this request; its log says why") from error
        finally:
            watch.stop()
            self._budget.give(len(body))

    async def _answer(
        self, scope: Scope, headers: dict[bytes, bytes], body: bytes, out: _Out
    ) -> None:
        match = PATH.fullmatch(scope["path"])
        assert match is not None, "the application has matched the path"
        spec = self._gateway.spec(match[1], match[2] or "")
        seconds = header_timeout(headers, self._gateway.seconds(spec.name))
        as_events = match[3] == "generate_stream"
        request = generate_codec.decode(spec, body, seconds, stream=as_events)
        request.partition = caller_of(scope).name
        if as_events:
            await self._stream(request, out)
        else:
            await out.whole(generate_codec.encode(await self._gateway.infer(request)))

    async def _stream(self, request: InferRequest, out: _Out) -> None:
        async with aclosing(self._gateway.submit(request)) as replies:  # type: ignore[type-var]
            async for reply in replies:
                if reply.outputs or reply.parameters:
                    await out.event(generate_codec.encode(reply))
        await out.end()


class _Out:
    """The client's side of one answer."""

    def __init__(self, send: Send, request_id: bytes, *, closing: bool) -> None:
        self.status = 200
        self._send = send
        self._request_id = request_id
        self._started = False
        self._extra = [(HEADER, request_id)]
        if closing:
            self._extra.append((b"connection", b"close"))

    async def whole(self, body: bytes) -> None:
        await Answer(200, [body], [(b"content-type", JSON)]).send(self._send, self._extra)

    async def event(self, body: bytes) -> None:
        """One event. The status is sent with the first."""
        await self._start()
        event = b"data: " + body + b"\n\n"
        await self._send({"type": "http.response.body", "body": event, "more_body": True})

    async def end(self) -> None:
        await self._start()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, error: ServeError, path: str) -> None:
        """The error as an answer, or as the last event of an answer that has begun."""
        answer = errors.kserve(error)
        self.status = answer.status
        fields = {"request_id": self._request_id.decode(), "path": path, "status": answer.status}
        level = logging.WARNING if answer.status >= 500 else logging.INFO
        log.log(level, "refused: %s", error, extra={"fields": fields})
        if self._started:
            await self.event(b"".join(answer.chunks))
            await self.end()
        else:
            await answer.send(self._send, self._extra)

    async def _start(self) -> None:
        if self._started:
            return
        self._started = True
        headers = [(b"content-type", EVENTS), (b"cache-control", b"no-cache"), *self._extra]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
