"""The asyncio client's calls: connections, attempts, and tensors in shared memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import cached_property
from itertools import cycle
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import grpc.aio

from ds_client import messages, questions
from ds_client.aio_asking import AsyncAsking
from ds_client.errors import Cancelled, ClientError, InvalidRequest, Unsupported, of_call
from ds_client.lease import Lease, Rows, rows_of
from ds_client.messages import Inputs, Reply, Target
from ds_client.questions import Question
from ds_client.retry import ONCE, Attempts, Retry
from ds_client.settings import UNREGISTER_SECONDS, Settings
from ds_proto import grpc_service_pb2 as pb
from ds_proto.service import METHODS

T = TypeVar("T")


class AsyncCalls(Settings, AsyncAsking):
    """Everything that a client does but inference itself."""

    async def close(self) -> None:
        """End the connections; calls under way are cancelled."""
        if self._leases is not None:
            self._leases.memory.close()
            await self._retire()
        self._closed = True
        for channel in self.__dict__.get("_channels", ()):
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _channel(self) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._address, self._options, self._compression)
        return grpc.aio.secure_channel(
            self._address, self._credentials, self._options, self._compression
        )

    @cached_property
    def _channels(self) -> list[grpc.aio.Channel]:
        """Made at the first call, inside the event loop that they will belong to."""
        return [self._channel() for _ in range(self._connections)]

    @cached_property
    def _turns(self) -> Iterator[dict[str, Callable[..., Any]]]:
        return cycle([_stubs(channel) for channel in self._channels])

    def _stub(self, name: str) -> Callable[..., Any]:
        if self._closed:
            raise Cancelled("the client is closed")
        return next(self._turns)[name]

    async def _ask(
        self, question: Question[T], timeout: float | None = None, retry: Retry | None = None
    ) -> T:
        return question.read(await self._call(question.method, question.request, timeout, retry))

    async def _call(
        self, name: str, request: Any, timeout: float | None = None, retry: Retry | None = None
    ) -> Any:
        attempts = Attempts(retry or self._retry, self._timeout if timeout is None else timeout)
        while True:
            try:
                return await self._stub(name)(
                    request, timeout=attempts.left(), metadata=self._headers
                )
            except grpc.aio.AioRpcError as error:
                pause = attempts.pause(of_call(error))
            await asyncio.sleep(pause)

    def _begin(self, requests: AsyncIterator[pb.ModelInferRequest], timeout: float | None) -> Any:
        return self._stub("ModelStreamInfer")(requests, timeout=timeout, metadata=self._headers)

    async def _replies(
        self, requests: AsyncIterator[pb.ModelInferRequest], timeout: float | None
    ) -> AsyncGenerator[Reply, None]:
        call = self._begin(requests, timeout)
        try:
            async for message in call:
                yield messages.reply_of(message)
        except grpc.aio.AioRpcError as error:
            raise of_call(error) from None
        finally:
            call.cancel()

    # Tensors in shared memory. Without it a lease is a request and no more.

    async def _lease(self, target: Target, inputs: Inputs, id: str) -> Lease:
        leases = self._leases
        if leases is None:
            return Lease(messages.infer_request(target, inputs, id))
        if not leases.knows(target):
            leases.learn(target, await self._rows(target))
        lease = leases.make(target, inputs, id)
        try:
            await self._register(lease)
        except BaseException as error:
            lease.end(error)
            raise
        return lease

    async def _rows(self, target: Target) -> Rows:
        try:
            info = await self.metadata(target.model, target.version)
            return rows_of(info, await self.config(target.model, target.version))
        except Unsupported:
            return {}

    async def _run(
        self, lease: Lease, timeout: float | None, retry: Retry
    ) -> pb.ModelInferResponse:
        answer: pb.ModelInferResponse
        try:
            answer = await self._call("ModelInfer", lease.request, timeout, retry)
        except InvalidRequest as error:
            if not lease.forgotten(error):
                raise
            await self._register(lease)
            answer = await self._call("ModelInfer", lease.request, timeout, retry)
        return answer

    async def _register(self, lease: Lease) -> None:
        await self._retire()
        region = lease.region
        if region is None or (region.known and not region.forgotten):
            return
        if region.known:
            await self._ask(questions.unregister(region.name))
        await self._ask(questions.register(region.name, region.size))
        region.known, region.forgotten = True, False

    async def _retire(self) -> None:
        for name in self._leases.memory.retired() if self._leases else ():
            with suppress(ClientError):
                await self._ask(questions.unregister(name), UNREGISTER_SECONDS, ONCE)

    def _doubt(self) -> None:
        if self._leases is not None:
            self._leases.memory.doubt()


def _stubs(channel: grpc.aio.Channel) -> dict[str, Callable[..., Any]]:
    return {
        name: getattr(channel, method.arity)(
            method.path, method.request.SerializeToString, method.response.FromString
        )
        for name, method in METHODS.items()
    }
