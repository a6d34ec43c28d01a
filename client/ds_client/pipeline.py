"""Many requests on their way at once over one stream, for the blocking client."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from itertools import count
from queue import SimpleQueue
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc

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

Prepare = Callable[[Target, Inputs, str], Lease]
Begin = Callable[[Iterator[pb.ModelInferRequest]], Any]


class Pipeline:
    """Of a `with` block, which waits for what is still under way. May be shared by threads.

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
        self._room = threading.BoundedSemaphore(in_flight)
        self._lock = threading.Lock()
        self._ids = count()
        self._stream: _Stream | None = None
        self._closed = False

    def infer(
        self,
        model: str,
        inputs: Inputs,
        outputs: Sequence[str] = (),
        *,
        version: str = "",
        parameters: Parameters | None = None,
        timeout: float | None = None,
    ) -> Future[Outputs]:
        """As Client.infer, but the answer is a future. Waits where too many are under way.

        `timeout`, in seconds, is what the server may take. Raises InvalidRequest for what cannot be
        sent; the future raises the rest.
        """
        said = messages.with_timeout(parameters, timeout)
        self._room.acquire()
        try:
            id = next(self._ids)
            lease = self._prepare(Target(model, version, outputs, said), inputs, str(id))
        except BaseException:
            self._room.release()
            raise
        future: Future[Outputs] = Future()
        future.add_done_callback(lambda _: self._room.release())
        waiting = _Waiting(future, lease)
        try:
            self._send(id, waiting)
        except ClientError as error:
            waiting.fail(error)
        return future

    def map(
        self, model: str, inputs: Iterable[Inputs], outputs: Sequence[str] = (), **named: Any
    ) -> Iterator[Outputs]:
        """The answers in the order of the inputs, which are drawn while others are under way."""
        waiting: deque[Future[Outputs]] = deque()
        for each in inputs:
            waiting.append(self.infer(model, each, outputs, **named))
            while len(waiting) >= self._in_flight or (waiting and waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def close(self) -> None:
        """Take no more requests, and wait for the answers to those that are under way."""
        self._end(_Stream.finish)

    def cancel(self) -> None:
        """Give up what is under way."""
        self._end(_Stream.cancel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.cancel()

    def _send(self, id: int, waiting: _Waiting) -> None:
        """Raises ClientError where no stream can be opened."""
        with self._lock:
            if self._closed:
                raise Cancelled("the pipeline is closed")
            if self._stream is None or not self._stream.add(id, waiting):
                self._stream = _Stream(self._begin, self._broken, id, waiting)

    def _end(self, how: Callable[[_Stream], None]) -> None:
        with self._lock:
            self._closed, stream = True, self._stream
        if stream is not None:
            how(stream)


class _Waiting(NamedTuple):
    future: Future[Outputs]
    lease: Lease

    def answer(self, message: pb.ModelStreamInferResponse) -> None:
        try:
            outputs = messages.reply_of(message, self.lease.read).outputs
        except ClientError as error:
            self.fail(error)
        else:
            self.lease.end(None)
            if self.future.set_running_or_notify_cancel():
                self.future.set_result(outputs)

    def fail(self, error: ClientError) -> None:
        self.lease.end(error)
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class _Stream:
    """One ModelStreamInfer, read by a thread of its own until it ends.

    It begins with its first request: one that fails to connect may end before a request is added.
    """

    def __init__(
        self, begin: Begin, broken: Callable[[], None], id: int, waiting: _Waiting
    ) -> None:
        self._broken = broken
        self._requests: SimpleQueue[pb.ModelInferRequest | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = {id: waiting}
        self._requests.put(waiting.lease.request)
        self._ended = False
        self._call = begin(iter(self._requests.get, None))
        self._reader = threading.Thread(target=self._read, name="ds-client-pipeline", daemon=True)
        self._reader.start()

    def add(self, id: int, waiting: _Waiting) -> bool:
        """False where the stream has ended."""
        with self._lock:
            if self._ended:
                return False
            self._waiting[id] = waiting
            self._requests.put(waiting.lease.request)
            return True

    def finish(self) -> None:
        self._requests.put(None)
        self._reader.join()

    def cancel(self) -> None:
        self._call.cancel()
        self._reader.join()

    def _read(self) -> None:
        failure: ClientError = ServerFailure("the stream ended without an answer to this request")
        try:
            for message in self._call:
                self._take(message)
        except grpc.RpcError as error:
            failure = of_call(error)
        except ClientError as error:
            failure = error
            self._call.cancel()
        self._fail(failure)

    def _take(self, message: pb.ModelStreamInferResponse) -> None:
        """Later answers of a model that gives several to a request are not looked at."""
        waiting = self._waiting.pop(messages.number_of(message), None)
        if waiting is not None:
            waiting.answer(message)

    def _fail(self, error: ClientError) -> None:
        with self._lock:
            self._ended = True
            waiting, self._waiting = self._waiting, {}
        self._requests.put(None)  # lets the thread go that gRPC draws the requests with
        if isinstance(error, Unavailable):
            self._broken()
        for each in waiting.values():
            each.fail(error)
