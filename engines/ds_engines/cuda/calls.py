"""One way to call the CUDA runtime: what fails raises, with the call's and the error's name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cuda.bindings import runtime

from ds_engines.errors import EngineFailure, OutOfMemory

NO_MEMORY = runtime.cudaError_t.cudaErrorMemoryAllocation


LOST = frozenset(
    {
        "cudaErrorAssert",
        "cudaErrorContained",
        "cudaErrorECCUncorrectable",
        "cudaErrorHardwareStackError",
        "cudaErrorIllegalAddress",
        "cudaErrorIllegalInstruction",
        "cudaErrorInvalidAddressSpace",
        "cudaErrorInvalidPc",
        "cudaErrorLaunchFailure",
        "cudaErrorLaunchTimeout",
        "cudaErrorMisalignedAddress",
        "cudaErrorNvlinkUncorrectable",
        "cudaErrorTensorMemoryLeak",
    }
)
"""After these every call of the process fails, as CUDA's documentation of each says."""


class CudaError(EngineFailure):
    """A call of CUDA's failed. `code` is CUDA's name of it, such as `cudaErrorInvalidValue`."""

    code: str = ""


def call(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """What the call gives: nothing, one value, or a tuple. Raises OutOfMemory and CudaError."""
    status, *values = function(*arguments)
    if status != runtime.cudaError_t.cudaSuccess:
        raise failure(function.__name__, status)
    return values[0] if len(values) == 1 else tuple(values) or None


def failure(name: str, status: Any) -> EngineFailure:
    """The error of a call that gave `status`."""
    _, said = runtime.cudaGetErrorString(status)
    message = f"CUDA: {name} failed: {status.name}: {said.decode() if said else 'unknown'}"
    if status == NO_MEMORY:
        return OutOfMemory(message)
    error = CudaError(message)
    error.code = status.name
    error.fatal = status.name in LOST
    return error
