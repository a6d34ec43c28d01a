"""When a call is tried again: only what was refused before it ran, never what may have run."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from ds_client.errors import ClientError, InvalidRequest, Overloaded, Unreachable
from ds_client.messages import Parameters

SAFE = (Unreachable, Overloaded)
"""The request was not sent, or the server said that it will not run it."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Up to `attempts` in all, with pauses drawn evenly from 0 to a bound that starts with `first`
    seconds and doubles up to `most`; the server's `retry_after` comes on top. Nothing is tried
    again where the call's timeout would pass meanwhile.
    """

    attempts: int = 4
    first: float = 0.1
    most: float = 5.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first < 0 or self.most < 0:
            raise InvalidRequest(f"{self}: at least one attempt, and no times below 0")


USUAL = Retry()
ONCE = Retry(attempts=1)


def retry_of(parameters: Parameters | None, usual: Retry) -> Retry:
    """How to go about a request: one of a sequence is never repeated."""
    return ONCE if parameters and "sequence_id" in parameters else usual


class Attempts:
    """Those of one call, which may take `timeout` seconds in all; None: as long as it takes."""

    def __init__(self, retry: Retry, timeout: float | None) -> None:
        self._retry = retry
        self._made = 0
        self._deadline = None if timeout is None else time.monotonic() + timeout

    def left(self) -> float | None:
        """Seconds until the timeout."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def pause(self, error: ClientError) -> float:
        """How long to wait after this error before the next attempt; raises it if there is none."""
        self._made += 1
        if self._made >= self._retry.attempts or not isinstance(error, SAFE):
            raise error from None
        bound = min(self._retry.most, self._retry.first * 2 ** (self._made - 1))
        seconds = random.uniform(0, bound) + (error.retry_after or 0.0)  # noqa: S311
        left = self.left()
        if left is not None and seconds >= left:
            raise error from None
        return seconds
