"""A text model: an OpenAI server on a Unix socket, passed through or wrapped in tensors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

import aiohttp
import numpy as np
import orjson

from ds_engines import datatypes
from ds_engines.errors import (
    DeadlineExceeded,
    EngineFailure,
    InvalidRequest,
    Lost,
    NotFound,
    RateLimited,
    ServeError,
    Unavailable,
    Unsupported,
)
from ds_engines.spec import ModelSpec
from ds_serve.gateway import text_statistics
from ds_serve.gateway.requests import Abandon, Done, InferReply, InferRequest, check, end_by_timeout
from ds_serve.transport.arena import Block
from ds_serve.transport.messages import Statistics, Tensor

ELSEWHERE: Mapping[str, str] = {
    "model": "the request names its model itself",
    "prompt": "the prompt is the input text_input",
    "stream": "streaming is asked for by the input stream",
    "stream_options": "there is no output for what it adds",
    "logprobs": "there is no output for them",
}
"""Fields of a completion that mean nothing in sampling_parameters, and why."""

NUMBERS = frozenset(
    {"temperature", "top_p", "top_k", "min_p", "max_tokens", "min_tokens", "seed", "n"}
    | {"frequency_penalty", "presence_penalty", "repetition_penalty"}
)
"""Fields that Triton's vLLM backend takes as strings too, as its example client sends them."""

FAULTS: Mapping[int, type[ServeError]] = {
    400: InvalidRequest,
    404: NotFound,
    422: InvalidRequest,
    429: RateLimited,
    501: Unsupported,
    503: Unavailable,
    504: DeadlineExceeded,
}


class TextBackend:
    """Connections to one text worker's socket."""

    def __init__(self, spec: ModelSpec, address: str) -> None:
        self.spec = spec
        self.held = 0
        self._reason: ServeError | None = None
        self._in_flight: set[asyncio.Task[Any]] = set()
        self._closing: asyncio.Future[None] | None = None
        self._session = aiohttp.ClientSession(
            "http://worker",
            connector=aiohttp.UnixConnector(address, limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept-Encoding"),
        )

    @asynccontextmanager
    async def forward(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The worker's answer as it arrives. Raises Unavailable where the worker is lost."""
        task = asyncio.current_task()
        assert task is not None
        self._in_flight.add(task)
        try:
            async with self._session.request(method, path, data=body, headers=headers) as answer:
                yield answer
        except asyncio.CancelledError:
            if self._reason is None:
                raise
            task.uncancel()
            raise self._reason from None
        except (aiohttp.ClientError, ConnectionError) as error:
            raise self._reason or Lost(
                f"model {self.spec.name!r} lost this request: its worker went away"
            ) from error
        finally:
            self._in_flight.discard(task)

    async def submit(self, request: InferRequest) -> AsyncGenerator[InferReply, None]:
        check(self.spec, request)
        end_by_timeout(request)
        body = _completion(self.spec.name, request)
        headers = {
            "content-type": "application/json",
            "x-request-timeout": f"{max(0.001, request.deadline - time.monotonic()):.3f}",
        }
        trace = request.trace
        if trace is not None:
            headers |= trace.passed_on()
            trace.mark("REQUEST_START")
        async with self.forward("POST", "/v1/completions", orjson.dumps(body), headers) as answer:
            if answer.status != 200:
                raise await _fault(answer)
            if not body["stream"]:
                whole = orjson.loads(await answer.read())
                if trace is not None:
                    trace.told(self.spec, request.id, final=True)
                yield _reply(self.spec, request, whole["choices"][0]["text"], final=True)
                return
            async for text, done in _deltas(answer):
                if trace is not None:
                    trace.told(self.spec, request.id, final=done)
                yield _reply(self.spec, request, text, final=done)

    def room(self, size: int, before: int) -> Block | None:
        return None

    def begin(self, request: InferRequest, done: Done) -> Abandon:
        check(self.spec, request)
        task = asyncio.ensure_future(self._finish(request, done))

        def abandon() -> None:
            task.cancel()

        return abandon

    async def _finish(self, request: InferRequest, done: Done) -> None:
        try:
            outcome: InferReply | ServeError = await self.infer(request)
        except ServeError as error:
            outcome = error
        done(outcome)

    async def infer(self, request: InferRequest) -> InferReply:
        """The whole text at once."""
        check(self.spec, request)
        request.inputs = [tensor for tensor in request.inputs if tensor.name != "stream"]
        async with aclosing(self.submit(request)) as replies:
            async for reply in replies:
                return reply
        raise EngineFailure(f"model {self.spec.name!r} gave no answer")

    async def statistics(self) -> Statistics:
        return await asyncio.to_thread(text_statistics.read, self.spec.name)

    @property
    def in_flight(self) -> int:
        return len(self._in_flight) + self.held

    def close(self, reason: ServeError) -> None:
        """Requests in flight break off; they then raise `reason`."""
        self._reason = reason
        # The library would leave whoever reads from a connection that it closes waiting for ever.
        for task in self._in_flight:
            task.cancel()
        connector = self._session.connector
        if connector is not None:
            # Connections are closed at once; what is left is to wait until they are gone.
            self._closing = asyncio.ensure_future(connector.close())
        self._session.detach()


def _completion(model: str, request: InferRequest) -> dict[str, Any]:
    """The body of an OpenAI completion that asks for what the tensors ask for."""
    values = {tensor.name: _value(tensor) for tensor in request.inputs}
    body = _sampling(values.get("sampling_parameters", b"{}"))
    if values.get("exclude_input_in_output", True) is False:
        raise Unsupported("exclude_input_in_output: false is not supported; the input is left out")
    try:
        prompt = values["text_input"].decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"text_input is not UTF-8: {error}") from None
    return body | {"model": model, "prompt": prompt, "stream": bool(values.get("stream", False))}


def _sampling(text: bytes) -> dict[str, Any]:
    """The fields of a completion's body that a client may set. Refuses those that the tensors
    decide, or whose effect no output tensor could show.
    """
    try:
        fields = orjson.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"sampling_parameters is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("sampling_parameters must be a JSON object")
    for name in NUMBERS & fields.keys():
        fields[name] = _number(fields[name])
    for name in fields.keys() & ELSEWHERE.keys():
        raise InvalidRequest(f"sampling_parameters has {name!r}, but {ELSEWHERE[name]}")
    if fields.get("n") not in (None, 1):
        raise InvalidRequest(
            f"sampling_parameters has n {fields['n']!r}, but n must be 1: there is one text_output"
        )
    return fields


def _number(value: Any) -> Any:
    """The number that a string spells; anything else as it is, for the worker to judge."""
    try:
        return orjson.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _value(tensor: Tensor) -> Any:
    assert isinstance(tensor.data, memoryview), "checked before"
    return datatypes.to_array(tensor.datatype, tensor.shape, tensor.data, tensor.name).item()


async def _deltas(answer: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, bool]]:
    """Pieces of text out of server-sent events; the last is marked."""
    async for line in answer.content:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        event = orjson.loads(data)
        if "error" in event:
            raise EngineFailure(str(event["error"].get("message", event["error"])))
        for choice in event["choices"]:
            yield choice["text"], choice.get("finish_reason") is not None


def _reply(spec: ModelSpec, request: InferRequest, text: str, *, final: bool) -> InferReply:
    data = datatypes.to_bytes("BYTES", np.array([text.encode()], dtype=np.object_))
    output = Tensor("text_output", "BYTES", (1,), memoryview(data))
    return InferReply(spec.name, spec.version, request.id, [output], final)


async def _fault(answer: aiohttp.ClientResponse) -> ServeError:
    body = await answer.read()
    try:
        message = str(orjson.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = body.decode(errors="replace")[:500]
    retry = answer.headers.get("Retry-After")
    kind = FAULTS.get(answer.status, EngineFailure)
    return kind(message, retry_after=float(retry) if retry and retry.isdigit() else None)
