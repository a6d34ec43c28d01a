"""Answers that are kept for equal requests, bounded in bytes; those used longest ago go first."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

Value = TypeVar("Value")


class Budget(Protocol):
    """Bytes that several caches share."""

    @property
    def share(self) -> int:
        """How many this cache may hold."""

    def take(self, size: int) -> bool:
        """Whether so many more are free; they are taken then."""

    def give(self, size: int) -> None:
        """So many are free again."""


class Cache(Generic[Value]):
    """Least recently used. What does not fit the budget is not kept."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._kept: OrderedDict[bytes, tuple[Value, int]] = OrderedDict()
        self.size = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes) -> Value | None:
        """What is kept under the key, and from now on used last."""
        found = self._kept.get(key)
        if found is None:
            return None
        self._kept.move_to_end(key)
        return found[0]

    def put(self, key: bytes, value: Value, size: int) -> bool:
        """Whether it is kept now. `size`: the bytes that it takes."""
        self._drop(key)
        share = self._budget.share
        if size > share:
            return False
        self._shrink(share - size)
        while not self._budget.take(size):
            if not self._kept:
                return False
            self._drop(next(iter(self._kept)))
        self._kept[key] = (value, size)
        self.size += size
        return True

    def trim(self) -> None:
        """Give back what the budget does not allow any more."""
        if self._kept:
            self._shrink(self._budget.share)

    def _shrink(self, most: int) -> None:
        while self.size > most:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: bytes) -> None:
        dropped = self._kept.pop(key, None)
        if dropped is not None:
            self.size -= dropped[1]
            self._budget.give(dropped[1])
