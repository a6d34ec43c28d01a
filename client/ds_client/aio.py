"""The asyncio client: `Client` with awaits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

from ds_client import messages
from ds_client.aio_calls import AsyncCalls
from ds_client.aio_pipeline import AsyncPipeline
from ds_client.errors import ClientError
from ds_client.messages import Inputs, Outputs, Parameters, Reply, Target
from ds_client.retry import Attempts, retry_of
from ds_client.sequence import AsyncInferSequence, SequenceId
from ds_proto import grpc_service_pb2 as pb

T = TypeVar("T")


class AsyncClient(AsyncCalls):
    """Talks to a server over gRPC, from one event loop. Every call raises ClientError.

    `Settings` says what a client may be told: AsyncClient("host:8001", api_key="…", tls=True).
    """

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
        target = Target(model, version, outputs, parameters)
        with await self._lease(target, inputs, id) as lease:
            retry = retry_of(parameters, self._retry)
            return lease.outputs_of(await self._run(lease, timeout, retry))

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
        """Many requests over one stream; replies as they come, in no certain order.

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

        async with aclosing(self._replies(requests(), timeout)) as replies:
            async for reply in replies:
                yield reply
        if failure:
            raise failure[0]

    def pipeline(self, *, in_flight: int = 256, timeout: float | None = None) -> AsyncPipeline:
        """Many requests on their way at once over one stream.

        At most `in_flight` wait for their answers. `timeout` bounds the whole, in seconds.
        """
        begin = partial(self._begin, timeout=timeout)
        return AsyncPipeline(self._lease, begin, self._doubt, in_flight)

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
        attempts = Attempts(self._retry, timeout)
        begun = False
        while True:
            try:
                async with aclosing(self._replies(_drawn([request]), attempts.left())) as replies:
                    async for reply in replies:
                        text = messages.text_of(reply.outputs)
                        begun = True
                        if text:
                            yield text
                        if reply.final:
                            return
                return
            except ClientError as error:
                if begun:
                    raise
                pause = attempts.pause(error)
            await asyncio.sleep(pause)

    def sequence(
        self, model: str, *, version: str = "", id: SequenceId | None = None
    ) -> AsyncInferSequence:
        """The requests of one sequence, in an `async with` block. Without `id` it gets its own."""
        return AsyncInferSequence(partial(self.infer, model, version=version), id)


async def _drawn(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
