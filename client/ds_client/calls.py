"""The blocking client's calls: connections, attempts, and tensors in shared memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from itertools import count
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from ds_client import messages, questions
from ds_client.asking import Asking
from ds_client.errors import Cancelled, ClientError, InvalidRequest, Unsupported, of_call
from ds_client.lease import Lease, Rows, rows_of
from ds_client.messages import Inputs, Reply, Target
from ds_client.questions import Question
from ds_client.retry import ONCE, Attempts, Retry
from ds_client.settings import UNREGISTER_SECONDS, Settings
from ds_proto import grpc_service_pb2 as pb
from ds_proto.service import METHODS

T = TypeVar("T")


class Calls(Settings, Asking):
    """Everything that a client does but inference itself."""

    def close(self) -> None:
        """End the connections; calls under way are cancelled."""
        if self._leases is not None:
            self._leases.memory.close()
            self._retire()
        self._closed = True
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> None:
        self._channels = [self._channel() for _ in range(self._connections)]
        self._stubs = [_stubs(channel) for channel in self._channels]
        self._turns = count()

    def _channel(self) -> grpc.Channel:
        if self._credentials is None:
            return grpc.insecure_channel(self._address, self._options, self._compression)
        return grpc.secure_channel(
            self._address, self._credentials, self._options, self._compression
        )

    def _stub(self, name: str) -> Callable[..., Any]:
        if self._closed:
            raise Cancelled("the client is closed")
        return self._stubs[next(self._turns) % len(self._stubs)][name]

    def _ask(
        self, question: Question[T], timeout: float | None = None, retry: Retry | None = None
    ) -> T:
        return question.read(self._call(question.method, question.request, timeout, retry))

    def _call(
        self, name: str, request: Any, timeout: float | None = None, retry: Retry | None = None
    ) -> Any:
        attempts = Attempts(retry or self._retry, self._timeout if timeout is None else timeout)
        while True:
            try:
                return self._stub(name)(request, timeout=attempts.left(), metadata=self._headers)
            except grpc.RpcError as error:
                pause = attempts.pause(of_call(error))
            time.sleep(pause)

    def _begin(self, requests: Iterator[Any], timeout: float | None) -> Any:
        return self._stub("ModelStreamInfer")(requests, timeout=timeout, metadata=self._headers)

    def _replies(self, feed: Feed, timeout: float | None) -> Generator[Reply, None, None]:
        call = self._begin(feed, timeout)
        try:
            for message in call:
                yield messages.reply_of(message)
        except grpc.RpcError as error:
            raise of_call(error) from None
        finally:
            call.cancel()

    # Tensors in shared memory. Without it a lease is a request and no more.

    def _lease(self, target: Target, inputs: Inputs, id: str) -> Lease:
        leases = self._leases
        if leases is None:
            return Lease(messages.infer_request(target, inputs, id))
        if not leases.knows(target):
            leases.learn(target, self._rows(target))
        lease = leases.make(target, inputs, id)
        try:
            self._register(lease)
        except BaseException as error:
            lease.end(error)
            raise
        return lease

    def _rows(self, target: Target) -> Rows:
        try:
            info = self.metadata(target.model, target.version)
            return rows_of(info, self.config(target.model, target.version))
        except Unsupported:
            return {}

    def _run(self, lease: Lease, timeout: float | None, retry: Retry) -> pb.ModelInferResponse:
        answer: pb.ModelInferResponse
        try:
            answer = self._call("ModelInfer", lease.request, timeout, retry)
        except InvalidRequest as error:
            if not lease.forgotten(error):
                raise
            self._register(lease)
            answer = self._call("ModelInfer", lease.request, timeout, retry)
        return answer

    def _register(self, lease: Lease) -> None:
        self._retire()
        region = lease.region
        if region is None or (region.known and not region.forgotten):
            return
        if region.known:
            self._ask(questions.unregister(region.name))
        self._ask(questions.register(region.name, region.size))
        region.known, region.forgotten = True, False

    def _retire(self) -> None:
        for name in self._leases.memory.retired() if self._leases else ():
            with suppress(ClientError):
                self._ask(questions.unregister(name), UNREGISTER_SECONDS, ONCE)

    def _doubt(self) -> None:
        if self._leases is not None:
            self._leases.memory.doubt()


class Feed:
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


def _stubs(channel: grpc.Channel) -> dict[str, Callable[..., Any]]:
    return {
        name: getattr(channel, method.arity)(
            method.path, method.request.SerializeToString, method.response.FromString
        )
        for name, method in METHODS.items()
    }
