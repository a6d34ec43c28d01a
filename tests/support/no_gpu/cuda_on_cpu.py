"""CUDA's runtime on a machine without a GPU, for tests: "device" memory is the host's, and work is
done when it is given. What it cannot show is everything of a GPU's own: times, types, errors.

$NO_GPU_SAYS is a JSON file that tests write: `free` and `unified` of the one device, and `rows`,
which is for TensorRT.
"""

from __future__ import annotations

import ctypes
import json
import os
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cuda.bindings import runtime

OK = runtime.cudaError_t.cudaSuccess
NO_MEMORY = runtime.cudaError_t.cudaErrorMemoryAllocation
INVALID = runtime.cudaError_t.cudaErrorInvalidValue

Work = Callable[[], None]

held: dict[int, Any] = {}
recording: dict[int, list[Work]] = {}
"""By streams, and the graphs that they have made, by their own addresses."""


def says(what: str, usual: Any) -> Any:
    return json.loads(Path(os.environ["NO_GPU_SAYS"]).read_text()).get(what, usual)


def do(stream: int, work: Work) -> None:
    """Now, or whenever what the stream records is launched."""
    if stream in recording:
        recording[stream].append(work)
    else:
        work()


def _taken(size: int) -> int:
    memory = np.zeros(size, np.uint8)
    held[memory.ctypes.data] = memory
    return memory.ctypes.data


def _malloc(size: int) -> tuple[Any, Any]:
    return (NO_MEMORY, None) if size > says("free", 8 << 30) else (OK, _taken(size))


def _free(address: int) -> tuple[Any]:
    return (OK if held.pop(int(address), None) is not None else INVALID,)


def _copy(to: int, source: int, size: int, kind: Any, stream: int) -> tuple[Any]:
    if says("unified", False):
        return (INVALID,)  # nothing need be copied there
    do(stream, lambda: ctypes.memmove(to, source, size) and None)
    return (OK,)


def _begin(stream: Any, mode: Any) -> tuple[Any]:
    recording[int(stream)] = []
    return (OK,)


def _graph(graph: list[Work], flags: int) -> tuple[Any, Any]:
    return OK, list(graph)


def _launch(graph: list[Work], stream: int) -> tuple[Any]:
    if not says("rows", 1):
        return (NO_MEMORY,)
    for work in graph:
        work()
    return (OK,)


def _properties(index: int) -> tuple[Any, Any]:
    return OK, types.SimpleNamespace(
        name=b"Stand-in\0", major=9, minor=0, totalGlobalMem=8 << 30,
        integrated=int(says("unified", False)),
    )  # fmt: skip


def _done(*_: Any) -> tuple[Any]:
    return (OK,)


CALLS: dict[str, Callable[..., tuple[Any, ...]]] = {
    "cudaGetDeviceCount": lambda: (OK, 1),
    "cudaGetDeviceProperties": _properties,
    "cudaSetDevice": _done,
    "cudaMemGetInfo": lambda: (OK, says("free", 8 << 30), 8 << 30),
    "cudaMalloc": _malloc,
    "cudaFree": _free,
    "cudaHostAlloc": lambda size, flags: (OK, _taken(size)),
    "cudaHostGetDevicePointer": lambda address, flags: (OK, address),
    "cudaFreeHost": _free,
    "cudaMemcpyAsync": _copy,
    "cudaStreamCreateWithFlags": lambda flags: (OK, _taken(1)),
    "cudaStreamSynchronize": _done,
    "cudaStreamDestroy": _free,
    "cudaStreamBeginCapture": _begin,
    "cudaStreamEndCapture": lambda stream: (OK, recording.pop(int(stream))),
    "cudaGraphInstantiate": _graph,
    "cudaGraphDestroy": _done,
    "cudaGraphLaunch": _launch,
    "cudaGraphExecDestroy": _done,
}


def install() -> None:
    """In place of the runtime's own, for the rest of this process."""
    for name, stand_in in CALLS.items():
        stand_in.__name__ = name
        setattr(runtime, name, stand_in)
