"""Clients' memory on GPUs: where a worker finds inputs that never were on the host, and where it
puts outputs.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from ds_engines import datatypes
from ds_engines.cuda.foreign import HANDLE_BYTES, DeviceArray, Foreign
from ds_engines.errors import InvalidRequest
from ds_serve.transport.messages import InCuda, Tensor

MOST = 64
"""Regions that stay open; those used longest ago go first."""


class OnDevice:
    """So many bytes there. No two requests' are the same."""

    def __init__(self, memory: Foreign, place: InCuda) -> None:
        self._memory, self._place = memory, place

    def __len__(self) -> int:
        return self._place.size

    def array(self, tensor: Tensor) -> DeviceArray:
        """The tensor that lies there. Raises InvalidRequest."""
        itemsize = datatypes.DATATYPES[tensor.datatype].itemsize
        if not itemsize or int(np.prod(tensor.shape)) * itemsize != len(self):
            raise InvalidRequest(
                f"input {tensor.name!r}: {tensor.datatype}{list(tensor.shape)} is not what "
                f"{len(self)} bytes of CUDA shared memory hold"
            )
        dtype = datatypes.DATATYPES[tensor.datatype].dtype
        return DeviceArray(self._memory, self._place.offset, tensor.shape, dtype)

    def put(self, output: Tensor) -> None:
        """Raises InvalidRequest where it has no room."""
        assert isinstance(output.data, memoryview), "it was made here"
        if len(output.data) > len(self):
            raise InvalidRequest(
                f"output {output.name!r} has {len(output.data)} bytes; its "
                f"shared_memory_byte_size is {len(self)}"
            )
        self._memory.put(self._place.offset, output.data)


class DeviceMemory:
    """What is open, by handle."""

    def __init__(self) -> None:
        self._open: OrderedDict[bytes, tuple[int, Foreign]] = OrderedDict()

    def find(self, place: InCuda) -> OnDevice:
        """Raises InvalidRequest, Unsupported."""
        if len(place.handle) != HANDLE_BYTES:
            raise InvalidRequest(f"a CUDA handle has {HANDLE_BYTES} bytes, not {len(place.handle)}")
        mark, memory = self._open.pop(place.handle, (None, None))
        if memory is not None and mark != place.mark:
            memory.close()  # its owner may have freed it, and have got the same again
            memory = None
        if memory is None:
            memory = Foreign(place.handle, place.device)
        self._open[place.handle] = (place.mark, memory)
        if len(self._open) > MOST:
            self._open.popitem(last=False)[1][1].close()
        return OnDevice(memory, place)
