"""The blocking client."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from types import TracebackType
from typing import Any, Self

import grpc

from ds_client import messages
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

OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


class Client:
    """Talks to a server over gRPC; may be shared by threads. Every call raises ClientError.

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
        self._timeout = timeout
        self._headers = tuple((headers or {}).items())
        if credentials is None:
            self._channel = grpc.insecure_channel(address, OPTIONS)
        else:
            self._channel = grpc.secure_channel(address, credentials, OPTIONS)
        self._calls = {
            name: getattr(self._channel, method.arity)(
                method.path, method.request.SerializeToString, method.response.FromString
            )
            for name, method in METHODS.items()
        }

    def infer(
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
        return messages.outputs_of(self._call("ModelInfer", request, timeout))

    def stream(
        self,
        model: str,
        inputs: Iterable[Inputs],
        outputs: Sequence[str] = (),
        *,
        version: str = "",
        parameters: Parameters | None = None,
        timeout: float | None = None,
    ) -> Iterator[Reply]:
        """Many requests over one connection; replies as they come, in no certain order.

        `inputs` is drawn from another thread while replies are read; what it raises is raised
        here after the last reply. A request that fails does not end the stream. Without `timeout`
        the stream may last as long as it takes.
        """
        target = Target(model, version, outputs, parameters)
        feed = _Feed(
            messages.infer_request(target, each, str(index)) for index, each in enumerate(inputs)
        )
        yield from self._stream(feed, timeout)
        if feed.failure is not None:
            raise feed.failure

    def generate(
        self,
        model: str,
        prompt: str,
        *,
        version: str = "",
        timeout: float | None = None,
        **sampling: Any,
    ) -> Iterator[str]:
        """Pieces of text as the model writes them.

        `sampling` is what the model's engine knows, such as max_tokens=64, temperature=0.5.
        Leaving the loop early stops the generation.
        """
        request = messages.generate_request(model, prompt, version, sampling)
        with closing(self._stream(_Feed([request]), timeout)) as replies:
            for reply in replies:
                text = messages.text_of(reply.outputs)
                if text:
                    yield text
                if reply.final:
                    return

    def live(self) -> bool:
        """Whether the server answers."""
        return self._is("ServerLive", pb.ServerLiveRequest(), "live")

    def ready(self, model: str = "", version: str = "") -> bool:
        """Whether the server, or one model, takes requests; False where nobody answers."""
        if not model:
            return self._is("ServerReady", pb.ServerReadyRequest(), "ready")
        return self._is("ModelReady", pb.ModelReadyRequest(name=model, version=version), "ready")

    def server(self) -> ServerInfo:
        """Who answers."""
        return messages.server_info(self._call("ServerMetadata", pb.ServerMetadataRequest()))

    def metadata(self, model: str, version: str = "") -> ModelInfo:
        """A model's versions and tensors."""
        request = pb.ModelMetadataRequest(name=model, version=version)
        return messages.model_info(self._call("ModelMetadata", request))

    def config(self, model: str, version: str = "") -> ModelConfig:
        """A model's whole configuration, as Triton's message."""
        request = pb.ModelConfigRequest(name=model, version=version)
        answer: pb.ModelConfigResponse = self._call("ModelConfig", request)
        return answer.config

    def statistics(self, model: str = "", version: str = "") -> list[Statistics]:
        """Of one model, or of all."""
        request = pb.ModelStatisticsRequest(name=model, version=version)
        return messages.statistics_of(self._call("ModelStatistics", request))

    def close(self) -> None:
        """End the connection; calls under way are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _is(self, name: str, request: Any, field: str) -> bool:
        try:
            return bool(getattr(self._call(name, request), field))
        except Unavailable:
            return False

    def _call(self, name: str, request: Any, timeout: float | None = None) -> Any:
        seconds = self._timeout if timeout is None else timeout
        try:
            return self._calls[name](request, timeout=seconds, metadata=self._headers)
        except grpc.RpcError as error:
            raise _translated(error) from None

    def _stream(self, feed: _Feed, timeout: float | None) -> Generator[Reply, None, None]:
        call = self._calls["ModelStreamInfer"](feed, timeout=timeout, metadata=self._headers)
        try:
            for message in call:
                yield messages.reply_of(message)
        except grpc.RpcError as error:
            raise _translated(error) from None
        finally:
            call.cancel()


class _Feed:
    """Requests for grpc to draw from a thread of its own, which would swallow an exception."""

    def __init__(self, requests: Iterable[pb.ModelInferRequest]) -> None:
        self._requests = iter(requests)
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[pb.ModelInferRequest]:
        return self

    def __next__(self) -> pb.ModelInferRequest:
        try:
            return next(self._requests)
        except StopIteration:
            raise
        except Exception as error:
            self.failure = error
            raise StopIteration from None


def _translated(error: Any) -> ClientError:
    return of_status(error.code(), error.details(), error.trailing_metadata())
