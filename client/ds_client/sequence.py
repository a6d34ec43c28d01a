"""Requests of one sequence, which a stateful model answers by what came before."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from ds_client.errors import ClientError, InvalidRequest
from ds_client.messages import Inputs, Outputs, Parameters

SequenceId = int | str

END_SECONDS = 5.0
"""How long the request may take that ends a sequence which its user left open."""


class _State:
    """What the next request of the sequence says of its place in it."""

    def __init__(self, id: SequenceId | None) -> None:
        self.id: SequenceId = secrets.randbits(62) + 1 if id is None else id
        self.begun = self.ended = False
        self.inputs: Inputs = {}

    def parameters(self, last: bool, others: Parameters | None) -> Parameters:
        if self.ended:
            raise InvalidRequest(f"sequence {self.id!r} has ended: its last request was sent")
        place = {"sequence_id": self.id, "sequence_start": not self.begun, "sequence_end": last}
        return {**(others or {}), **place}

    def answered(self, inputs: Inputs, last: bool) -> None:
        self.begun, self.ended, self.inputs = True, last, inputs

    @property
    def open(self) -> bool:
        return self.begun and not self.ended


class InferSequence:
    """Of a `with` block, at whose end the sequence ends.

    The request marked `last` ends it. Without one, leaving the block sends the latest inputs once
    more, marked as the last, and throws the answer away: the protocol has no other way to say it.
    No request is ever tried again, for the model would count it twice.
    """

    def __init__(self, infer: Callable[..., Outputs], id: SequenceId | None) -> None:
        self._infer = infer
        self._state = _State(id)

    @property
    def id(self) -> SequenceId:
        return self._state.id

    def infer(
        self,
        inputs: Inputs,
        outputs: Sequence[str] = (),
        *,
        last: bool = False,
        parameters: Parameters | None = None,
        timeout: float | None = None,
    ) -> Outputs:
        """As Client.infer; the requests must be sent one after the other."""
        said = self._state.parameters(last, parameters)
        answer = self._infer(inputs=inputs, outputs=outputs, parameters=said, timeout=timeout)
        self._state.answered(inputs, last)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._state.open:
            with suppress(ClientError):
                self.infer(self._state.inputs, last=True, timeout=END_SECONDS)


class AsyncInferSequence:
    """InferSequence with awaits, of an `async with` block."""

    def __init__(self, infer: Callable[..., Awaitable[Outputs]], id: SequenceId | None) -> None:
        self._infer = infer
        self._state = _State(id)

    @property
    def id(self) -> SequenceId:
        return self._state.id

    async def infer(
        self,
        inputs: Inputs,
        outputs: Sequence[str] = (),
        *,
        last: bool = False,
        parameters: Parameters | None = None,
        timeout: float | None = None,
    ) -> Outputs:
        """As AsyncClient.infer; the requests must be sent one after the other."""
        said = self._state.parameters(last, parameters)
        answer = await self._infer(inputs=inputs, outputs=outputs, parameters=said, timeout=timeout)
        self._state.answered(inputs, last)
        return answer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._state.open:
            with suppress(ClientError):
                await self.infer(self._state.inputs, last=True, timeout=END_SECONDS)
