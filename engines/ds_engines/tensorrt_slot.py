"""One slot of a TensorRT engine: what a batch needs to run beside others on the same device."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from ds_engines.base import Array, Tensors
from ds_engines.cuda.device import Device
from ds_engines.cuda.memory import Buffer, DeviceMemory
from ds_engines.cuda.stream import Graph, Stream
from ds_engines.cuda.turns import Turns
from ds_engines.errors import EngineFailure, OutOfMemory, ServeError
from ds_engines.tensorrt_builder import Shape
from ds_engines.tensorrt_library import Library
from ds_engines.tensorrt_shapes import Port

log = logging.getLogger(__name__)

OFTEN = 4
"""Runs of the same shapes after which they get a graph of their own."""

MOST_GRAPHS = 16

Key = tuple[Shape, ...]


class Machine(NamedTuple):
    """What all slots of an engine have in common. `graphs`: whether work may be recorded; `turns`
    are those of all that use the engine.
    """

    library: Library
    engine: Any
    log: Any
    device: Device
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    graphs: bool
    turns: Turns

    def fail(self, what: str) -> ServeError:
        """The error of something that TensorRT refuses with no more than its log."""
        message = f"TensorRT failed to {what}: {self.log.last}"
        full = "out of memory" in message.lower() or "outofmemory" in message.lower()
        return OutOfMemory(message) if full else EngineFailure(message)


class _Recorded(NamedTuple):
    """Kept together: a graph works with what its context holds."""

    context: Any
    graph: Graph
    shapes: dict[str, Shape]


class Slot:
    """A stream, buffers of the largest shapes, and contexts that work in the same memory, one after
    the other: one for any shapes, and one for each graph.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        machine.device.use()
        self._held: list[Any] = []
        try:
            with machine.turns.together():
                self._allocate()
        except Exception:
            self.free()
            raise
        self._seen: Counter[Key] = Counter()
        self._recorded: dict[Key, _Recorded] = {}

    def _allocate(self) -> None:
        machine, unified = self._machine, self._machine.device.unified
        self._stream = self._keep(Stream())
        self._size = machine.library.memory_size(machine.engine)
        self._memory = self._keep(DeviceMemory(self._size))
        self._buffers: dict[str, Buffer] = {}
        for port in (*machine.inputs, *machine.outputs):
            self._buffers[port.name] = self._keep(Buffer(port.size, unified=unified))
        self._sizers = {
            port.name: _sizer(machine.library) for port in machine.outputs if not port.known
        }
        self._context = self._new_context()

    def _keep(self, held: Any) -> Any:
        self._held.append(held)
        return held

    def run(self, batch: Tensors, names: Sequence[str]) -> Tensors:
        """The outputs of those names. Raises OutOfMemory and EngineFailure."""
        self._machine.device.use()
        key = tuple(batch[port.name].shape for port in self._machine.inputs)
        with self._machine.turns.together():
            shapes, answers = self._computed(batch, key, names)
        self._count(key, shapes)
        return answers

    def _computed(
        self, batch: Tensors, key: Key, names: Sequence[str]
    ) -> tuple[dict[str, Shape], Tensors]:
        for port in self._machine.inputs:
            self._buffers[port.name].put(batch[port.name], self._stream)
        shapes = self._execute(key)
        outputs = [port for port in self._machine.outputs if port.name in names]
        for port in outputs:
            self._buffers[port.name].fetch(port.nbytes(shapes.get(port.name, ())), self._stream)
        self._stream.wait()
        return shapes, self._answers(outputs, shapes)

    def watch(self, profiler: Any) -> None:
        """Have TensorRT tell it the times of layers."""
        self._context.profiler = profiler

    def _answers(self, outputs: list[Port], shapes: dict[str, Shape]) -> dict[str, Array]:
        found = {}
        for port in outputs:
            shape = shapes.get(port.name)
            if shape is None:  # it depends on the data, so the device was asked for its most
                shape = self._sizers[port.name].shape
                self._buffers[port.name].fetch(port.nbytes(shape), self._stream)
                self._stream.wait()
            found[port.name] = self._buffers[port.name].array(shape, port.dtype)
        return found

    def _execute(self, key: Key) -> dict[str, Shape]:
        """Start the work; the shapes of outputs as far as they are known before it is done."""
        recorded = self._recorded.get(key)
        if recorded is not None:
            recorded.graph.launch(self._stream)
            return recorded.shapes
        shapes = self._set(self._context, key)
        self._enqueue(self._context)
        return shapes

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self._stream.handle):
            raise self._machine.fail("run a batch")

    def _set(self, context: Any, key: Key) -> dict[str, Shape]:
        for port, shape in zip(self._machine.inputs, key, strict=True):
            if not context.set_input_shape(port.name, shape):
                raise self._machine.fail(f"take {list(shape)} for input {port.name!r}")
        found = {
            port.name: tuple(context.get_tensor_shape(port.name)) for port in self._machine.outputs
        }
        return {name: shape for name, shape in found.items() if -1 not in shape}

    def _new_context(self) -> Any:
        machine = self._machine
        context = machine.library.context(machine.engine)
        if context is None:
            raise machine.fail("make an execution context")
        if context.active_optimization_profile != 0:
            if not context.set_optimization_profile_async(0, self._stream.handle):
                raise machine.fail("use the plan's profile a second time")
            self._stream.wait()
        machine.library.give_memory(context, self._memory.address, self._size)
        for port in (*machine.inputs, *machine.outputs):
            context.set_tensor_address(port.name, self._buffers[port.name].device)
        for port in machine.outputs:
            if not port.known:
                sizer = self._sizers[port.name]
                sizer.buffer = self._buffers[port.name]
                context.set_output_allocator(port.name, sizer)
        return context

    def _count(self, key: Key, shapes: dict[str, Shape]) -> None:
        """Record shapes that come often, whose outputs' shapes are known."""
        if not self._machine.graphs or key in self._recorded:
            return
        self._seen[key] += 1
        fixed = len(shapes) == len(self._machine.outputs)
        if fixed and self._seen[key] == OFTEN and len(self._recorded) < MOST_GRAPHS:
            with self._machine.turns.alone():
                self._record(key)

    def _record(self, key: Key) -> None:
        """What cannot be recorded goes on as before."""
        try:
            context = self._new_context()
            shapes = self._set(context, key)
            self._enqueue(context)  # the first run with new shapes does more than is recorded
            self._stream.wait()
            graph = Graph()
            with self._stream.recording(graph):
                self._enqueue(context)
            self._recorded[key] = _Recorded(context, self._keep(graph), shapes)
        except ServeError as error:
            log.info("no CUDA graph for %s: %s", [list(shape) for shape in key], error)

    def free(self) -> None:
        """All that it holds. No work may be under way."""
        self._machine.device.use()
        self._recorded = {}
        self._context = None
        for held in reversed(self._held):
            held.free()
        self._held = []


def _sizer(library: Library) -> Any:
    """Tells the shape of an output, which may depend on the data, and where it goes."""

    class Sizer(library.api.IOutputAllocator):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.buffer: Buffer | None = None
            self.shape: Shape = ()

        def reallocate_output(self, name: str, memory: int, size: int, alignment: int) -> int:
            enough = self.buffer is not None and size <= self.buffer.size
            return self.buffer.device if enough and self.buffer is not None else 0

        def reallocate_output_async(
            self, name: str, memory: int, size: int, alignment: int, stream: int
        ) -> int:
            return self.reallocate_output(name, memory, size, alignment)

        def notify_shape(self, name: str, shape: Any) -> None:
            self.shape = tuple(shape)

    return Sizer()
