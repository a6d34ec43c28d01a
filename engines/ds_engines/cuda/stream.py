"""Streams, events, and graphs: work for the device that is recorded once and repeated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from cuda.bindings import runtime

from ds_engines.cuda.calls import call

_ALONE = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
"""Other threads may allocate memory while this one records."""


class Stream:
    """Work that the device does in order. `handle` is its address."""

    def __init__(self) -> None:
        self._stream = call(runtime.cudaStreamCreateWithFlags, runtime.cudaStreamNonBlocking)
        self.handle = int(self._stream)

    def wait(self) -> None:
        """Until all that was given to it is done. Raises what went wrong meanwhile."""
        call(runtime.cudaStreamSynchronize, self._stream)

    @contextlib.contextmanager
    def recording(self, graph: Graph) -> Iterator[None]:
        """What is given to the stream meanwhile becomes `graph`, and is not done."""
        call(runtime.cudaStreamBeginCapture, self._stream, _ALONE)
        try:
            yield
        except BaseException:
            _, broken = runtime.cudaStreamEndCapture(self._stream)
            if broken:
                runtime.cudaGraphDestroy(broken)
            raise
        graph.made(call(runtime.cudaStreamEndCapture, self._stream))

    def free(self) -> None:
        call(runtime.cudaStreamDestroy, self._stream)


class Graph:
    """Recorded work, at the addresses that it was recorded with."""

    def __init__(self) -> None:
        self._ready: object | None = None

    def made(self, recorded: object) -> None:
        """Make it ready from what a stream has recorded."""
        try:
            self._ready = call(runtime.cudaGraphInstantiate, recorded, 0)
        finally:
            call(runtime.cudaGraphDestroy, recorded)

    def launch(self, stream: Stream) -> None:
        call(runtime.cudaGraphLaunch, self._ready, stream.handle)

    def free(self) -> None:
        if self._ready is not None:
            call(runtime.cudaGraphExecDestroy, self._ready)


class Event:
    """A point in a stream's work, with the time at which it was reached."""

    def __init__(self) -> None:
        self._event = call(runtime.cudaEventCreate)

    def record(self, stream: Stream) -> None:
        call(runtime.cudaEventRecord, self._event, stream.handle)

    def wait(self) -> None:
        call(runtime.cudaEventSynchronize, self._event)

    def since(self, earlier: Event) -> float:
        """Milliseconds between the two, both of which have been reached."""
        return float(call(runtime.cudaEventElapsedTime, earlier._event, self._event))

    def free(self) -> None:
        call(runtime.cudaEventDestroy, self._event)
