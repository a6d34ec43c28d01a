"""What waits for the network: rows of many requests, joined by their lengths. Pure.

A lane holds rows that are padded to one length, so that a batch of them wastes little. Which lane
is next, and which of its rows, is by rank: the tokens that had been served when the request came,
and those of its own rows before. So a request of many rows shares the engine with those that come
after it, and none waits for ever.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from ds_engines.encoder import padded_length
from ds_engines.encoder_tokens import Tokens
from ds_engines.errors import RateLimited, TooLarge
from ds_serve.scheduler.queue import NEVER, Batch, Entry


class Row(NamedTuple):
    """A row of a request, which `owner` stands for, and its place there."""

    owner: object
    place: int
    tokens: Tokens


class LengthQueue:
    """Bounded by tokens, padding included: `batch_tokens` at once, `queue_tokens` waiting.

    `longest` is the longest row's length, 0 where that is not known.
    """

    def __init__(self, batch_tokens: int, queue_tokens: int, longest: int = 0) -> None:
        self._batch_tokens = batch_tokens
        self._queue_tokens = queue_tokens
        self._longest = longest
        self._lanes: dict[int, list[tuple[int, int, Entry]]] = {}
        self._rows = 0
        self._pushed = 0
        self._served = 0
        self.tokens = 0

    def __len__(self) -> int:
        return self._rows

    def push(self, owner: object, rows: Sequence[Tokens], now: float) -> None:
        """Add a request's rows. Raises TooLarge for more than the queue ever holds, RateLimited
        where it has no room for them now.
        """
        lengths = [padded_length(len(row.ids), self._longest) for row in rows]
        self._require_room(sum(lengths), len(rows))
        before = self._served
        for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            self._pushed += 1
            entry = Entry(self._pushed, length, 1, now, payload=Row(owner, index, row))
            heapq.heappush(self._lanes.setdefault(length, []), (before, self._pushed, entry))
            before += length
        self._rows += len(rows)
        self.tokens += sum(lengths)

    def cancel(self, owner: object) -> None:
        """Drop what waits of a request."""
        for length in list(self._lanes):
            lane = self._lanes[length]
            kept = [item for item in lane if item[2].payload.owner is not owner]  # type: ignore[attr-defined]
            if len(kept) != len(lane):
                self._shrink(length, len(lane) - len(kept))
                heapq.heapify(kept)
                self._put(length, kept)

    def take(self, now: float) -> Batch:
        """The next batch: rows of one length; no entries where nothing waits."""
        if not self._lanes:
            return Batch()
        length = min(self._lanes, key=lambda each: self._lanes[each][0])
        lane = self._lanes[length]
        count = min(len(lane), max(1, self._batch_tokens // length))
        entries = [heapq.heappop(lane)[2] for _ in range(count)]
        self._put(length, lane)
        self._shrink(length, count)
        self._served += count * length
        return Batch(entries)

    def next_due(self) -> float:
        """At once, where anything waits."""
        return 0.0 if self._rows else NEVER

    def _require_room(self, tokens: int, rows: int) -> None:
        if tokens > self._queue_tokens:
            raise TooLarge(
                f"{rows} inputs are {tokens} tokens with padding; a request may have "
                f"{self._queue_tokens}: send fewer inputs at a time"
            )
        if self.tokens + tokens > self._queue_tokens:
            raise RateLimited(
                f"the queue is full: {self.tokens} tokens wait, and {self._queue_tokens} may"
            )

    def _put(self, length: int, lane: list[tuple[int, int, Entry]]) -> None:
        if lane:
            self._lanes[length] = lane
        else:
            del self._lanes[length]

    def _shrink(self, length: int, rows: int) -> None:
        self._rows -= rows
        self.tokens -= rows * length
