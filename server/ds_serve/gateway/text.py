"""A text model: an OpenAI server on a Unix socket, passed through or wrapped in tensors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

import numpy as np
import orjson

from ds_engines import datatypes
from ds_engines.errors import (
    DeadlineExceeded,
    EngineFailure,
    InvalidRequest,
    NotFound,
    RateLimited,
    ServeError,
    Unavailable,
    Unsupported,
)
from ds_engines.spec import ModelSpec
from ds_serve.gateway import text_statistics, worker_metrics
from ds_serve.gateway.requests import Abandon, Done, InferReply, InferRequest, check, end_by_timeout
from ds_serve.gateway.text_body import read_json
from ds_serve.gateway.text_hop import Reply
from ds_serve.gateway.text_upstream import UpstreamWay
from ds_serve.gateway.text_way import Ask, Way, WorkerWay
from ds_serve.transport.arena import Block
from ds_serve.transport.messages import ModelState, Statistics, Tensor

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
    """A text model. Its OpenAI requests go the `way` as they are, tensors become completions."""

    def __init__(self, spec: ModelSpec, way: Way) -> None:
        self.spec = spec
        self.way = way
        self.held = 0

    async def submit(self, request: InferRequest) -> AsyncGenerator[InferReply, None]:
        check(self.spec, request)
        end_by_timeout(request)
        body = _completion(self.spec.name, request)
        seconds = max(0.001, request.deadline - time.monotonic())
        trace = request.trace
        if trace is not None:
            trace.mark("REQUEST_START")
        async with self.way.forward(asked(request, "/v1/completions", body, seconds)) as answer:
            if answer.status != 200:
                raise await fault(answer)
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

    async def move(self, state: ModelState) -> None:
        if state.upstream is None and isinstance(self.way, WorkerWay):
            self.way.move(state.replicas or (state.address,))
        elif state.upstream is not None and isinstance(self.way, UpstreamWay):
            self.way.move(state.upstream)

    @property
    def trouble(self) -> str:
        return self.way.trouble

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
        if self.spec.engine == worker_metrics.ENGINE:
            return await text_statistics.ask(self.way.addresses)
        return await asyncio.to_thread(text_statistics.read, self.spec.name)

    @property
    def in_flight(self) -> int:
        return self.way.in_flight + self.held

    def close(self, reason: ServeError) -> None:
        """Requests in flight break off; they then raise `reason`."""
        self.way.close(reason)


def asked(request: InferRequest, path: str, body: dict[str, Any], seconds: float) -> Ask:
    """What the worker is asked for a request of tensors."""
    data = orjson.dumps(body)
    headers = {"content-type": "application/json", "x-request-timeout": f"{seconds:.3f}"}
    if request.trace is not None:
        headers |= request.trace.passed_on()
    return Ask(
        "POST",
        path,
        data,
        headers,
        seconds,
        read_json(path, data),
        key=request.partition,
        priority=max(request.rank, _rank(request)),
    )


def _rank(request: InferRequest) -> int:
    """KServe's priority 1 is the highest, and 0 says none."""
    return max(0, request.schedule.priority - 1) if request.schedule is not None else 0


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


async def _deltas(answer: Reply) -> AsyncIterator[tuple[str, bool]]:
    """Pieces of text out of server-sent events; the last is marked."""
    held = b""
    async for piece in answer.pieces():
        *lines, held = (held + piece).split(b"\n")
        for line in lines:
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


async def fault(answer: Reply) -> ServeError:
    """What a worker's answer says went wrong."""
    body = await answer.read()
    try:
        message = str(orjson.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = body.decode(errors="replace")[:500]
    retry = answer.headers.get("retry-after")
    kind = FAULTS.get(answer.status, EngineFailure)
    return kind(message, retry_after=float(retry) if retry and retry.isdigit() else None)
