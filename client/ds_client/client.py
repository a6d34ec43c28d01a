"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from ds_client import messages
from ds_client.calls import Calls, Feed
from ds_client.errors import ClientError
from ds_client.messages import Inputs, Outputs, Parameters, Reply, Target
from ds_client.pipeline import Pipeline
from ds_client.retry import Attempts, retry_of
from ds_client.sequence import InferSequence, SequenceId


class Client(Calls):
    """Talks to a server over gRPC; may be shared by threads. Every call raises ClientError.

    `Settings` says what a client may be told: Client("host:8001", api_key="…", tls=True).
    """

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
        target = Target(model, version, outputs, parameters)
        with self._lease(target, inputs, id) as lease:
            return lease.outputs_of(self._run(lease, timeout, retry_of(parameters, self._retry)))

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
        """Many requests over one stream; replies as they come, in no certain order.

        `inputs` is drawn from another thread while replies are read; what it raises is raised
        here after the last reply. A request that fails does not end the stream. Without `timeout`
        the stream may last as long as it takes.
        """
        target = Target(model, version, outputs, parameters)
        feed = Feed(
            messages.infer_request(target, each, str(index)) for index, each in enumerate(inputs)
        )
        yield from self._replies(feed, timeout)
        if feed.failure is not None:
            raise feed.failure

    def pipeline(self, *, in_flight: int = 256, timeout: float | None = None) -> Pipeline:
        """Many requests on their way at once over one stream, each with a future of its own.

        At most `in_flight` wait for their answers. `timeout` bounds the whole, in seconds.
        """
        return Pipeline(self._lease, partial(self._begin, timeout=timeout), self._doubt, in_flight)

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
        attempts = Attempts(self._retry, timeout)
        begun = False
        while True:
            try:
                with closing(self._replies(Feed([request]), attempts.left())) as replies:
                    for reply in replies:
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
                time.sleep(attempts.pause(error))

    def sequence(
        self, model: str, *, version: str = "", id: SequenceId | None = None
    ) -> InferSequence:
        """The requests of one sequence, in a `with` block. Without `id` it gets one of its own."""
        return InferSequence(partial(self.infer, model, version=version), id)
