"""A request that no client has sent."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from ds_engines.base import Tensors
from ds_engines.errors import ServeError
from ds_engines.whole import Output

SECONDS = 300.0
"""How long a warm-up may take."""


class OneRequest:
    """Keeps the last outputs that it is answered with."""

    id = ""
    sequence: int | str = 0
    start = end = False
    timeout_us = 0
    partition = ""
    cancelled = False

    def __init__(self, inputs: Tensors, outputs: tuple[str, ...]) -> None:
        self.inputs = {name: array.copy() for name, array in inputs.items()}
        self.outputs = outputs
        self.parameters: Mapping[str, Any] = {}
        self.deadline = time.monotonic() + SECONDS
        self._last: Tensors = {}
        self._done: Future[Tensors] = Future()

    def respond(
        self,
        outputs: Sequence[Output] | None,
        error: ServeError | None,
        *,
        final: bool,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        if outputs:
            self._last = {name: array for name, _, array in outputs}
        if final and not self._done.done():
            if error is None:
                self._done.set_result(self._last)
            else:
                self._done.set_exception(error)

    def result(self) -> Tensors:
        """Raises the error that it was answered with, TimeoutError."""
        return self._done.result(SECONDS)
