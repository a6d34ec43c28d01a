"""The asyncio client: `Client` with awaits."""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from functools import cached_property
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import grpc.aio

from ds_client import messages
from ds_client.client import OPTIONS
from ds_client.errors import ClientError, Unavailable, of_status
from ds_client.messages import (
    Inputs,
    ModelInfo,
    Outputs,
    Parameters,
    Reply,
    ServerInfo,
    Statistics,
    Target,
)
from ds_proto import grpc_service_pb2 as pb
from ds_proto.model_config_pb2 import ModelConfig
from ds_proto.service import METHODS

T = TypeVar("T")


class AsyncClient:
    """Talks to a server over gRPC, from one event loop. Every call raises ClientError.

    `address` is host:port. `timeout` is in seconds and bounds every call but streams; None: no
    bound. `headers` go with every call, such as {"authorization": "Bearer …"}. With `credentials`
    the connection is encrypted.
    """

    def __init__(
        self,
        address: str = "localhost:8001",
        *,
        timeout: float | None = 60.0,
        headers: Mapping[str, str] | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._address = address
        self._timeout = timeout
        self._headers = tuple((headers or {}).items())
        self._credentials = credentials

    async def infer(
        self,
        model: str,
        inputs: Inputs,
        outputs: Sequence[str] = (),
        *,
        version: str = "",
        id: str = "",
        parameters: Parameters | None = None,
        timeout: float | None = None,
    ) -> Outputs:
        """One request, one answer: output names to arrays.

        Without `outputs` the model gives all. Arrays keep their dtype; str and bytes become
        BYTES, which come back as arrays of bytes; BF16 comes back as float32.
        """
        request = messages.infer_request(Target(model, version, outputs, parameters), inputs, id)
        return messages.outputs_of(await self._call("ModelInfer", request, timeout))

    async def stream(
        self,
        model: str,
        inputs: Iterable[Inputs] | AsyncIterable[Inputs],
        outputs: Sequence[str] = (),
        *,
        version: str = "",
        parameters: Parameters | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[Reply]:
        """Many requests over one connection; replies as they come, in no certain order.

        What `inputs` raises is raised here after the last reply. A request that fails does not
        end the stream. Without `timeout` the stream may last as long as it takes.
        """
        target = Target(model, version, outputs, parameters)
        failure: list[Exception] = []

        async def requests() -> AsyncIterator[pb.ModelInferRequest]:
            index = 0
            try:
                async for each in _drawn(inputs):
                    yield messages.infer_request(target, each, str(index))
                    index += 1
            except Exception as error:
                failure.append(error)

        async with aclosing(self._stream(requests(), timeout)) as replies:
            async for reply in replies:
                yield reply
        if failure:
            raise failure[0]

    async def generate(
        self,
        model: str,
        prompt: str,
        *,
        version: str = "",
        timeout: float | None = None,
        **sampling: Any,
    ) -> AsyncIterator[str]:
        """Pieces of text as the model writes them.

        `sampling` is what the model's engine knows, such as max_tokens=64, temperature=0.5.
        Closing the iterator early stops the generation.
        """
        request = messages.generate_request(model, prompt, version, sampling)
        async with aclosing(self._stream(_drawn([request]), timeout)) as replies:
            async for reply in replies:
                text = messages.text_of(reply.outputs)
                if text:
                    yield text
                if reply.final:
                    return

    async def live(self) -> bool:
        """Whether the server answers."""
        return await self._is("ServerLive", pb.ServerLiveRequest(), "live")

    async def ready(self, model: str = "", version: str = "") -> bool:
        """Whether the server, or one model, takes requests; False where nobody answers."""
        if not model:
            return await self._is("ServerReady", pb.ServerReadyRequest(), "ready")
        request = pb.ModelReadyRequest(name=model, version=version)
        return await self._is("ModelReady", request, "ready")

    async def server(self) -> ServerInfo:
        """Who answers."""
        return messages.server_info(await self._call("ServerMetadata", pb.ServerMetadataRequest()))

    async def metadata(self, model: str, version: str = "") -> ModelInfo:
        """A model's versions and tensors."""
        request = pb.ModelMetadataRequest(name=model, version=version)
        return messages.model_info(await self._call("ModelMetadata", request))

    async def config(self, model: str, version: str = "") -> ModelConfig:
        """A model's whole configuration, as Triton's message."""
        request = pb.ModelConfigRequest(name=model, version=version)
        answer: pb.ModelConfigResponse = await self._call("ModelConfig", request)
        return answer.config

    async def statistics(self, model: str = "", version: str = "") -> list[Statistics]:
        """Of one model, or of all."""
        request = pb.ModelStatisticsRequest(name=model, version=version)
        return messages.statistics_of(await self._call("ModelStatistics", request))

    async def close(self) -> None:
        """End the connection; calls under way are cancelled."""
        if "_channel" in self.__dict__:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @cached_property
    def _channel(self) -> grpc.aio.Channel:
        """Made at the first call, inside the event loop that it will belong to."""
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._address, OPTIONS)
        return grpc.aio.secure_channel(self._address, self._credentials, OPTIONS)

    @cached_property
    def _calls(self) -> dict[str, Any]:
        return {
            name: getattr(self._channel, method.arity)(
                method.path, method.request.SerializeToString, method.response.FromString
            )
            for name, method in METHODS.items()
        }

    async def _is(self, name: str, request: Any, field: str) -> bool:
        try:
            return bool(getattr(await self._call(name, request), field))
        except Unavailable:
            return False

    async def _call(self, name: str, request: Any, timeout: float | None = None) -> Any:
        seconds = self._timeout if timeout is None else timeout
        try:
            return await self._calls[name](request, timeout=seconds, metadata=self._headers)
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from None

    async def _stream(
        self, requests: AsyncIterator[pb.ModelInferRequest], timeout: float | None
    ) -> AsyncGenerator[Reply, None]:
        call = self._calls["ModelStreamInfer"](requests, timeout=timeout, metadata=self._headers)
        try:
            async for message in call:
                yield messages.reply_of(message)
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from None
        finally:
            call.cancel()


async def _drawn(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


def _translated(error: Any) -> ClientError:
    return of_status(error.code(), error.details(), error.trailing_metadata())
