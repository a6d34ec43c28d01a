"""PyTorch on GPUs, as far as that shows without one: which device is chosen and refused, and which
failures are of memory. What stands in for a GPU is what PyTorch says of the machine, and its calls
of CUDA, which do nothing here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ds_engines import torch_lanes
from ds_engines.errors import EngineFailure, OutOfMemory, Unsupported
from ds_engines.torch_device import find
from ds_engines.torch_lanes import Accelerator


def says(patch: pytest.MonkeyPatch, *, cuda: str | None, hip: str | None, gpus: int) -> None:
    patch.setattr(torch.version, "cuda", cuda)
    patch.setattr(torch.version, "hip", hip)
    patch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    patch.setattr(torch.cuda, "device_count", lambda: gpus)
    patch.setattr(torch.cuda, "set_device", lambda _: None)


@pytest.mark.parametrize(
    ("built", "wanted", "chosen"),
    [
        ({"cuda": "13.0", "hip": None, "gpus": 2}, "auto", "cuda:0"),
        ({"cuda": "13.0", "hip": None, "gpus": 2}, "cuda:1", "cuda:1"),
        ({"cuda": "13.0", "hip": None, "gpus": 0}, "auto", "cpu"),
        ({"cuda": None, "hip": "7.1", "gpus": 1}, "auto", "cuda:0"),
        ({"cuda": None, "hip": "7.1", "gpus": 2}, "rocm:1", "cuda:1"),
        ({"cuda": None, "hip": "7.1", "gpus": 2}, "cpu", "cpu"),
    ],
)
def test_the_device_is_the_one_that_is_wanted(
    monkeypatch: pytest.MonkeyPatch, built: dict[str, Any], wanted: str, chosen: str
) -> None:
    says(monkeypatch, **built)
    assert str(find(wanted)) == chosen


@pytest.mark.parametrize(
    ("built", "wanted", "said"),
    [
        (
            {"cuda": "13.0", "hip": None, "gpus": 2},
            "rocm",
            "is built for cuda; install",
        ),
        ({"cuda": None, "hip": "7.1", "gpus": 2}, "cuda", "is built for rocm; install"),
        ({"cuda": None, "hip": None, "gpus": 0}, "cuda", "is built for the CPU alone"),
        ({"cuda": None, "hip": "7.1", "gpus": 2}, "rocm:2", "PyTorch finds rocm:0 to rocm:1"),
        ({"cuda": "13.0", "hip": None, "gpus": 0}, "cuda", "PyTorch finds none that it can use"),
    ],
)
def test_another_device_is_refused_with_what_there_is(
    monkeypatch: pytest.MonkeyPatch, built: dict[str, Any], wanted: str, said: str
) -> None:
    says(monkeypatch, **built)
    with pytest.raises(Unsupported, match=f"--device {wanted}: .*{said}"):
        find(wanted)


class Stream:
    """Fails where CUDA has given the process up."""

    lost = False

    def __init__(self, *_: Any) -> None: ...

    def synchronize(self) -> None:
        if Stream.lost:
            raise RuntimeError("CUDA error: unspecified launch failure")


class Graph:
    def replay(self) -> None: ...


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was asked of CUDA."""
    made: list[str] = []

    @contextlib.contextmanager
    def recorded(*_: Any, **__: Any) -> Iterator[None]:
        made.append("record")
        yield

    real = torch.empty

    def on_host(*shape: Any, pin_memory: bool = False, **more: Any) -> torch.Tensor:
        return real(*shape, **more)

    for name in ("set_device", "set_sync_debug_mode", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: made.append(name))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", recorded)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(torch, "empty", on_host)
    monkeypatch.setattr(Stream, "lost", False)
    return made


@pytest.mark.parametrize(
    ("error", "kind", "lost"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB"), OutOfMemory, False),
        (RuntimeError("The TorchScript failed\nCUDA out of memory. Tried"), OutOfMemory, False),
        (RuntimeError("CUDA error: out of memory"), OutOfMemory, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), OutOfMemory, False),
        (RuntimeError("HIP out of memory. Tried to allocate"), OutOfMemory, False),
        (RuntimeError("CUDA error: invalid configuration argument"), EngineFailure, False),
        (RuntimeError("CUDA error: an illegal memory access"), EngineFailure, True),
    ],
)
def test_a_lack_of_memory_ends_no_process_and_what_ends_it_is_found_by_asking(
    calls: list[str], error: Exception, kind: type, lost: bool
) -> None:
    place = Accelerator(torch.device("cpu"), graphs=True)

    def failing(_: Any) -> list[torch.Tensor]:
        Stream.lost = lost
        raise error

    with pytest.raises(EngineFailure) as caught:
        place.run(failing, {"x": torch.ones(2)})
    assert (type(caught.value), caught.value.fatal) == (kind, lost)
    assert ("empty_cache" in calls) is (kind is OutOfMemory)
    if not lost:
        assert place.run(lambda given: [given["x"] * 2], {"x": torch.ones(2)})[0].tolist() == [2, 2]


def test_shapes_that_come_often_are_recorded_once(calls: list[str]) -> None:
    place = Accelerator(torch.device("cpu"), graphs=True)
    for rows in (1, 2) * (torch_lanes.OFTEN + 2):
        place.run(lambda given: [given["x"] + 1], {"x": torch.ones(rows)})
    assert calls.count("record") == 2


def test_what_cannot_be_recorded_is_not_tried_again(calls: list[str]) -> None:
    place = Accelerator(torch.device("cpu"), graphs=True)

    def asking(given: Any) -> list[torch.Tensor]:
        if calls[-1] == "set_sync_debug_mode":
            raise RuntimeError("called a synchronizing CUDA operation")
        return [given["x"] * 3]

    for rows in (1, 2) * (torch_lanes.OFTEN + 2):
        assert place.run(asking, {"x": torch.ones(rows)})[0].tolist() == [3] * rows
    assert "record" not in calls
    assert calls.count("set_sync_debug_mode") == 2  # on, and off again
