"""How far the building of a plan is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from ds_engines.tensorrt_builder import Built


@dataclass(frozen=True)
class Done:
    """The building has ended, with a plan or an error."""

    built: Built | None = None
    error: Exception | None = None


def steps(events: SimpleQueue[Any]) -> Iterator[Any]:
    """The events until the last, which is Done."""
    while True:
        event = events.get()
        yield event
        if isinstance(event, Done):
            return
