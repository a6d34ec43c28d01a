"""Answers in the order of their requests, where a model's configuration wants that."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from ds_engines.errors import Overloaded

Answered = TypeVar("Answered")


class Ordering(Generic[Answered]):
    """Holds each answer back until all requests that came before are answered, or gone.

    `bound`: requests at most that are not answered, or whose answers are held back.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._open: OrderedDict[Hashable, Answered | None] = OrderedDict()

    def __len__(self) -> int:
        """Requests that are not answered, and answers held back."""
        return len(self._open)

    def check(self) -> None:
        """Raises Overloaded where no request more may be admitted."""
        if len(self._open) >= self._bound:
            raise Overloaded(
                f"{len(self._open)} answers wait for those that preserve_ordering puts before them"
            )

    def admit(self, key: Hashable) -> None:
        """A request comes after all that came before."""
        self._open[key] = None

    def answer(self, key: Hashable, answered: Answered) -> list[Answered]:
        """The answers that may leave now, in order; nobody waits for an unknown request's."""
        if key in self._open:
            self._open[key] = answered
        return self._ripe()

    def drop(self, key: Hashable) -> list[Answered]:
        """A request is gone without an answer: those behind it wait for it no longer."""
        self._open.pop(key, None)
        return self._ripe()

    def _ripe(self) -> list[Answered]:
        ripe: list[Answered] = []
        while self._open:
            key = next(iter(self._open))
            answered = self._open[key]
            if answered is None:
                break
            ripe.append(answered)
            del self._open[key]
        return ripe
