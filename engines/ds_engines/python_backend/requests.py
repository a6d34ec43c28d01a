"""Requests and responses as model.py has them, and calls of other models."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np

from ds_engines.errors import EngineFailure, ServeError
from ds_engines.python_backend.faults import (
    TritonError,
    TritonModelException,
    to_model,
    to_server,
)
from ds_engines.python_backend.tensor import Tensor, wire
from ds_engines.reshaping import Reshapes
from ds_engines.spec import ModelSpec
from ds_engines.whole import Caller, ModelCall, ModelReply, Output, WholeRequest

RESPONSE_COMPLETE_FINAL = 1
SEQUENCE_START, SEQUENCE_END = 1, 2
RELEASE_ALL = 1

LEAST = -(2**63)
"""Of a parameter that is a number."""

CALL_SECONDS = 60.0
"""How long a call may take that is made from a thread which no request has started."""


@dataclass(frozen=True)
class Context:
    """What calls of other models inherit from the request that is being run."""

    deadline: float | None = None
    partition: str = ""


context: ContextVar[Context | None] = ContextVar("context", default=None)
_process: list[Caller] = []


def allow_calls(caller: Caller) -> None:
    """From now on, other models can be called, also from threads that a model starts."""
    _process[:] = [caller]


def caller() -> Caller:
    """The way to other models. Raises TritonModelException where there is none yet."""
    if not _process:
        raise TritonModelException("other models can be called only while requests are served")
    return _process[0]


@dataclass(frozen=True)
class Served:
    """What the configuration says of the model's answers. `outputs`: the names of them all."""

    decoupled: bool
    outputs: tuple[str, ...]
    reshapes: Reshapes

    @classmethod
    def of(cls, spec: ModelSpec) -> Served:
        return cls(spec.decoupled, tuple(each.name for each in spec.outputs), Reshapes(spec))


class InferenceResponse:
    """The outputs of one request, or what went wrong."""

    def __init__(
        self,
        output_tensors: Sequence[Tensor] = (),
        error: TritonError | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> None:
        for tensor in output_tensors:
            if not isinstance(tensor, Tensor):
                raise TypeError(f"an output tensor is a {type(tensor).__name__}, not a Tensor")
        self._outputs = list(output_tensors)
        self._error = error
        self.told = _checked(parameters)
        """The parameters that the client is told."""

    def output_tensors(self) -> list[Tensor]:
        return self._outputs

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def parameters(self) -> str:
        """A JSON object."""
        return json.dumps(self.told)


class InferenceResponseSender:
    """Sends the answers of one request, from any thread."""

    def __init__(self, request: WholeRequest, model: Served) -> None:
        self._request = request
        self._model = model
        self._decoupled = model.decoupled
        self._lock = threading.Lock()
        self._sent = 0
        self.closed = False

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        """An answer, the end, or both. Raises TritonModelException for what cannot be sent."""
        self._check(response, flags)
        final = flags == RESPONSE_COMPLETE_FINAL
        with self._lock:
            self._count(response, final=final)
            self._pass_on(response, final=final)

    def is_cancelled(self) -> bool:
        return self._request.cancelled

    def _check(self, response: object, flags: int) -> None:
        if flags not in (0, RESPONSE_COMPLETE_FINAL):
            raise TritonModelException(f"flags is {flags!r}; it must be 0 or COMPLETE_FINAL")
        if response is None and not flags:
            raise TritonModelException("send() needs a response, or the flag COMPLETE_FINAL")
        if response is not None and not isinstance(response, InferenceResponse):
            kind = type(response).__name__
            raise TritonModelException(f"send() needs an InferenceResponse, not a {kind}")

    def _count(self, response: InferenceResponse | None, *, final: bool) -> None:
        if self.closed:
            raise TritonModelException("the final response of this request was sent already")
        if not self._decoupled and response is not None and self._sent:
            raise TritonModelException("a model that is not decoupled sends one response only")
        if not self._decoupled and response is None and not self._sent:
            raise TritonModelException("a model that is not decoupled must send a response")
        self._sent += response is not None
        self.closed = final

    def _pass_on(self, response: InferenceResponse | None, *, final: bool) -> None:
        """The only response of a model that is not decoupled is the last one, marked or not."""
        if response is None:
            self._request.respond(None, None, final=True)
            return
        error = response.error()
        if error is not None:
            self._request.respond(None, to_server(error), final=True)
            return
        try:
            outputs = self._wanted(response)
        except EngineFailure as wrong:
            self._request.respond(None, wrong, final=True)
            return
        last = final or not self._decoupled
        self._request.respond(outputs, None, final=last, parameters=response.told)

    def _wanted(self, response: InferenceResponse) -> list[Output]:
        """Those that the client has named, or else all that the configuration names."""
        wanted = self._request.outputs or self._model.outputs
        found = [wire(tensor) for tensor in response.output_tensors() if tensor.name() in wanted]
        return [
            (name, datatype, self._model.reshapes.to_client(name, array))
            for name, datatype, array in found
        ]


class InferenceTrace:
    """Nothing: traces are kept by the server itself."""

    def get_context(self) -> str | None:
        return None


class InferenceRequest:
    """A request that a model has been given, or one that it makes of another model."""

    def __init__(  # noqa: PLR0913, PLR0917 - Triton's signature
        self,
        request_id: str | bytes = "",
        correlation_id: int | str = 0,
        inputs: Sequence[Tensor] = (),
        requested_output_names: Sequence[str | bytes] = (),
        model_name: str | bytes = "",
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: object = None,
        trace: InferenceTrace | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> None:
        self._id, self._correlation_id = _text(request_id), correlation_id
        self._inputs, self._wanted = list(inputs), [_text(name) for name in requested_output_names]
        self._model, self._version = _text(model_name), model_version
        self._flags, self._timeout = flags, timeout
        self._trace = trace or InferenceTrace()
        self._parameters = _checked(parameters)
        self._sender: InferenceResponseSender | None = None

    @classmethod
    def given(cls, request: WholeRequest, model: Served) -> InferenceRequest:
        """One that a client has sent."""
        inputs = model.reshapes.to_model(request.inputs)
        made = cls(
            request.id,
            request.sequence,
            # What lies on a GPU is fetched: models are told that all is on the CPU.
            [Tensor(name, np.asarray(array)) for name, array in inputs.items()],
            sorted(request.outputs or model.outputs),
            flags=SEQUENCE_START * request.start + SEQUENCE_END * request.end,
            timeout=request.timeout_us,
        )
        made._parameters = dict(request.parameters)
        made._sender = InferenceResponseSender(request, model)
        return made

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def request_id(self) -> str:
        return self._id

    def correlation_id(self) -> int | str:
        return self._correlation_id

    def requested_output_names(self) -> list[str]:
        return self._wanted

    def flags(self) -> int:
        return self._flags

    def set_flags(self, flags: int) -> None:
        self._flags = flags

    def timeout(self) -> int:
        """Microseconds; 0 for none."""
        return self._timeout

    def parameters(self) -> str:
        """A JSON object."""
        return json.dumps(self._parameters)

    def trace(self) -> InferenceTrace:
        return self._trace

    def get_response_sender(self) -> InferenceResponseSender:
        if self._sender is None:
            raise TritonModelException("only requests that a model is given have a response sender")
        return self._sender

    def is_cancelled(self) -> bool:
        return self._sender is not None and self._sender.is_cancelled()

    def set_release_flags(self, flags: int) -> None:
        if flags != RELEASE_ALL:
            raise TritonModelException("a request cannot be scheduled again: it is released")

    def exec(self, decoupled: bool = False) -> InferenceResponse | ResponseIterator:
        """Run it on the model that it names, and wait."""
        call = self._call()
        if decoupled:
            return ResponseIterator(caller().submit(call))
        return _outcome(caller().infer(call))

    def async_exec(self, decoupled: bool = False) -> asyncio.Future[Any]:
        """As `exec`, to be awaited."""
        call = self._call()
        if not decoupled:
            return asyncio.ensure_future(_awaited(caller().infer(call)))
        made: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        made.set_result(ResponseIterator(caller().submit(call)))
        return made

    def _call(self) -> ModelCall:
        if not self._model or not self._inputs:
            missing = "inputs" if self._model else "a model_name"
            raise TritonModelException(f"a request of another model needs {missing}")
        here = context.get() or Context()
        deadline = here.deadline or time.monotonic() + CALL_SECONDS
        return ModelCall(
            model=self._model,
            version="" if self._version == -1 else str(self._version),
            inputs=[wire(tensor) for tensor in self._inputs],
            outputs=tuple(self._wanted),
            deadline=deadline,
            id=self._id,
            partition=here.partition,
            sequence=self._correlation_id,
            start=bool(self._flags & SEQUENCE_START),
            end=bool(self._flags & SEQUENCE_END),
            timeout_us=self._timeout,
            parameters=self._parameters,
        )


def _text(value: str | bytes) -> str:
    """Models pass on what a tensor of texts holds, which is bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _checked(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy. Raises TritonModelException where one is nothing that the protocols can say."""
    for name, value in (parameters or {}).items():
        if not isinstance(name, str):
            raise TritonModelException(f"a parameter's name is {name!r}; it must be a str")
        if not isinstance(value, bool | int | str):
            kind = type(value).__name__
            raise TritonModelException(f"parameter {name!r} is a {kind}; it must be bool, int, str")
        if isinstance(value, int) and not LEAST <= value < -LEAST:
            raise TritonModelException(f"parameter {name!r} is {value}, which 64 bits do not hold")
    return dict(parameters or {})


def _response(reply: ModelReply) -> InferenceResponse:
    made = InferenceResponse([Tensor(name, array) for name, _, array in reply.outputs])
    made.told = dict(reply.parameters)
    return made


def _outcome(future: Future[ModelReply]) -> InferenceResponse:
    try:
        return _response(future.result())
    except ServeError as error:
        return InferenceResponse(error=to_model(error))


async def _awaited(future: Future[ModelReply]) -> InferenceResponse:
    try:
        return _response(await asyncio.wrap_future(future))
    except ServeError as error:
        return InferenceResponse(error=to_model(error))


class ResponseIterator:
    """The answers of a decoupled model; the last one may have no outputs. It can be gone through
    again once it has ended.
    """

    def __init__(self, replies: Iterator[ModelReply]) -> None:
        self._replies = replies
        self._seen: list[InferenceResponse] = []
        self._next = 0
        self._ended = False

    def __iter__(self) -> ResponseIterator:
        self._next = 0 if self._ended else self._next
        return self

    def __next__(self) -> InferenceResponse:
        if self._next == len(self._seen):
            self._seen.append(self._more())
        self._next += 1
        return self._seen[self._next - 1]

    def cancel(self) -> None:
        """No more answers are wanted."""
        self._ended = True
        close = getattr(self._replies, "close", None)
        if close is not None:
            close()

    def _more(self) -> InferenceResponse:
        if self._ended:
            raise StopIteration
        try:
            reply = next(self._replies)
        except StopIteration:
            self._ended = True
            raise
        except ServeError as error:
            self._ended = True
            return InferenceResponse(error=to_model(error))
        self._ended = reply.final
        return _response(reply)
