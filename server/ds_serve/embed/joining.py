"""Joins the rows of many requests into the network's batches."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from ds_engines.base import Array
from ds_engines.encoder_tokens import Tokens
from ds_engines.errors import EngineFailure, RateLimited, ServeError, Unavailable
from ds_serve.embed.queue import LengthQueue, Row
from ds_serve.scheduler.batcher import Batcher
from ds_serve.scheduler.queue import Entry

log = logging.getLogger("ds_serve.embed")

_RECENT = 0.2
"""What the last batch's speed weighs among those before."""


class Runs(Protocol):
    """What is asked of an engine."""

    width: int

    def run(self, rows: Sequence[Tokens]) -> Array: ...


class _Ticket:
    """One request's answer, row by row."""

    def __init__(self, rows: int, width: int) -> None:
        self.answer = np.empty((rows, width), dtype=np.float32)
        self.left = rows
        self.done: asyncio.Future[Array] = asyncio.get_running_loop().create_future()


class Joiner:
    """One engine and its queue. `on_load` is told after each change: rows that run, rows that
    wait, and the tokens of these.

    All methods belong to the loop's thread.
    """

    def __init__(
        self, engine: Runs, queue: LengthQueue, on_load: Callable[[int, int, int], None]
    ) -> None:
        self._engine = engine
        self.width = engine.width
        self._queue = queue
        self._on_load = on_load
        self._tickets: set[_Ticket] = set()
        self._speed = 0.0
        self._batcher = Batcher(
            queue, 1, self._run, self._finish, lambda late: None, in_threads=True
        )

    @property
    def busy(self) -> float:
        """Seconds that the running batch has taken; 0 where none runs."""
        return self._batcher.busy

    @property
    def pending(self) -> int:
        """Requests without an answer."""
        return len(self._tickets)

    async def run(self, rows: Sequence[Tokens]) -> Array:
        """FP32 [rows, width]: the network's answer to each. Cancelling it drops what waits.

        Raises RateLimited where the queue is full, TooLarge, EngineFailure.
        """
        ticket = _Ticket(len(rows), self.width)
        try:
            self._queue.push(ticket, rows, time.monotonic())
        except RateLimited as error:
            error.retry_after = self._wait()
            raise
        self._tickets.add(ticket)
        try:
            self._pump()
            return await ticket.done
        finally:
            self._tickets.discard(ticket)
            if ticket.left:
                self._queue.cancel(ticket)
                self._tell()

    def fail_all(self, error: ServeError) -> None:
        """Answer all that is pending with an error."""
        for ticket in self._tickets:
            if not ticket.done.done():
                ticket.done.set_exception(error)

    def close(self) -> None:
        self.fail_all(Unavailable("the server shut down before the answer was finished"))
        self._batcher.close()

    def _wait(self) -> float:
        """Seconds until what waits now is done, as far as can be told."""
        return self._queue.tokens / self._speed if self._speed else 1.0

    def _pump(self) -> None:
        self._batcher.pump()
        self._tell()

    def _tell(self) -> None:
        self._on_load(self._batcher.running, len(self._queue), self._queue.tokens)

    def _run(self, entries: list[Entry]) -> tuple[Array | ServeError, float]:
        begun = time.monotonic()
        try:
            found: Array | ServeError = self._engine.run([_row(each).tokens for each in entries])
        except ServeError as error:
            found = error
        except Exception as error:  # what the engine did not foresee
            log.exception("a batch failed")
            found = EngineFailure(f"the engine failed: {type(error).__name__}")
        return found, time.monotonic() - begun

    def _finish(self, entries: list[Entry], result: tuple[Array | ServeError, float]) -> None:
        found, seconds = result
        if isinstance(found, ServeError):
            for entry in entries:
                _fail(_row(entry), found)
        else:
            speed = sum(int(str(entry.lane)) for entry in entries) / max(seconds, 1e-6)
            self._speed += (speed - self._speed) * (_RECENT if self._speed else 1.0)
            for entry, values in zip(entries, found, strict=True):
                _fill(_row(entry), values)
        self._tell()


def _row(entry: Entry) -> Row:
    assert isinstance(entry.payload, Row)
    return entry.payload


def _fill(row: Row, values: Array) -> None:
    ticket = row.owner
    assert isinstance(ticket, _Ticket)
    ticket.answer[row.place] = values
    ticket.left -= 1
    if not ticket.left and not ticket.done.done():
        ticket.done.set_result(ticket.answer)


def _fail(row: Row, error: ServeError) -> None:
    ticket = row.owner
    assert isinstance(ticket, _Ticket)
    if not ticket.done.done():
        ticket.done.set_exception(error)
