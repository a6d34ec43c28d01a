"""Many requests on their way at once over one stream, for the asyncio client."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Sequence,
)
from itertools import count
from types import TracebackType
from typing import Any, Self

import grpc.aio

from ds_client import messages
from ds_client.errors import (
    Cancelled,
    ClientError,
    InvalidRequest,
    ServerFailure,
    Unavailable,
    of_call,
)
from ds_client.lease import Lease
from ds_client.messages import Inputs, Outputs, Parameters, Target
from ds_proto import grpc_service_pb2 as pb

Prepare = Callable[[Target, Inputs, str], Awaitable[Lease]]
Begin = Callable[[AsyncIterator[pb.ModelInferRequest]], Any]


class AsyncPipeline:
    """Of an `async with` block, which waits for what is still under way.

    Requests leave in the order of their calls, and answers come as they are ready. Nothing is tried
    again. Where the connection breaks, what was under way fails; the next request opens another.
    """

    def __init__(
        self, prepare: Prepare, begin: Begin, broken: Callable[[], None], in_flight: int
    ) -> None:
        if in_flight < 1:
            raise InvalidRequest(f"in_flight is {in_flight}; it must be 1 or more")
        self._prepare = prepare
        self._begin = begin
        self._broken = broken
        self._in_flight = in_flight
        self._room = asyncio.BoundedSemaphore(in_flight)
        self._ids = count()
        self._stream: _Stream | None = None
        self._closed = False

    async def infer(
        self,
        model: str,
        inputs: Inputs,
        outputs: Sequence[str] = (),
        *,
        version: str = "",
        parameters: Parameters | None = None,
        timeout: float | None = None,
    ) -> Outputs:
        """As AsyncClient.infer; call it from as many tasks as there are requests.

        `timeout`, in seconds, is what the server may take.
        """
        said = messages.with_timeout(parameters, timeout)
        async with self._room:
            id = next(self._ids)
            target = Target(model, version, outputs, said)
            with await self._prepare(target, inputs, str(id)) as lease:
                message = await self._answer(id, lease.request)
                return messages.reply_of(message, lease.read).outputs

    async def map(
        self, model: str, inputs: Iterable[Inputs], outputs: Sequence[str] = (), **named: Any
    ) -> AsyncIterator[Outputs]:
        """The answers in the order of the inputs, which are drawn while others are under way."""
        waiting: deque[asyncio.Task[Outputs]] = deque()
        try:
            for each in inputs:
                waiting.append(asyncio.ensure_future(self.infer(model, each, outputs, **named)))
                while len(waiting) >= self._in_flight or (waiting and waiting[0].done()):
                    yield await waiting.popleft()
            while waiting:
                yield await waiting.popleft()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def close(self) -> None:
        """Take no more requests, and wait for the answers to those that are under way."""
        self._closed = True
        if self._stream is not None:
            await self._stream.finish()

    async def cancel(self) -> None:
        """Give up what is under way."""
        self._closed = True
        if self._stream is not None:
            await self._stream.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            await self.close()
        else:
            await self.cancel()

    def _answer(
        self, id: int, request: pb.ModelInferRequest
    ) -> asyncio.Future[pb.ModelStreamInferResponse]:
        """Raises ClientError where no stream can be opened."""
        if self._closed:
            raise Cancelled("the pipeline is closed")
        if self._stream is None or self._stream.ended:
            self._stream = _Stream(self._begin, self._broken)
        return self._stream.add(id, request)


class _Stream:
    """One ModelStreamInfer, read by a task of its own until it ends."""

    def __init__(self, begin: Begin, broken: Callable[[], None]) -> None:
        self._broken = broken
        self._requests: asyncio.Queue[pb.ModelInferRequest | None] = asyncio.Queue()
        self._waiting: dict[int, asyncio.Future[pb.ModelStreamInferResponse]] = {}
        self.ended = False
        self._call = begin(self._drawn())
        self._reader = asyncio.ensure_future(self._read())

    def add(
        self, id: int, request: pb.ModelInferRequest
    ) -> asyncio.Future[pb.ModelStreamInferResponse]:
        self._waiting[id] = asyncio.get_running_loop().create_future()
        self._requests.put_nowait(request)
        return self._waiting[id]

    async def finish(self) -> None:
        self._requests.put_nowait(None)
        await self._reader

    async def cancel(self) -> None:
        self._call.cancel()
        await self._reader

    async def _drawn(self) -> AsyncIterator[pb.ModelInferRequest]:
        while (request := await self._requests.get()) is not None:
            yield request

    async def _read(self) -> None:
        failure: ClientError = ServerFailure("the stream ended without an answer to this request")
        try:
            async for message in self._call:
                self._take(message)
        except grpc.aio.AioRpcError as error:
            failure = of_call(error)
        except ClientError as error:
            failure = error
            self._call.cancel()
        except asyncio.CancelledError:
            failure = Cancelled("the pipeline was cancelled")
        self._fail(failure)

    def _take(self, message: pb.ModelStreamInferResponse) -> None:
        """Later answers of a model that gives several to a request are not looked at."""
        future = self._waiting.pop(messages.number_of(message), None)
        if future is not None and not future.done():
            future.set_result(message)

    def _fail(self, error: ClientError) -> None:
        self.ended = True
        waiting, self._waiting = self._waiting, {}
        self._requests.put_nowait(None)
        if isinstance(error, Unavailable):
            self._broken()
        for future in waiting.values():
            if not future.done():
                future.set_exception(type(error)(str(error), retry_after=error.retry_after))
