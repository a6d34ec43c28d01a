"""How far the building of a plan is, as TensorRT says it; releases before 9 do not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ds_engines.tensorrt_library import Library

Watch = Callable[[str, float], None]
"""Called with the name of what TensorRT does and how much of all is done, 0 to 1, at each step of
it; from TensorRT's threads.
"""


class _Phases:
    """Those that have begun and not ended. They are nested: what is within one is a part of the
    step which that is at.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, tuple[str, int, int]] = {}
        self._most = 0.0

    def begin(self, phase: str, parent: str, count: int) -> None:
        with self._lock:
            self._running[phase] = (parent, max(count, 1), 0)

    def end(self, phase: str) -> None:
        with self._lock:
            self._running.pop(phase, None)

    def step(self, phase: str, step: int) -> float:
        """How much of all is done after it, 0 to 1."""
        with self._lock:
            if phase in self._running:
                parent, count, _ = self._running[phase]
                self._running[phase] = (parent, count, step + 1)
            # What comes next may have more steps than were foreseen.
            self._most = max(self._most, self._done(""))
            return self._most

    def _done(self, parent: str) -> float:
        """Of the step that `parent` is at."""
        parts = [
            min(1.0, (steps + self._done(phase)) / count)
            for phase, (its, count, steps) in self._running.items()
            if its == parent
        ]
        return max(parts, default=0.0)


def monitor(library: Library, watch: Watch) -> Any:
    """What tells `watch` of each step of TensorRT's; None for a release that cannot."""
    if not hasattr(library.api, "IProgressMonitor"):
        return None
    phases = _Phases()

    class Monitor(library.api.IProgressMonitor):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase: str, parent: str | None, count: int) -> None:
            phases.begin(phase, parent or "", count)

        def phase_finish(self, phase: str) -> None:
            phases.end(phase)

        def step_complete(self, phase: str, step: int) -> bool:
            watch(phase, phases.step(phase, step))
            return True

    return Monitor()
