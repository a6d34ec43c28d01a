"""Batches whose tensors are put on a device before ONNX Runtime runs, and fetched from it after."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from queue import Empty, LifoQueue
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort

from ds_engines.base import Tensors
from ds_engines.onnxruntime_session import dtype_of


class Binding(Protocol):
    """Runs whole batches, from as many threads as there are."""

    def run(self, batch: Tensors, names: Sequence[str]) -> Tensors: ...

    def close(self) -> None: ...


class Bound:
    """Copies made by ONNX Runtime itself. `device` is its name of one, such as cuda."""

    def __init__(self, session: ort.InferenceSession, device: str, index: int = 0) -> None:
        self._session, self._device, self._index = session, device, index

    def run(self, batch: Tensors, names: Sequence[str]) -> Tensors:
        binding = self._session.io_binding()
        for name, array in batch.items():
            held = np.asarray(array)  # it may be a client's, on a GPU
            value = ort.OrtValue.ortvalue_from_numpy(held, self._device, self._index)
            binding.bind_ortvalue_input(name, value)
        for name in names:
            binding.bind_output(name, self._device, self._index)
        self._session.run_with_iobinding(binding)
        return dict(zip(names, binding.copy_outputs_to_cpu(), strict=True))

    def close(self) -> None:
        del self._session


class Pinned:
    """Copies by way of pinned memory, which the device reads and writes by itself.

    Each batch that runs has a lane of its own; as many are made as run at a time. Raises
    ImportError where the package cuda-bindings is not there, and what CUDA's calls raise.
    """

    def __init__(self, session: ort.InferenceSession, index: int) -> None:
        from ds_engines.cuda import device  # noqa: PLC0415 - it needs cuda-bindings

        self._session = session
        self._device = device.find(f"cuda:{index}")
        self._lanes: LifoQueue[Lane] = LifoQueue()

    def run(self, batch: Tensors, names: Sequence[str]) -> Tensors:
        self._device.use()
        lane = self._taken()
        try:
            return lane.run(self._session, batch, names)
        finally:
            self._lanes.put(lane)

    def close(self) -> None:
        self._device.use()
        with contextlib.suppress(Empty):
            while True:
                self._lanes.get_nowait().free()
        del self._session

    def _taken(self) -> Lane:
        try:
            return self._lanes.get_nowait()
        except Empty:
            return Lane(self._device)


class Lane:
    """A stream, and a buffer for each tensor, as large as the largest that it held."""

    def __init__(self, device: Any) -> None:
        from ds_engines.cuda.stream import Stream  # noqa: PLC0415

        self._device = device
        self._stream = Stream()
        self._buffers: dict[str, Any] = {}

    def run(self, session: ort.InferenceSession, batch: Tensors, names: Sequence[str]) -> Tensors:
        self.put(batch)
        return self.fetched(names, self.computed(session, batch, names))

    def put(self, batch: Tensors) -> None:
        """On the device when it returns: ONNX Runtime's streams are others, and what layers on the
        CPU take it copies from there as soon as it is bound.
        """
        for name, array in batch.items():
            self._buffer(f"in {name}", array.nbytes).put(array, self._stream)
        self._stream.wait()

    def computed(self, session: ort.InferenceSession, batch: Tensors, names: Sequence[str]) -> Any:
        """A binding, which holds the answers on the device."""
        index, binding = self._device.index, session.io_binding()
        for name, array in batch.items():
            place = self._buffers[f"in {name}"].device
            binding.bind_input(name, "cuda", index, array.dtype, array.shape, place)
        for name in names:
            binding.bind_output(name, "cuda", index)
        session.run_with_iobinding(binding)
        return binding

    def fetched(self, names: Sequence[str], binding: Any) -> Tensors:
        values = binding.get_outputs()
        sizes = [value.tensor_size_in_bytes() for value in values]
        places = [
            self._buffer(f"out {name}", size) for name, size in zip(names, sizes, strict=True)
        ]
        for value, size, place in zip(values, sizes, places, strict=True):
            place.fetch(size, self._stream, value.data_ptr())
        self._stream.wait()
        return {
            name: place.array(tuple(value.shape()), dtype_of(value.data_type()))
            for name, value, place in zip(names, values, places, strict=True)
        }

    def _buffer(self, name: str, size: int) -> Any:
        from ds_engines.cuda.memory import Buffer  # noqa: PLC0415

        held = self._buffers.get(name)
        if held is not None and held.size >= size:
            return held
        if held is not None:
            held.free()
            del self._buffers[name]
        self._buffers[name] = Buffer(size, unified=self._device.unified)
        return self._buffers[name]

    def free(self) -> None:
        for buffer in self._buffers.values():
            buffer.free()
        self._stream.free()
