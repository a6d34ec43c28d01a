"""The service's methods: from message to message, knowing nothing of the server that carries
them. What goes wrong is raised as an error of ds_engines.errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from functools import partial

from ds_engines.errors import EngineFailure, ServeError, Unavailable
from ds_proto import grpc_service_pb2 as pb
from ds_serve.gateway import classification
from ds_serve.gateway.budget import Budget
from ds_serve.gateway.gateway import Gateway
from ds_serve.gateway.grpc import codec
from ds_serve.gateway.grpc.management import Management
from ds_serve.gateway.grpc.stream import Done, Stream
from ds_serve.gateway.requests import Abandon, InferReply, resolve
from ds_serve.gateway.requests import Done as InferDone
from ds_serve.security.guard import ANYBODY, EVERYBODY, Caller, Guard, Identity
from ds_serve.tracing import Trace

log = logging.getLogger(__name__)


class InferenceService(Management):
    """GRPCInferenceService. `timeout` arguments are seconds left of the caller's deadline, `parent`
    ones name its span."""

    def __init__(self, gateway: Gateway, budget: Budget, guard: Guard = EVERYBODY) -> None:
        super().__init__(gateway)
        self.guard = guard
        self._budget = budget
        self._streams: dict[Stream, asyncio.Queue[pb.ModelStreamInferResponse | None]] = {}
        self._ending = False

    def end_streams(self) -> None:
        """End streams on which nothing is under way now, and the others as soon as that is so."""
        self._ending = True
        for stream, answers in self._streams.items():
            if not stream.busy:
                answers.put_nowait(None)

    async def ModelInfer(  # noqa: N802
        self,
        request: pb.ModelInferRequest,
        timeout: float | None = None,
        parent: str = "",
        caller: Caller = ANYBODY,
    ) -> pb.ModelInferResponse:
        answer: asyncio.Future[pb.ModelInferResponse] = asyncio.get_running_loop().create_future()
        done = partial(resolve, answer)
        abandon = self.begin(request, timeout, done, parent=parent, caller=caller)
        try:
            return await answer
        finally:
            abandon()

    def begin(
        self,
        request: pb.ModelInferRequest,
        timeout: float | None,
        done: Done,
        raw: Sequence[memoryview] = (),
        parent: str = "",
        caller: Caller = ANYBODY,
    ) -> Abandon:
        """ModelInfer without a task. Raises what is wrong at once; `done` is told the rest,
        unless the call is abandoned first. `raw`: see `codec.read`; `parent`: the caller's span.
        """
        try:
            return _Call(self, request, timeout, done, raw, parent, caller).abandon
        except BaseException:
            caller.close()
            raise

    async def ModelStreamInfer(  # noqa: N802
        self,
        requests: AsyncIterable[pb.ModelInferRequest],
        timeout: float | None = None,
        parent: str = "",
        identity: Identity = EVERYBODY,
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Requests of a stream run side by side; each answer is sent as soon as it is there."""
        answers: asyncio.Queue[pb.ModelStreamInferResponse | None] = asyncio.Queue()
        stream = Stream(self, timeout, answers.put_nowait, parent, identity)
        reader = asyncio.ensure_future(_read(requests, stream, answers))
        self._streams[stream] = answers
        try:
            while (answer := await answers.get()) is not None:
                yield answer
                stream.sent()
                if self._ending and answers.empty() and not stream.busy:
                    break
            if self._ending and not reader.done():
                raise Unavailable("the server is shutting down")
        finally:
            del self._streams[stream]
            stream.close()
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader

    def answers_often(self, request: pb.ModelInferRequest) -> bool:
        """Whether the model may give several answers. Raises NotFound, Unavailable."""
        spec = self.gateway.spec(request.model_name, request.model_version)
        return spec.decoupled or spec.task == "text"

    async def replies(
        self,
        request: pb.ModelInferRequest,
        timeout: float | None,
        parent: str = "",
        caller: Caller = ANYBODY,
    ) -> AsyncIterator[pb.ModelInferResponse]:
        """All answers, each marked with whether it is the last one."""
        size = request.ByteSize()
        trace = self._trace(parent)
        sent = False
        self._budget.take(size)
        try:
            seconds = self._seconds(request.model_name, timeout)
            regions = self.gateway.regions_of(caller)
            typed, wanted = codec.decode(request, seconds, regions=regions)
            typed.trace = trace
            typed.partition = caller.name
            typed.rank = caller.priority
            empty_too = codec.wants_empty_final(request)
            async for reply in self.gateway.submit(typed):
                if reply.final and not (reply.outputs or reply.parameters or empty_too):
                    continue
                message = codec.encode(self._ranked(reply, wanted), wanted.places, regions)
                message.parameters["triton_final_response"].bool_param = reply.final
                if trace is not None and not sent:
                    sent = True
                    trace.mark("GRPC_SEND_START")
                yield message
        except ServeError as error:
            if trace is not None:
                self._failed(trace, request.model_name, request.model_version, error)
            raise
        finally:
            self._budget.give(size)
        if trace is not None:
            self._keep(trace)

    def _ranked(self, reply: InferReply, wanted: codec.Wanted) -> InferReply:
        if not wanted.classes:
            return reply
        spec = self.gateway.spec(reply.model, reply.version)
        return classification.ranked(spec, wanted.classes, reply)

    def _trace(self, parent: str) -> Trace | None:
        """Of the request that has just been read, where its turn has come."""
        tracer = self.gateway.tracer
        trace = tracer.begin("GRPC_WAITREAD_START", parent) if tracer.on else None
        if trace is not None:
            trace.mark("GRPC_WAITREAD_END")
        return trace

    def _keep(self, trace: Trace) -> None:
        """The answer is with what carries it, which sends it by and by."""
        trace.mark("GRPC_SEND_END")
        self.gateway.tracer.keep(trace)

    def _failed(self, trace: Trace, model: str, version: str, error: BaseException) -> None:
        trace.failed(model, version, str(error))
        self.gateway.tracer.keep(trace)

    def _seconds(self, model: str, timeout: float | None) -> float:
        most = self.gateway.seconds(model)
        return most if timeout is None else min(timeout, most)


class _Call:
    """One ModelInfer. What ends it, an answer or `abandon`, gives back what it holds."""

    __slots__ = (
        "_abandon", "_caller", "_done", "_named", "_places", "_service", "_size", "_trace",
    )  # fmt: skip

    def __init__(
        self,
        service: InferenceService,
        request: pb.ModelInferRequest,
        timeout: float | None,
        done: Done,
        raw: Sequence[memoryview],
        parent: str,
        caller: Caller,
    ) -> None:
        self._caller = caller
        self._service = service
        self._done = done
        self._trace = service._trace(parent)
        if self._trace is not None:
            self._named = request.model_name, request.model_version
        size = request.ByteSize() + sum(map(len, raw))
        service._budget.take(size)
        self._size = size
        try:
            seconds = service._seconds(request.model_name, timeout)
            regions = service.gateway.regions_of(caller)
            typed, wanted = codec.decode(request, seconds, raw, regions)
            typed.trace = self._trace
            typed.partition = caller.name
            typed.rank = caller.priority
            self._places = wanted.places
            answer: InferDone = self._answer
            if wanted.classes:
                spec = service.gateway.spec(request.model_name, request.model_version)
                answer = classification.done(spec, wanted.classes, answer)
            self._abandon = service.gateway.begin(typed, answer)
        except BaseException as error:
            self._end()
            self._failed(error)
            raise

    def abandon(self) -> None:
        """Nobody waits any more; nothing happens where the call has ended."""
        if self._size >= 0:
            self._end()
            self._abandon()

    def _answer(self, outcome: InferReply | ServeError) -> None:
        if self._size < 0:
            return
        self._end()
        if isinstance(outcome, ServeError):
            self._failed(outcome)
            self._done(outcome)
            return
        try:
            message = codec.encode(
                outcome, self._places, self._service.gateway.regions_of(self._caller)
            )
        except ServeError as error:
            self._done(error)
            return
        except Exception:
            log.exception("the gateway failed on an answer of %r", outcome.model)
            self._done(EngineFailure("the server failed; its log says why"))
            return
        if self._trace is None:
            self._done(message)
        else:
            self._trace.mark("GRPC_SEND_START")
            self._done(message)
            self._service._keep(self._trace)

    def _failed(self, error: BaseException) -> None:
        if self._trace is not None:
            self._service._failed(self._trace, *self._named, error)

    def _end(self) -> None:
        self._service._budget.give(self._size)
        self._size = -1
        self._caller.close()


async def _read(
    requests: AsyncIterable[pb.ModelInferRequest],
    stream: Stream,
    answers: asyncio.Queue[pb.ModelStreamInferResponse | None],
) -> None:
    """Take the requests as long as there is room; None follows the last answer."""
    try:
        async for request in requests:
            if stream.full:
                await stream.room()
            stream.take(request)
        await stream.finished()
    finally:
        answers.put_nowait(None)
