"""How CUDA's failures are told, on a machine that need have no GPU."""

from __future__ import annotations

import pytest

runtime = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")

from ds_engines.cuda import device  # noqa: E402
from ds_engines.cuda.calls import LOST, CudaError, call, failure  # noqa: E402
from ds_engines.errors import OutOfMemory, Unsupported  # noqa: E402


def test_what_a_call_gives() -> None:
    assert call(runtime.cudaRuntimeGetVersion) >= 12000


def test_a_failed_call_and_cudas_name_of_the_error_are_named() -> None:
    error = failure("cudaMemcpyAsync", runtime.cudaError_t.cudaErrorInvalidValue)
    assert str(error) == ("CUDA: cudaMemcpyAsync failed: cudaErrorInvalidValue: invalid argument")
    assert isinstance(error, CudaError)
    assert error.code == "cudaErrorInvalidValue"
    assert not error.fatal
    assert failure("cudaStreamSynchronize", runtime.cudaError_t.cudaErrorIllegalAddress).fatal


def test_errors_after_which_nothing_works_are_cudas() -> None:
    assert {name for name in LOST if not hasattr(runtime.cudaError_t, name)} == set()


def test_no_memory_is_an_error_of_its_own() -> None:
    error = failure("cudaMalloc", runtime.cudaError_t.cudaErrorMemoryAllocation)
    assert type(error) is OutOfMemory
    assert str(error) == "CUDA: cudaMalloc failed: cudaErrorMemoryAllocation: out of memory"
    assert error.retry_after == 1


@pytest.mark.parametrize("wanted", ["gpu", "cuda:x", "cuda:0,1", "cpu"])
def test_a_device_that_is_none_of_cudas(wanted: str) -> None:
    with pytest.raises(Unsupported, match=f"--device {wanted}: it must be cuda, or one GPU"):
        device.find(wanted)


def test_a_device_that_is_not_there() -> None:
    said = "this machine has" if device.count() else "there is no GPU that CUDA can use"
    with pytest.raises(Unsupported, match=f"--device cuda:4096: {said}"):
        device.find("cuda:4096")
