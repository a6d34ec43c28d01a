"""Who may use a GPU while a graph is recorded: nobody but who records it.

CUDA lets no thread wait for a whole device while a stream of it records, and what libraries do when
a thread first uses them may be just that: then both the recording and the other thread's batch
would fail.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Turns:
    """Many threads at a time run batches, or one of them records, alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._recording = False

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """To be held while a batch runs; not by a thread that then asks for `alone`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._recording)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                if not self._running:
                    self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """To be held while a graph is recorded: batches that run are waited for, others wait."""
        with self._changed:
            self._changed.wait_for(lambda: not self._recording)
            self._recording = True
            self._changed.wait_for(lambda: not self._running)
        try:
            yield
        finally:
            with self._changed:
                self._recording = False
                self._changed.notify_all()
