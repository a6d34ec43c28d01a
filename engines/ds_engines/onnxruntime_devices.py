"""Which of ONNX Runtime's providers run a model, by the device that is wanted.

Of its packages (onnxruntime, onnxruntime-gpu, onnxruntime-migraphx, onnxruntime-openvino) one can
be installed at a time; each knows the CPU and what its name says.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from ds_engines.base import EngineOptions
from ds_engines.errors import Unsupported
from ds_engines.precision import BF16, FP16, FP32

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
MIGRAPHX = "MIGraphXExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"

_TITLES = {
    CPU: "its own code",
    CUDA: "CUDA",
    TENSORRT: "TensorRT",
    MIGRAPHX: "MIGraphX",
    OPENVINO: "OpenVINO",
}
_PACKAGES = {
    CUDA: "onnxruntime-gpu",
    TENSORRT: "onnxruntime-gpu",
    MIGRAPHX: "onnxruntime-migraphx",
    OPENVINO: "onnxruntime-openvino",
}
_LIBRARIES = {
    CUDA: "libonnxruntime_providers_cuda.so",
    MIGRAPHX: "libonnxruntime_providers_migraphx.so",
}
"""What a package with that provider has in its folder `capi`."""

_BY_DEVICE = {"cpu": (OPENVINO, CPU), "cuda": (CUDA,), "rocm": (MIGRAPHX,)}
"""Device to the providers that run on it, the one to be taken first where it is there."""

_ACCELERATORS = {
    "tensorrt": ("cuda", TENSORRT),
    "migraphx": ("rocm", MIGRAPHX),
    "openvino": ("cpu", OPENVINO),
}
_DEVICE = re.compile(r"(cuda|rocm)(?::(\d+))?")


class Choice(NamedTuple):
    """`number` is the GPU's. `sure`: it was asked for, so that no other may take its place."""

    provider: str
    number: int = 0
    sure: bool = False

    @property
    def gpu(self) -> bool:
        return self.provider in (CUDA, TENSORRT, MIGRAPHX)

    @property
    def cuda(self) -> bool:
        """Whether tensors can be in the memory of an NVIDIA GPU before it runs."""
        return self.provider in (CUDA, TENSORRT)

    def __str__(self) -> str:
        kind = "rocm" if self.provider == MIGRAPHX else "cuda"
        return f"{_TITLES[self.provider]} on {f'{kind}:{self.number}' if self.gpu else 'the CPU'}"


def choose(device: str, available: Sequence[str], accelerator: str = "") -> Choice:
    """The provider for `--device`, of those that this ONNX Runtime has.

    `accelerator` is one by Triton's name of it: a GPU's is a hint, which another machine need not
    take. Raises Unsupported for a device that there is not, and for one whose provider is not
    installed, with the package that has it.
    """
    kind, index = _parsed(device)
    runs_on, provider = _ACCELERATORS.get(accelerator, ("", ""))
    if runs_on == "cpu" and kind in ("auto", "cpu"):
        if provider not in available:
            asked = f"execution_accelerators names {accelerator!r}"
            raise Unsupported(_missing(asked, provider))
        return Choice(provider)
    if provider in available and kind in ("auto", runs_on):
        return Choice(provider, index, sure=kind != "auto")
    if kind == "auto":
        found = next((each for each in (CUDA, MIGRAPHX) if each in available), "")
        return Choice(found) if found else choose("cpu", available)
    providers = _BY_DEVICE[kind]
    found = next((each for each in providers if each in available), "")
    if not found:
        raise Unsupported(_missing(f"--device {device}", providers[0]))
    return Choice(found, index, sure=kind != "cpu")


def require_package(device: str) -> None:
    """Raises Unsupported where the package that is installed has nothing for a GPU that is asked
    for. It is not imported, which takes its time.
    """
    kind, _ = _parsed(device)
    package = find_spec("onnxruntime")
    if kind in ("auto", "cpu") or package is None:
        return
    folders = [Path(each) / "capi" for each in package.submodule_search_locations or ()]
    providers = _BY_DEVICE[kind]
    if not any((folder / _LIBRARIES[each]).exists() for folder in folders for each in providers):
        raise Unsupported(_missing(f"--device {device}", providers[0]))


def _parsed(device: str) -> tuple[str, int]:
    if device in ("auto", "cpu"):
        return device, 0
    found = _DEVICE.fullmatch(device)
    if found is None:
        raise Unsupported(
            f"--device {device}: the ONNX Runtime engine runs on cpu, cuda and rocm, or one GPU by "
            "its number, such as cuda:1"
        )
    return found[1], int(found[2] or 0)


def _missing(asked: str, provider: str) -> str:
    return (
        f"{asked}: this ONNX Runtime has no {_TITLES[provider]}: pip uninstall onnxruntime, and "
        f"pip install {_PACKAGES[provider]}, which takes its place"
    )


def refuse_dtype(choice: Choice, dtype: str, machine: str = "") -> None:
    """Raises Unsupported for numbers that the provider would not compute in."""
    machine = machine or platform.machine()
    asked = f"--dtype {dtype}: ONNX Runtime with {choice}"
    if choice.provider == CPU and dtype == FP16:
        raise Unsupported(
            f"{asked} computes FP16 by way of FP32, which is slower than FP32; --engine openvino "
            "computes in FP16 where the processor does"
        )
    if choice.provider == CPU and dtype == BF16 and machine != "aarch64":
        raise Unsupported(
            f"{asked} has no BF16 on {machine}; --engine openvino computes in it where the "
            "processor does"
        )
    if choice.provider == OPENVINO and dtype in (FP16, BF16):
        raise Unsupported(f"{asked} computes in FP32 alone; --engine openvino has {dtype}")
    if choice.provider == CUDA and dtype == BF16:
        raise Unsupported(
            f"{asked} has BF16 in files of that type alone; give such a file, or --dtype fp16"
        )


def converts(choice: Choice, dtype: str) -> bool:
    """Whether the file has to be turned into one of 16 bits first; other providers do it."""
    return choice.provider == CUDA and dtype == FP16


def providers(
    choice: Choice, options: EngineOptions, cache: Path | None = None
) -> list[tuple[str, dict[str, str]]]:
    """What a session is told: the provider with its options, then those that do the rest.

    `cache`: where TensorRT keeps the plans that it builds.
    """
    index = {"device_id": str(choice.number)}
    rest: list[tuple[str, dict[str, str]]] = [(CPU, {})]
    if choice.provider == CUDA:
        return [(CUDA, index | _cuda(options)), *rest]
    if choice.provider == TENSORRT:
        mine = index | _tensorrt(options, cache)
        return [(TENSORRT, mine), (CUDA, index | _cuda(options)), *rest]
    if choice.provider == MIGRAPHX:
        return [(MIGRAPHX, index | _migraphx(options)), *rest]
    if choice.provider == OPENVINO:
        mine = {"device_type": "CPU", "num_of_threads": str(options.threads), "precision": "FP32"}
        return [(OPENVINO, mine), *rest]
    return rest


def _cuda(options: EngineOptions) -> dict[str, str]:
    # Batches have many sizes: to try all convolutions for each would take seconds every time.
    said = {"cudnn_conv_algo_search": "HEURISTIC"}
    if options.dtype == FP32:
        said["use_tf32"] = "0"
    if options.memory_efficient:
        said |= {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_use_max_workspace": "0"}
    return said


def _tensorrt(options: EngineOptions, cache: Path | None) -> dict[str, str]:
    said = {}
    if options.dtype in (FP16, BF16):
        said[f"trt_{options.dtype}_enable"] = "True"
    if cache is not None:
        path = str(cache)
        said |= {"trt_engine_cache_enable": "True", "trt_engine_cache_path": path}
        said |= {"trt_timing_cache_enable": "True", "trt_timing_cache_path": path}
    return said


def _migraphx(options: EngineOptions) -> dict[str, str]:
    if options.dtype in (FP16, BF16):
        return {f"migraphx_{options.dtype}_enable": "1"}
    return {}
