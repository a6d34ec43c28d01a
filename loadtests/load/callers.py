"""One user's connection, for each protocol: tensors out, tensors in, one request at a time.

A caller has `prepare(inputs)`, which is not timed, `send(request)`, which is, and `read(answer)`,
which is done for answers that are checked.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import gevent  # type: ignore[import-untyped]
import grpc
from gevent.queue import SimpleQueue  # type: ignore[import-untyped]
from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPSocketPoolResponse
from google.protobuf.message_factory import GetMessageClass

from ds_client import messages
from ds_client.errors import ClientError, Overloaded, of_status
from ds_client.tensors import decode
from loadtests.binary import HEADER_LENGTH, body_of
from loadtests.scenarios import Arrays

SERVICE = "/inference.GRPCInferenceService"
CHANNEL = [
    ("grpc.use_local_subchannel_pool", 1),  # otherwise all users share one connection
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
]
IDLE_SECONDS = 2.0
"""A connection unused for so long may be closed by the server the moment it is used: a new one."""


class Refused(Exception):
    """The server asked to come again after so many seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Failed(Exception):
    """A request without a right answer."""


class Caller(Protocol):
    """What a tensor user speaks through. `send` raises Refused and Failed."""

    def prepare(self, inputs: Arrays) -> Any: ...
    def send(self, request: Any) -> Any: ...
    def read(self, answer: Any) -> Arrays: ...
    def close(self) -> None: ...


class Connection:
    """HTTP with one connection that is kept open."""

    def __init__(self, address: str, timeout: float) -> None:
        self._address, self._timeout = address, timeout
        self._client = self._open()
        self._used = time.monotonic()

    def _open(self) -> HTTPClient:
        host, _, port = self._address.rpartition(":")
        return HTTPClient(
            host,
            int(port),
            connection_timeout=self._timeout,
            network_timeout=self._timeout,
            concurrency=1,
        )

    def post(self, path: str, body: bytes, headers: dict[str, str]) -> HTTPSocketPoolResponse:
        """The answer, its body still to be read. Raises Refused and Failed."""
        if time.monotonic() - self._used > IDLE_SECONDS:
            self._client.close()
            self._client = self._open()
        try:
            response = self._client.post(path, body=body, headers=headers)
            self._used = time.monotonic()
            if response.status_code != 200:
                raise _unwanted(response)
        except OSError as error:
            raise Failed(f"the connection failed: {error or type(error).__name__}") from None
        except ValueError as error:
            raise Failed(f"no HTTP answer: {error or type(error).__name__}") from None
        return response

    def close(self) -> None:
        self._client.close()


def _unwanted(response: HTTPSocketPoolResponse) -> Exception:
    text = bytes(response.read()).decode("utf-8", "replace")[:200]
    message = f"HTTP {response.status_code}: {text}"
    seconds = response.get("retry-after")
    if response.status_code in (429, 503) and isinstance(seconds, str) and seconds.isdecimal():
        return Refused(message, float(seconds))
    return Failed(message)


class Http:
    """KServe v2 with the binary tensor extension."""

    def __init__(self, address: str, model: str, timeout: float) -> None:
        self._connection = Connection(address, timeout)
        self._path = f"/v2/models/{model}/infer"

    def prepare(self, inputs: Arrays) -> tuple[bytes, dict[str, str]]:
        body, head = body_of(inputs)
        return body, {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(head)}

    def send(self, request: tuple[bytes, dict[str, str]]) -> tuple[bytes, int]:
        response = self._connection.post(self._path, *request)
        try:
            body = bytes(response.read())
        except OSError as error:
            raise Failed(f"the connection failed: {error or type(error).__name__}") from None
        size = response.get(HEADER_LENGTH)
        return body, int(size) if isinstance(size, str) else len(body)

    def read(self, answer: tuple[bytes, int]) -> Arrays:
        body, at = answer
        outputs: Arrays = {}
        for tensor in json.loads(body[:at])["outputs"]:
            end = at + tensor["parameters"]["binary_data_size"]
            outputs[tensor["name"]] = decode(
                tensor["name"], tensor["datatype"], tensor["shape"], body[at:end]
            )
            at = end
        return outputs

    def close(self) -> None:
        self._connection.close()


class Grpc:
    """KServe v2 over gRPC: a call for each request, over a connection of its own."""

    def __init__(self, address: str, model: str, timeout: float) -> None:
        self._target = messages.Target(model)
        self._timeout = timeout
        self._channel = grpc.insecure_channel(address, CHANNEL)
        self._call: Callable[..., Any] | None = None

    def prepare(self, inputs: Arrays) -> Any:
        return messages.infer_request(self._target, inputs, "0")

    def send(self, request: Any) -> Any:
        if self._call is None:
            self._call = self._open(self._channel.unary_unary, request, "ModelInfer", "ModelInfer")
        try:
            return self._call(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise _failure(error) from None

    def read(self, answer: Any) -> Arrays:
        try:
            return dict(messages.outputs_of(answer))
        except ClientError as error:
            raise Failed(str(error)) from None

    def close(self) -> None:
        self._channel.close()

    def _open(self, arity: Any, request: Any, method: str, answer: str) -> Callable[..., Any]:
        """A method of the service; its answer is described in the same file as the request."""
        described = request.DESCRIPTOR.file.message_types_by_name[f"{answer}Response"]
        made: Callable[..., Any] = arity(
            f"{SERVICE}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=GetMessageClass(described).FromString,
        )
        return made


class GrpcStream(Grpc):
    """KServe v2 over gRPC: all requests of a user in one stream, opened again where it broke."""

    def __init__(self, address: str, model: str, timeout: float) -> None:
        super().__init__(address, model, timeout)
        self._requests: SimpleQueue[Any] = SimpleQueue()
        self._answers: Any = None

    def send(self, request: Any) -> Any:
        if self._answers is None:
            self._answers = self._start(request)
        self._requests.put(request)
        try:
            with gevent.Timeout(self._timeout, Failed(f"no answer in {self._timeout:g} s")):
                answer = next(self._answers)
        except grpc.RpcError as error:
            self._end()
            raise _failure(error) from None
        except StopIteration:
            self._end()
            raise Failed("the server ended the stream") from None
        except Failed:
            self._end()
            raise
        if answer.error_message:
            raise Failed(answer.error_message)
        return answer.infer_response

    def close(self) -> None:
        self._end()
        super().close()

    def _start(self, request: Any) -> Any:
        self._requests = SimpleQueue()
        method = self._open(
            self._channel.stream_stream, request, "ModelStreamInfer", "ModelStreamInfer"
        )
        return method(_until_none(self._requests))

    def _end(self) -> None:
        self._requests.put(None)
        if self._answers is not None:
            self._answers.cancel()
            self._answers = None


def _until_none(queue: SimpleQueue[Any]) -> Iterator[Any]:
    while (request := queue.get()) is not None:
        yield request


def _failure(error: Any) -> Exception:
    known = of_status(error.code(), error.details(), error.trailing_metadata())
    if isinstance(known, Overloaded) and known.retry_after is not None:
        return Refused(str(known), known.retry_after)
    return Failed(f"{error.code().name}: {known}")


CALLERS: dict[str, Callable[[str, str, float], Caller]] = {
    "http": Http,
    "grpc": Grpc,
    "grpc-stream": GrpcStream,
}
