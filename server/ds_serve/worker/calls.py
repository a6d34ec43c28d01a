"""A model's requests to other models of the server: the worker is a gateway to them."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from ds_engines import datatypes
from ds_engines.errors import Cancelled, DeadlineExceeded, EngineFailure, ServeError
from ds_engines.whole import ModelCall, ModelReply, Output
from ds_serve.gateway.config import Limits
from ds_serve.gateway.gateway import READY, Gateway
from ds_serve.gateway.requests import InferReply, InferRequest
from ds_serve.transport.messages import Registry, Schedule, Seen, Tensor, Watch

NOTHING_SAID = Schedule()

Replies = queue.SimpleQueue[ModelReply | ServeError]


class Calls:
    """A `Caller`: its methods are for other threads than the loop's, but `update` and `close`.

    `tell` sends a message to the supervisor. `folder` is what all gateways share. The models are
    asked for with the first call.
    """

    def __init__(self, tell: Callable[[object], None], folder: Path) -> None:
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._gateway = Gateway(Limits(), folder=folder)
        self._registries: asyncio.Queue[Registry] = asyncio.Queue()
        self._known = asyncio.Event()
        self._updating: asyncio.Task[None] | None = None

    def infer(self, call: ModelCall) -> Future[ModelReply]:
        return self._run(self._infer(call))

    def submit(self, call: ModelCall) -> Iterator[ModelReply]:
        """It runs from now on, whether the answers are taken or not."""
        replies: Replies = queue.SimpleQueue()
        running = self._run(self._pump(call, replies))
        return _taken(replies, running)

    def ready(self, model: str, version: str) -> bool:
        return bool(self._run(self._ready(model, version)).result())

    def update(self, registry: Registry) -> None:
        """The supervisor says which models there are now."""
        self._registries.put_nowait(registry)

    def close(self) -> None:
        """Fail what is under way."""
        if self._updating is not None:
            self._updating.cancel()
        self._gateway.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _infer(self, call: ModelCall) -> ModelReply:
        await self._know(call.deadline)
        return _reply(await self._gateway.infer(_request(call)))

    async def _pump(self, call: ModelCall, replies: Replies) -> None:
        last: ModelReply | ServeError = ModelReply([])
        try:
            await self._know(call.deadline)
            async for reply in self._gateway.submit(_request(call)):
                replies.put(_reply(reply))
        except ServeError as error:
            last = error
        except asyncio.CancelledError:
            last = Cancelled(f"the request to model {call.model!r} was cancelled")
            raise
        except Exception as error:
            last = EngineFailure(f"the request to model {call.model!r} failed: {error}")
            raise
        finally:
            replies.put(last)

    async def _ready(self, model: str, version: str) -> bool:
        await self._know(time.monotonic() + Limits().request_timeout)
        with suppress(ServeError):
            return self._gateway.state(model, version).state == READY
        return False

    async def _know(self, deadline: float) -> None:
        """Wait until the models are known."""
        if self._known.is_set():
            return
        if self._updating is None:
            self._updating = asyncio.create_task(self._keep_updated())
            self._tell(Watch())
        try:
            await asyncio.wait_for(self._known.wait(), max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before other models were known") from None

    async def _keep_updated(self) -> None:
        while True:
            registry = await self._registries.get()
            await self._gateway.update(registry)
            self._known.set()

            def report(serial: int = registry.serial) -> None:
                self._tell(Seen(serial, self._gateway.leaving))

            self._gateway.on_left = report
            report()


def _taken(replies: Replies, running: Future[Any]) -> Iterator[ModelReply]:
    try:
        while True:
            reply = replies.get()
            if isinstance(reply, ServeError):
                raise reply
            yield reply
            if reply.final:
                return
    finally:
        running.cancel()


def _request(call: ModelCall) -> InferRequest:
    said = Schedule(
        timeout_us=call.timeout_us, sequence=call.sequence, start=call.start, end=call.end
    )
    return InferRequest(
        model=call.model,
        version=call.version,
        inputs=[_tensor(*given) for given in call.inputs],
        arrived=time.monotonic(),
        deadline=call.deadline,
        id=call.id,
        outputs=call.outputs,
        parameters=call.parameters,
        schedule=None if said == NOTHING_SAID else said,
        partition=call.partition,
    )


def _tensor(name: str, datatype: str, array: Any) -> Tensor:
    data = bytes(datatypes.to_bytes(datatype, array, name))
    return Tensor(name, datatype, array.shape, memoryview(data))


def _reply(reply: InferReply) -> ModelReply:
    outputs = [_output(tensor) for tensor in reply.outputs]
    return ModelReply(outputs, reply.final, reply.parameters or {})


def _output(tensor: Tensor) -> Output:
    """A copy, which the model may change."""
    assert isinstance(tensor.data, memoryview), "an answer's outputs hold their bytes"
    array = datatypes.to_array(tensor.datatype, tensor.shape, tensor.data, tensor.name)
    return tensor.name, tensor.datatype, array.copy()
