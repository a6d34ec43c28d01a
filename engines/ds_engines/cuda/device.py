"""The GPUs of this machine."""

from __future__ import annotations

import re

import msgspec
from cuda.bindings import runtime

from ds_engines.cuda.calls import call
from ds_engines.errors import EngineFailure, Unsupported

_NAME = re.compile(r"^cuda(?::(\d+))?$")


class Device(msgspec.Struct, frozen=True):
    """`capability` is CUDA's compute capability; `memory` in bytes. `unified`: the GPU has no
    memory of its own, as on Jetson, so that nothing need be copied to it.
    """

    index: int
    name: str
    capability: tuple[int, int]
    memory: int
    unified: bool

    def __str__(self) -> str:
        return f"cuda:{self.index} ({self.name})"

    @property
    def kind(self) -> str:
        """What plans are bound to: the model of the GPU and what it can."""
        major, minor = self.capability
        return f"{self.name}, compute capability {major}.{minor}"

    def use(self) -> None:
        """Make it the calling thread's. CUDA keeps that for each thread by itself."""
        call(runtime.cudaSetDevice, self.index)

    def free(self) -> int:
        """Bytes of memory that no process has taken."""
        self.use()
        free, _ = call(runtime.cudaMemGetInfo)
        return int(free)


def count() -> int:
    """How many there are; 0 where there is no driver, too."""
    status, found = runtime.cudaGetDeviceCount()
    return int(found) if status == runtime.cudaError_t.cudaSuccess else 0


def find(wanted: str) -> Device:
    """The device that `cuda` or `cuda:1` means. Raises Unsupported, saying which there are."""
    match = _NAME.match(wanted)
    if match is None:
        raise Unsupported(f"--device {wanted}: it must be cuda, or one GPU such as cuda:0")
    index, there = int(match[1] or 0), count()
    if not there:
        raise Unsupported(f"--device {wanted}: {why_none()}")
    if index >= there:
        raise Unsupported(
            f"--device {wanted}: this machine has {there}, cuda:0 to cuda:{there - 1}"
        )
    given = call(runtime.cudaGetDeviceProperties, index)
    return Device(
        index=index,
        name=given.name.split(b"\0")[0].decode(),
        capability=(given.major, given.minor),
        memory=given.totalGlobalMem,
        unified=bool(given.integrated),
    )


def why_none() -> str:
    """Why there is no GPU, as CUDA says it."""
    try:
        call(runtime.cudaGetDeviceCount)
    except EngineFailure as error:
        return f"there is no GPU that CUDA can use ({error})"
    return "there is no GPU that CUDA can use"
