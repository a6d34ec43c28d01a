"""Memory of the device and of the host, and the copies between them."""

from __future__ import annotations

from typing import Any

import numpy as np
from cuda.bindings import runtime

from ds_engines.base import Array
from ds_engines.cuda.calls import call
from ds_engines.cuda.foreign import DeviceArray
from ds_engines.cuda.stream import Stream

UP = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
ANY = runtime.cudaMemcpyKind.cudaMemcpyDefault
DOWN = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost

PIECE = 4 << 20
"""Bytes of a large tensor that are handed to the device while the next are made ready."""


class DeviceMemory:
    """So many bytes on the current device, at an address that is a multiple of 256."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.address = int(call(runtime.cudaMalloc, max(size, 1)))

    def free(self) -> None:
        call(runtime.cudaFree, self.address)


class Buffer:
    """A tensor's place on the host, pinned, and its place on the device; where the device shares
    the host's memory (`unified`), they are one.

    `device` is an address; `data` is the host's, as bytes.
    """

    def __init__(self, size: int, *, unified: bool) -> None:
        self.size = size
        flags = runtime.cudaHostAllocMapped if unified else runtime.cudaHostAllocDefault
        self._host = int(call(runtime.cudaHostAlloc, max(size, 1), flags))
        self.data = _bytes(self._host, size)
        self._own: DeviceMemory | None = None
        if unified:
            self.device = int(call(runtime.cudaHostGetDevicePointer, self._host, 0))
            return
        try:
            self._own = DeviceMemory(size)
        except Exception:
            call(runtime.cudaFreeHost, self._host)
            raise
        self.device = self._own.address

    def put(self, array: Array | DeviceArray, stream: Stream) -> None:
        """Copy an array to the device. Large ones go in pieces: each is on its way while the next
        is copied into pinned memory.
        """
        if not array.size:
            return
        if isinstance(array, DeviceArray):
            self._copy(self.device, array.address, array.nbytes, ANY, stream)
            return
        source = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for start in range(0, source.nbytes, PIECE):
            stop = min(start + PIECE, source.nbytes)
            np.copyto(self.data[start:stop], source[start:stop])
            if self._own is not None:
                self._copy(self.device + start, self._host + start, stop - start, UP, stream)

    def fetch(self, size: int, stream: Stream, source: int = 0) -> None:
        """Start to copy the first `size` bytes to the host; they are there when the stream is.

        `source`: another address of the device than the buffer's own.
        """
        if size and (source or self._own is not None):
            self._copy(self._host, source or self.device, size, DOWN, stream)

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """What the host has, as an array of its own."""
        size = int(np.prod(shape)) * dtype.itemsize
        return self.data[:size].view(dtype).reshape(shape).copy()

    def free(self) -> None:
        if self._own is not None:
            self._own.free()
        self.data = np.empty(0, np.uint8)
        call(runtime.cudaFreeHost, self._host)

    @staticmethod
    def _copy(to: int, source: int, size: int, kind: Any, stream: Stream) -> None:
        call(runtime.cudaMemcpyAsync, to, source, size, kind, stream.handle)


class _Address:
    """What numpy makes a view of."""

    def __init__(self, address: int, size: int) -> None:
        self.__array_interface__ = {
            "data": (address, False),
            "shape": (size,),
            "typestr": "|u1",
            "version": 3,
        }


def _bytes(address: int, size: int) -> Array:
    return np.asarray(_Address(address, size))
