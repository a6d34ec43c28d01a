"""A plan by itself: TensorRT's own calls in a loop, with nothing of the engine around them."""

from __future__ import annotations

import time
from typing import Any

from ds_engines.cuda.calls import call
from ds_engines.cuda.memory import DOWN, UP, DeviceMemory
from ds_engines.cuda.stream import Stream

WARM_UP = 5


class _Lane:
    """A context with a stream and memory of its own. Pinned memory holds what would be copied."""

    def __init__(self, engine: Any, size: int) -> None:
        from cuda.bindings import runtime

        library, plan, machine = engine.library, engine.engine, engine.machine
        self.stream = Stream()
        self.context = library.context(plan)
        if self.context.active_optimization_profile != 0:
            self.context.set_optimization_profile_async(0, self.stream.handle)
            self.stream.wait()
        memory = library.memory_size(plan)
        self._held = [DeviceMemory(memory)]
        library.give_memory(self.context, self._held[0].address, memory)
        self._copies: list[tuple[int, int, int, Any]] = []
        for port in machine.inputs:
            shape = (size, *port.profile[1][1:])
            self.context.set_input_shape(port.name, shape)
            self._place(runtime, port, port.nbytes(shape), UP)
        for port in machine.outputs:
            shape = tuple(self.context.get_tensor_shape(port.name))
            self._place(runtime, port, port.nbytes(shape), DOWN)

    def _place(self, runtime: Any, port: Any, size: int, way: Any) -> None:
        place = DeviceMemory(size)
        self._held.append(place)
        host = int(call(runtime.cudaHostAlloc, size, runtime.cudaHostAllocDefault))
        self.context.set_tensor_address(port.name, place.address)
        ends = (place.address, host) if way is UP else (host, place.address)
        self._copies.append((*ends, size, way))

    def copy(self, way: Any) -> None:
        from cuda.bindings import runtime

        for to, source, size, direction in self._copies:
            if direction is way:
                call(runtime.cudaMemcpyAsync, to, source, size, direction, self.stream.handle)

    def compute(self) -> None:
        if not self.context.execute_async_v3(self.stream.handle):
            raise RuntimeError("the plan did not run")

    def whole(self) -> None:
        self.copy(UP)
        self.compute()
        self.copy(DOWN)

    def free(self) -> None:
        from cuda.bindings import runtime

        self.context = None
        for to, source, _, way in self._copies:
            call(runtime.cudaFreeHost, source if way is UP else to)
        for memory in self._held:
            memory.free()
        self.stream.free()


def rate(engine: Any, size: int, lanes: int, seconds: float) -> float:
    """Images a second with copies from and to pinned memory, `lanes` batches at a time."""
    every = [_Lane(engine, size) for _ in range(lanes)]
    try:
        for lane in every * WARM_UP:
            lane.whole()
        for lane in every:
            lane.stream.wait()
        done, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            for lane in every:
                lane.stream.wait()
                lane.whole()
                done += size
        for lane in every:
            lane.stream.wait()
        return round(done / (time.perf_counter() - began), 1)
    finally:
        for lane in every:
            lane.free()


def computed(engine: Any, size: int, seconds: float) -> float:
    """Images a second of what is on the device and stays there, one batch after the other."""
    lane = _Lane(engine, size)
    try:
        for _ in range(WARM_UP):
            lane.compute()
        lane.stream.wait()
        done, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            for _ in range(8):
                lane.compute()
                done += size
            lane.stream.wait()
        return round(done / (time.perf_counter() - began), 1)
    finally:
        lane.free()
