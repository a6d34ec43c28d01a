"""The OpenAI routes: read which model is meant, then pass bytes through in both directions."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from urllib.parse import quote

from msgspec.structs import replace

from ds_engines.errors import (
    EngineFailure,
    InvalidRequest,
    NotFound,
    Overloaded,
    ServeError,
    Unavailable,
    Unsupported,
)
from ds_engines.spec import ModelSpec
from ds_serve import metrics
from ds_serve.edge.text import Escalation
from ds_serve.gateway.http import errors
from ds_serve.gateway.http.answer import Answer, Headers, Scope
from ds_serve.gateway.http.frame import EVENT_END, Framed, Out
from ds_serve.gateway.http.kserve_codec import header_timeout
from ds_serve.gateway.text import TextBackend
from ds_serve.gateway.text_body import UNVERSIONED, read_form, read_json, with_fields
from ds_serve.gateway.text_hop import Reply
from ds_serve.gateway.text_way import Ask
from ds_serve.security.asgi import caller_of
from ds_serve.security.guard import Caller

PASSED_BACK = (
    "content-type",
    "content-length",
    "content-disposition",
    "retry-after",
    "cache-control",
    "allow",
)

ANSWERED_BY = b"x-ds-serve-model"
"""The answer's header that says which model it is from, which may be another's stand-in."""

BY_ID = re.compile(r"/v1/(?:responses|chat/completions)/[^/]+(?:/.+)?")
"""Of what some model has answered, which no field names."""

ADAPTERS = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
REALTIME = "/v1/realtime"

BUSY = frozenset({429, 500, 502, 503, 504})
"""Statuses at which a model's stand-in is asked."""


def takes(method: str, path: str) -> bool:
    """Whether a request is for these routes."""
    if method == "POST":
        return path.startswith("/v1/") or path in UNVERSIONED
    return path == REALTIME or (method in ("GET", "DELETE") and bool(BY_ID.fullmatch(path)))


LAST = (b"data: [DONE]" + EVENT_END, b'"type":"message_stop"}' + EVENT_END)
"""The last event of a stream, OpenAI's and Anthropic's."""


class OpenAIRoutes(Framed):
    """Every path of an OpenAI server that belongs to a model."""

    error_event = b"data: "
    passed_on: tuple[bytes, ...] = (b"accept", b"content-type", b"traceparent", b"tracestate")

    async def answer(
        self, scope: Scope, headers: dict[bytes, bytes], body: bytes, out: Out
    ) -> None:
        path: str = scope["path"]
        out.error_event = self.error_event
        if path == REALTIME:
            raise Unsupported(f"{path} needs websockets, which this server does not speak")
        ask = self._ask(scope, headers, body, out)
        caller = caller_of(scope)
        if BY_ID.fullmatch(path):
            await self._find(ask, caller, out)
        elif path in ADAPTERS:
            await self._adapt(ask, caller, out)
        else:
            await self._pass(ask, path, caller, out)

    def _ask(self, scope: Scope, headers: dict[bytes, bytes], body: bytes, out: Out) -> Ask:
        passed = {n.decode(): headers[n].decode("latin-1") for n in self.passed_on if n in headers}
        timeout = header_timeout(headers, self._gateway.limits.text_timeout)
        passed["x-request-id"] = out.request_id.decode()
        passed["x-request-timeout"] = f"{timeout:g}"
        caller = caller_of(scope)
        return Ask(
            scope["method"],
            target_of(scope),
            body,
            passed,
            timeout,
            key=caller.name,
            priority=caller.priority,
        )

    async def _pass(self, ask: Ask, path: str, caller: Caller, out: Out) -> None:
        """To the model that the body names, or to who stands in for it."""
        ask.about = about = (
            read_form(ask.content_type, ask.body) if ask.is_form else read_json(path, ask.body)
        )
        ask.priority = max(ask.priority, about.priority)
        if out.trace is not None:
            out.trace.model = about.model
        model, backend = await self._named(about.model, caller)
        if out.trace is not None:
            ask.headers |= out.trace.passed_on()
            out.trace.mark("REQUEST_START")
        rule = self._gateway.limits.escalations.get(model)
        if rule is not None:
            escalation = Escalation(rule, ask, backend, self._gateway.text, self.copy)
            if await escalation.answered(out):
                return
        for other in self._gateway.stand_ins(model):
            if not caller.allows(other):
                continue
            if await self._tried(ask, backend, out):
                return
            metrics.stand_ins.labels(backend.spec.name, other).inc()
            backend = self._gateway.text(other)
            ask.body = ask.named(other)
            ask.about = about._replace(model=other)
        async with backend.way.forward(ask) as reply:
            await self.copy(reply, out, backend.spec)

    async def _named(self, name: str, caller: Caller) -> tuple[str, TextBackend]:
        """The model of that name, or that has the adapter. Whoever may use a model may use its
        adapters. Raises Forbidden, also where there is none such.
        """
        if caller.allows(name):
            return await self._gateway.names.find(name)
        try:
            model, backend = await self._gateway.names.find(name)
        except (NotFound, Unavailable):
            model = name
        if model == name or not caller.allows(model):
            caller.require(name)
        return model, backend

    async def _tried(self, ask: Ask, backend: TextBackend, out: Out) -> bool:
        """Whether the model has answered, and not with a failure that another could make good."""
        try:
            async with backend.way.forward(ask) as reply:
                await reply.first()
                if reply.status in BUSY:
                    return False
                await self.copy(reply, out, backend.spec)
                return True
        except (Overloaded, Unavailable, EngineFailure):
            if out.started:
                raise
            return False

    async def _find(self, ask: Ask, caller: Caller, out: Out) -> None:
        """Ask every model that the caller may use for what has this id: no gateway keeps whose it
        is.
        """
        for name, backend in self._gateway.texts().items():
            for address in backend.way.addresses if caller.allows(name) else ():
                try:
                    async with backend.way.forward(replace(ask, address=address)) as reply:
                        if reply.status not in (404, 405, 501):
                            await self.copy(reply, out, backend.spec)
                            return
                except Unavailable:
                    if out.started:
                        raise
        raise NotFound(f"no model here has {ask.path}")

    async def _adapt(self, ask: Ask, caller: Caller, out: Out) -> None:
        """Load an adapter into all workers of its model, or unload it."""
        backend = self._gateway.text(self._adapted(ask, caller))
        async with AsyncExitStack() as stack:
            replies = []
            for address in backend.way.addresses:
                one = backend.way.forward(replace(ask, address=address))
                replies.append(await stack.enter_async_context(one))
            self._gateway.names.forget()
            await self.copy(max(replies, key=_status), out, backend.spec)

    def _adapted(self, ask: Ask, caller: Caller) -> str:
        """The model that an adapter is for: `model`, which no worker wants, or the only one."""
        try:
            model = read_json("", ask.body).model
        except InvalidRequest:
            local = [name for name, one in self._gateway.texts().items() if not one.way.remote]
            if len(local) == 1:
                return local[0]
            shown = ", ".join(filter(caller.allows, local)) or "none"
            raise InvalidRequest(
                f"say in 'model' which model the adapter is for; there are: {shown}"
            ) from None
        ask.body = with_fields(ask.body, {"model": None})
        return model

    async def copy(self, reply: Reply, out: Out, spec: ModelSpec) -> None:
        """Pass a worker's answer on."""
        await copy(reply, out, spec)

    def refusal(self, error: ServeError) -> Answer:
        if isinstance(error, NotFound):
            return errors.openai(error, "model", "model_not_found")
        return errors.openai(error)


def _status(reply: Reply) -> int:
    return reply.status


def target_of(scope: Scope) -> str:
    """Path and query as the client wrote them."""
    raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    query: bytes = scope.get("query_string", b"")
    return (raw.partition(b"?")[0] + (b"?" + query if query else b"")).decode("latin-1")


def passed_back(reply: Reply, spec: ModelSpec) -> Headers:
    """The headers of a worker's answer that are the client's to see."""
    headers = [
        (name.encode(), reply.headers[name].encode("latin-1"))
        for name in PASSED_BACK
        if name in reply.headers
    ]
    return [*headers, (ANSWERED_BY, spec.name.encode())]


async def copy(reply: Reply, out: Out, spec: ModelSpec) -> None:
    """Pass an answer on as it comes."""
    headers = passed_back(reply, spec)
    out.has_events = reply.events
    # The first bytes, or the first event, are awaited before the status is passed on, so that a
    # worker which dies before them is still answered with a status that says so.
    await reply.first()
    if out.trace is not None:
        out.trace.told(spec, out.request_id.decode(), final=False)
    async for piece in _events(reply) if out.has_events else reply.pieces():
        await out.start(reply.status, headers)
        if piece.endswith(LAST):
            _over(reply, out, spec)
        await out.write(piece)
    _over(reply, out, spec)
    await out.start(reply.status, headers)
    await out.end()


def _over(reply: Reply, out: Out, spec: ModelSpec) -> None:
    """A client may leave as soon as it has read that this was all."""
    if out.trace is not None and not out.over:
        out.trace.told(spec, out.request_id.decode(), final=True)
        if reply.status >= 400:
            said = f"the model's worker answered {reply.status}"
            out.trace.failed(spec.name, spec.version, said)
    out.over = True


async def _events(reply: Reply) -> AsyncIterator[bytes]:
    """Whole events only, so that one with an error can follow wherever the worker breaks off."""
    held = b""
    async for data in reply.pieces():
        if not held and data.endswith(EVENT_END):
            yield data
            continue
        events, end, held = (held + data).rpartition(EVENT_END)
        if end:
            yield events + end
    if held:
        yield held
