"""Memory of a GPU that another process has, and tensors in it."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from ds_engines.base import Array
from ds_engines.errors import InvalidRequest, Unsupported

HANDLE_BYTES = 64
"""Of a `cudaIpcMemHandle_t`."""


class Foreign:
    """What a handle of CUDA's interprocess memory opens, on the GPU of that number.

    Raises Unsupported where CUDA's bindings are not there, and InvalidRequest for a handle that
    cannot be opened.
    """

    def __init__(self, handle: bytes, number: int) -> None:
        try:
            from cuda.bindings import runtime  # noqa: PLC0415 - most workers need none

            from ds_engines.cuda.calls import call  # noqa: PLC0415
        except ImportError:
            raise Unsupported(
                "CUDA shared memory takes the package cuda-bindings: pip install 'ds-serve[cuda]'"
            ) from None
        self._runtime, self._call, self.number = runtime, call, number
        mine = runtime.cudaIpcMemHandle_t()
        ctypes.memmove(mine.getPtr(), handle, HANDLE_BYTES)
        try:
            call(runtime.cudaSetDevice, number)
            flags = runtime.cudaIpcMemLazyEnablePeerAccess
            self.address = int(call(runtime.cudaIpcOpenMemHandle, mine, flags))
        except Exception as error:
            raise InvalidRequest(
                f"CUDA shared memory on GPU {number} cannot be opened: {error}"
            ) from None

    def fetch(self, address: int, into: Array) -> None:
        """Copy to the host."""
        self._call(self._runtime.cudaSetDevice, self.number)
        self._copy(into.ctypes.data, address, into.nbytes)

    def put(self, offset: int, data: memoryview) -> None:
        """Copy from the host."""
        self._call(self._runtime.cudaSetDevice, self.number)
        held = np.frombuffer(data, np.uint8)
        self._copy(self.address + offset, held.ctypes.data, held.nbytes)

    def _copy(self, to: int, source: int, size: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDefault
        if size:
            self._call(self._runtime.cudaMemcpy, to, source, size, kind)

    def close(self) -> None:
        self._call(self._runtime.cudaSetDevice, self.number)
        self._call(self._runtime.cudaIpcCloseMemHandle, self.address)


class DeviceArray(np.lib.mixins.NDArrayOperatorsMixin):
    """A tensor that lies there. Numpy, where it is given one, makes a copy on the host; so do sums
    and products of engines that others have written.
    """

    def __init__(self, memory: Foreign, offset: int, shape: tuple[int, ...], dtype: Any) -> None:
        self._memory = memory
        self.address, self.number = memory.address + offset, memory.number
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.ndim, self.size = len(shape), int(np.prod(shape))
        self.nbytes = self.size * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "version": 3,
        }

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        held = np.empty(self.shape, self.dtype)
        self._memory.fetch(self.address, held)
        return held if dtype is None else held.astype(dtype)

    def __array_ufunc__(self, function: Any, method: str, *given: Any, **more: Any) -> Any:
        held = [np.asarray(each) if isinstance(each, DeviceArray) else each for each in given]
        return getattr(function, method)(*held, **more)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        return np.asarray(self)[key]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(np.asarray(self), name)
