"""Which engine runs a file of a tensor model, on this machine and as the operator says."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ds_engines import onnxruntime_devices, tensorrt_library, torch_archive
from ds_engines.errors import ConfigError, Unsupported
from ds_serve.extras import installed
from ds_serve.text_models import Wish
from ds_serve.vllm import devices

ONNXRUNTIME, TENSORRT, OPENVINO, TORCH = "onnxruntime", "tensorrt", "openvino", "torch"
ENGINES = (ONNXRUNTIME, TENSORRT, OPENVINO)
"""Those that `--engine` may name for tensor models."""

PLANS = (".plan", ".engine", ".trt")
CUDA = "cuda.bindings"
NO_GPU = "there is no NVIDIA GPU here"

ON_GPUS = (ONNXRUNTIME, TORCH)
"""Those that run on the CPU and on GPUs, as their packages and the machine allow."""

_DEVICE = re.compile(r"(cuda|rocm)(:\d+(,\d+)*)?|cpu(,cpu)+")
_CUDA = re.compile(r"cuda(:\d+(,\d+)*)?")

_NAMED = {
    ONNXRUNTIME: ONNXRUNTIME,
    "onnxruntime_onnx": ONNXRUNTIME,
    TENSORRT: TENSORRT,
    "tensorrt_plan": TENSORRT,
    OPENVINO: OPENVINO,
}
"""From what a configuration calls its backend or platform."""

_WHY = {
    ONNXRUNTIME: "an ONNX file, so ONNX Runtime runs it",
    OPENVINO: "an ONNX file, which OpenVINO runs on the CPU",
    TENSORRT: "an ONNX file, so TensorRT builds it for the GPU and runs it there",
}


class Choice(NamedTuple):
    """`why` is one sentence for a person. `fallback` is the engine of a model that this one does
    not take; empty where it was asked for by name.
    """

    engine: str
    why: str
    fallback: str = ""


def of_onnx(file: Path, config: Path | None, wish: Wish) -> Choice:
    """Who runs an ONNX file: whom `--engine` names, else its configuration, else TensorRT where
    there is a GPU for it. Raises ConfigError.
    """
    named = wish.engine if wish.engine in ENGINES else _configured(config)
    if named == TENSORRT:
        instead = f"--engine {ONNXRUNTIME} runs it on the CPU"
        _require(file, "an ONNX file that TensorRT is to run", instead, wish)
    if named:
        return Choice(named, _why(named, wish))
    if not _on_cpu(wish.device) and not missing():
        return Choice(TENSORRT, _WHY[TENSORRT], ONNXRUNTIME)
    return Choice(ONNXRUNTIME, _why(ONNXRUNTIME, wish))


def _why(engine: str, wish: Wish) -> str:
    return _WHY[engine] + (where(wish.device) if engine in ON_GPUS else "")


def where(device: str) -> str:
    """On what a model of an engine that has both runs, as far as its worker does not decide it."""
    if _on_cpu(device) or (device == "auto" and not devices.visible()):
        return " on the CPU"
    return (
        " on the GPU if its package can, which its log says"
        if device == "auto"
        else (f" on {device}")
    )


_TORCHS = {
    "torch": "a program of torch.export, so PyTorch runs it",
    "torchscript": "TorchScript, which is trusted, so PyTorch runs it",
    "aotinductor": "an AOTInductor package, which is trusted, so PyTorch runs it",
}


def _on_cpu(device: str) -> bool:
    return device.partition(",")[0] == "cpu"


def of_torch(file: Path, kind: str, wish: Wish) -> tuple[str, str, str]:
    """Engine, why, and no other for a file of PyTorch's. Raises ConfigError for one that holds code
    of its own, unless its writer is trusted.
    """
    refuse_other(file, TORCH, wish)
    if kind in torch_archive.CODE and not wish.trust:
        raise ConfigError(f"{file} is {torch_archive.untrusted(kind)}")
    return TORCH, _TORCHS[kind] + where(wish.device), ""


def device_of(engine: str, device: str) -> str:
    """What `--device` means to an engine, as EngineOptions has it."""
    if engine == TENSORRT:
        return "cuda" if device == "auto" else device
    if engine not in ON_GPUS:
        return "cpu"
    return "cpu" if device == "auto" and not devices.visible() else device


def devices_of(engine: str, device: str, config: Path | None = None) -> list[str]:
    """The same, one for each worker: `cuda:0,1` names two. A configuration's own GPUs (Triton's
    `instance_group.gpus`) go before, where `--device` leaves open which.
    """
    one = device_of(engine, device)
    kind, colon, numbers = one.partition(":")
    if kind in ("auto", "cuda", "rocm") and not colon and config is not None:
        kind = kind if kind != "auto" else "rocm" if devices.is_rocm() else "cuda"
        return [f"{kind}:{gpu}" for gpu in _placed(config)] or [one]
    if kind in ("cuda", "rocm") and "," in numbers:
        return [f"{kind}:{number}" for number in numbers.split(",")]
    return one.split(",")


def _placed(config: Path) -> list[int]:
    """The GPUs that a configuration names, each once."""
    from ds_engines import config_pbtxt  # noqa: PLC0415 - protobuf takes some time to import

    try:
        said = config_pbtxt.read(config)
    except (ConfigError, OSError):
        return []
    return list(dict.fromkeys(gpu for group in said.instance_group for gpu in group.gpus))


def check_device(name: str, engine: str, device: str) -> None:
    """Raises ConfigError where a model `name` cannot run on the device that was asked for."""
    if device in ("auto", "cpu"):
        return
    if engine == TENSORRT:
        if not _CUDA.fullmatch(device):
            raise ConfigError(
                f"--device {device}: model {name!r} runs on NVIDIA GPUs: give auto, cuda, or "
                "their numbers, such as cuda:0 or cuda:0,1"
            )
    elif engine not in ON_GPUS:
        raise ConfigError(
            f"--device {device}: model {name!r} runs on {engine}, which has only cpu here"
        )
    elif not _DEVICE.fullmatch(device):
        raise ConfigError(
            f"--device {device}: model {name!r} runs on {engine}, which has auto, cpu, cuda and "
            "rocm, or GPUs by their numbers, such as cuda:0 or cuda:0,1"
        )
    elif engine == ONNXRUNTIME and not _on_cpu(device):
        try:
            onnxruntime_devices.require_package(devices_of(engine, device)[0])
        except Unsupported as error:
            raise ConfigError(str(error)) from None


def of_plan(file: Path, wish: Wish) -> Choice:
    """Who runs a plan. Raises ConfigError where nothing here can."""
    if wish.engine in ENGINES and wish.engine != TENSORRT:
        raise ConfigError(f"--engine {wish.engine}: {file} is a TensorRT plan; give the ONNX file")
    _require(file, "a TensorRT plan", "give the ONNX file that it was built from", wish)
    return Choice(TENSORRT, "a TensorRT plan, so TensorRT runs it on the GPU")


def refuse_other(file: Path, engine: str, wish: Wish) -> None:
    """Raises ConfigError where `--engine` names one that does not run this file."""
    if wish.engine in ENGINES and wish.engine != engine:
        raise ConfigError(f"--engine {wish.engine}: {file} is a file that {engine} runs")


def missing() -> str:
    """What this machine lacks for TensorRT; empty where it has all."""
    if not devices.visible() or devices.is_rocm():
        return NO_GPU
    if not tensorrt_library.installed():
        return f"TensorRT is not installed: {tensorrt_library.INSTALL}"
    if not installed(CUDA):
        return f"cuda-bindings is not installed: {tensorrt_library.CUDA}"
    return ""


def preferred(files: Iterable[Path]) -> list[Path]:
    """The files of a folder without those that others are built from or into: a plan and its ONNX
    file are one model, of which this machine takes the one that it can run.
    """
    there = list(files)
    plans = {file.stem for file in there if file.suffix.lower() in PLANS}
    sources = {file.stem for file in there if file.suffix.lower() == ".onnx"}
    both = plans & sources
    unfit = (".onnx",) if both and not missing() else PLANS
    return [file for file in there if file.stem not in both or file.suffix.lower() not in unfit]


def _require(file: Path, what: str, instead: str, wish: Wish) -> None:
    lacks = "" if wish.elsewhere else missing()
    if lacks == NO_GPU:
        lacks += f"; {instead}"
    if _on_cpu(wish.device):
        lacks = "--device cpu rules out the GPU"
    if lacks:
        raise ConfigError(f"{file} is {what}, but {lacks}")


def _configured(config: Path | None) -> str:
    """The engine that a configuration names; empty where it names none, or cannot be read: its
    worker says what is wrong with it.
    """
    if config is None:
        return ""
    from ds_engines import config_pbtxt  # noqa: PLC0415 - protobuf takes some time to import

    try:
        said = config_pbtxt.read(config)
    except (ConfigError, OSError):
        return ""
    return _NAMED.get(said.backend) or _NAMED.get(said.platform, "")
