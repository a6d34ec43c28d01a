"""Tensors in clients' memory on GPUs, on their way to a worker. Host memory stands in for a GPU's:
what CUDA itself does is shown where there is one (test_cuda_shared_memory_gpu.py).
"""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from ds_engines.errors import InvalidRequest, NotFound
from ds_serve.gateway.regions import Place, Region, Regions
from ds_serve.gateway.requests import InferRequest
from ds_serve.gateway.shared_inputs import SharedInputs
from ds_serve.transport.link import Link
from ds_serve.transport.messages import InCuda, Infer, Tensor
from ds_serve.worker import device_memory
from ds_serve.worker.shared import SharedMemory
from ds_serve.worker.work import arrays_of

HANDLE = bytes(range(64))


class HostMemory:
    """As `Foreign`, of memory that is the host's."""

    opened = 0

    def __init__(self, handle: bytes, number: int) -> None:
        type(self).opened += 1
        assert handle == HANDLE
        self.number, self.held = number, np.arange(16, dtype=np.float32)
        self.address = self.held.ctypes.data

    def fetch(self, address: int, into: Any) -> None:
        ctypes.memmove(into.ctypes.data, address, into.nbytes)

    def put(self, offset: int, data: memoryview) -> None:
        ctypes.memmove(self.address + offset, bytes(data), len(data))

    def close(self) -> None:
        self.address = 0


@pytest.fixture
def regions(tmp_path: Path) -> Regions:
    made = Regions(tmp_path / "regions")
    made.register(Region("r", "", 0, 64, HANDLE, 1))
    return made


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> SharedMemory:
    monkeypatch.setattr(device_memory, "Foreign", HostMemory)
    return SharedMemory()


def sent(regions: Regions, offset: int, *shape: int) -> Infer:
    """A request with one input there, as the worker gets it."""
    size = 4 * int(np.prod(shape))
    tensor = Tensor("x", "FP32", shape, regions.view(Place("r", offset, size)))
    request = InferRequest("m", "", [tensor], time.monotonic(), time.monotonic() + 9)
    places = SharedInputs(regions).place(1, request)
    found = Infer(1, 1, request.arrived, request.deadline, request.inputs, ())
    found.places = places
    return found


def test_an_input_is_found_where_it_lies(regions: Regions, worker: SharedMemory) -> None:
    request = sent(regions, 16, 2, 3)
    (place,) = request.places
    assert isinstance(place, InCuda)
    assert (place.handle, place.device, place.offset, place.size) == (HANDLE, 1, 16, 24)
    worker.find_inputs(cast(Link, None), request)
    array = arrays_of(request)["x"]
    assert (array.shape, array.dtype, array.nbytes, len(array)) == ((2, 3), np.float32, 24, 2)
    np.testing.assert_array_equal(np.asarray(array), [[4, 5, 6], [7, 8, 9]])
    np.testing.assert_array_equal(np.concatenate([array, array[:1]])[2], [4, 5, 6])


def test_an_output_is_put_there(regions: Regions, worker: SharedMemory) -> None:
    request = sent(regions, 0, 4)
    request.targets = regions.targets({"y": Place("r", 32, 8)})
    ((name, there),) = worker.targets(request)
    there.put(Tensor(name, "FP32", (2,), memoryview(np.float32([40, 50]).tobytes())))
    with pytest.raises(InvalidRequest, match="'y' has 12 bytes; its shared_memory_byte_size is 8"):
        there.put(Tensor(name, "FP32", (3,), memoryview(bytes(12))))
    again = sent(regions, 28, 4)
    worker.find_inputs(cast(Link, None), again)
    np.testing.assert_array_equal(np.asarray(arrays_of(again)["x"]), [7, 40, 50, 10])


def test_what_is_registered_anew_is_opened_anew(regions: Regions, worker: SharedMemory) -> None:
    before = HostMemory.opened
    for _ in range(2):
        worker.find_inputs(cast(Link, None), sent(regions, 0, 4))
    assert HostMemory.opened == before + 1
    regions.unregister("r", cuda=True)
    regions.register(Region("r", "", 0, 64, HANDLE, 1))
    worker.find_inputs(cast(Link, None), sent(regions, 0, 4))
    assert HostMemory.opened == before + 2


def test_regions_of_both_kinds_are_told_apart(regions: Regions) -> None:
    assert regions.status("") == {}
    assert list(regions.status("", cuda=True)) == ["r"]
    with pytest.raises(NotFound):
        regions.status("r")
    regions.unregister("r")
    regions.unregister("")
    assert list(regions.status("", cuda=True)) == ["r"]
    regions.unregister("", cuda=True)
    assert regions.status("", cuda=True) == {}


def test_bytes_beyond_the_end_are_refused(regions: Regions) -> None:
    with pytest.raises(InvalidRequest, match="pass the end of shared memory region 'r'"):
        regions.view(Place("r", 60, 8))
