"""ModelStreamInfer: the requests of one stream run side by side, without a task for each."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from itertools import count
from typing import Protocol

from ds_engines.errors import EngineFailure, ServeError
from ds_proto import grpc_service_pb2 as pb
from ds_serve.gateway.requests import Abandon
from ds_serve.security.guard import EVERYBODY, Caller, Identity
from ds_serve.security.rpc import let_in_next

log = logging.getLogger(__name__)

METHOD = "ModelStreamInfer"
IN_FLIGHT = 1024
"""Requests of one stream that may wait for their answers, with the answers that wait to be sent;
then the stream is read no further."""

Done = Callable[[pb.ModelInferResponse | ServeError], None]
Emit = Callable[[pb.ModelStreamInferResponse], None]


class Service(Protocol):
    """What a stream asks for. `timeout` arguments are seconds left of the caller's deadline."""

    def begin(
        self,
        request: pb.ModelInferRequest,
        timeout: float | None,
        done: Done,
        *,
        parent: str,
        caller: Caller,
    ) -> Abandon:
        """One answer. Raises what is wrong at once; `done` is told the rest."""

    def answers_often(self, request: pb.ModelInferRequest) -> bool:
        """Whether the model may give several answers. Raises NotFound, Unavailable."""

    def replies(
        self,
        request: pb.ModelInferRequest,
        timeout: float | None,
        *,
        parent: str,
        caller: Caller,
    ) -> AsyncIterator[pb.ModelInferResponse]:
        """All answers, each marked with whether it is the last one."""


class Stream:
    """Requests in by `take`, answers out by `emit`, each as soon as it is there.

    Whoever sends the answers says so by `sent`; it is what makes room for more. `parent` is the
    caller's span.
    """

    def __init__(
        self,
        service: Service,
        timeout: float | None,
        emit: Emit,
        parent: str = "",
        identity: Identity = EVERYBODY,
    ) -> None:
        self._service = service
        self._parent = parent
        self._identity = identity
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._emit = emit
        self._keys = count()
        self._running: dict[int, Abandon] = {}
        self._unsent = 0
        self._less = asyncio.Event()

    @property
    def full(self) -> bool:
        """Whether nothing more should be taken for now; `room` waits for it."""
        return len(self._running) + self._unsent >= IN_FLIGHT

    @property
    def busy(self) -> bool:
        """Whether something that was taken is not answered yet."""
        return bool(self._running)

    def take(self, request: pb.ModelInferRequest) -> None:
        """Begin a request. What is wrong with it becomes its answer, and the stream goes on."""
        key = next(self._keys)
        try:
            caller = let_in_next(self._identity, METHOD, request)
            try:
                self._running[key] = self._begin(key, request, caller)
            except BaseException:
                caller.close()
                raise
        except ServeError as error:
            self._put(failed(request, error))
        except Exception:
            log.exception("the gateway failed on a request of a stream")
            self._put(failed(request, EngineFailure("the server failed; its log says why")))

    def sent(self, answers: int = 1) -> None:
        """So many of the answers are on their way."""
        self._unsent -= answers
        self._less.set()

    async def room(self) -> None:
        """Wait until more can be taken."""
        while self.full:
            await self._change()

    async def finished(self) -> None:
        """Wait until all that was taken is answered."""
        while self._running:
            await self._change()

    def close(self) -> None:
        """Abandon what is not answered yet; nothing is emitted any more."""
        running, self._running = self._running, {}
        for abandon in running.values():
            abandon()

    async def _change(self) -> None:
        self._less.clear()
        await self._less.wait()

    def _left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _answer(
        self, key: int, request: pb.ModelInferRequest, outcome: pb.ModelInferResponse | ServeError
    ) -> None:
        if self._running.pop(key, None) is None:
            return
        if isinstance(outcome, ServeError):
            self._put(failed(request, outcome))
        else:
            outcome.parameters["triton_final_response"].bool_param = True
            self._put(pb.ModelStreamInferResponse(infer_response=outcome))

    def _begin(self, key: int, request: pb.ModelInferRequest, caller: Caller) -> Abandon:
        if self._service.answers_often(request):
            return self._begin_task(key, request, caller)
        done = partial(self._answer, key, request)
        begin = self._service.begin
        return begin(request, self._left(), done, parent=self._parent, caller=caller)

    def _begin_task(self, key: int, request: pb.ModelInferRequest, caller: Caller) -> Abandon:
        task = asyncio.ensure_future(self._converse(key, request, caller))
        task.add_done_callback(lambda _: caller.close())

        def abandon() -> None:
            task.cancel()

        return abandon

    async def _converse(self, key: int, request: pb.ModelInferRequest, caller: Caller) -> None:
        """Send the answers on as they come, no faster than they are taken away."""
        try:
            replies = self._service.replies
            async for reply in replies(request, self._left(), parent=self._parent, caller=caller):
                while self._unsent >= IN_FLIGHT:
                    await self._change()
                self._put(pb.ModelStreamInferResponse(infer_response=reply))
        except ServeError as error:
            self._put(failed(request, error))
        except Exception:
            log.exception("the gateway failed on a request of a stream")
            self._put(failed(request, EngineFailure("the server failed; its log says why")))
        finally:
            self._running.pop(key, None)
            self._less.set()

    def _put(self, answer: pb.ModelStreamInferResponse) -> None:
        self._unsent += 1
        self._emit(answer)
        self._less.set()


def failed(request: pb.ModelInferRequest, error: ServeError) -> pb.ModelStreamInferResponse:
    """The client tells by the id which of its requests the message is about, and by parameters what
    kind of error it is: a message of a stream has no status.
    """
    about = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
    about.parameters["triton_final_response"].bool_param = True
    about.parameters["error_kind"].string_param = error.kind
    if error.retry_after is not None:
        about.parameters["retry_after"].double_param = error.retry_after
    return pb.ModelStreamInferResponse(error_message=str(error), infer_response=about)
