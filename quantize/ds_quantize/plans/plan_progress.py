"""How far the building of a plan is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Done:
    """The building has ended, with a plan or an error."""

    plan: bytes = b""
    error: Exception | None = None


def steps(events: SimpleQueue[Any]) -> Iterator[Any]:
    """The events until the last, which is Done."""
    while True:
        event = events.get()
        yield event
        if isinstance(event, Done):
            return


def monitor(library: ModuleType, events: SimpleQueue[Any]) -> Any:
    """What tells `events` of each step of TensorRT's; None for a release that cannot."""
    if not hasattr(library, "IProgressMonitor"):
        return None

    class Monitor(library.IProgressMonitor):  # type: ignore[name-defined, misc]
        """Called from TensorRT's threads."""

        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase: str, parent: str | None, count: int) -> None:
            """Phases are nested; steps alone are counted."""

        def phase_finish(self, phase: str) -> None:
            """See phase_start."""

        def step_complete(self, phase: str, step: int) -> bool:
            events.put(phase)
            return True

    return Monitor()
