"""ONNX Runtime's sessions: with which settings and providers a file is opened."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from ds_engines import datatypes
from ds_engines.base import EngineOptions
from ds_engines.cuda.ledger import DoesNotFit, Ledger
from ds_engines.errors import LoadError
from ds_engines.onnx_halves import halved
from ds_engines.onnxruntime_devices import CPU, Choice, choose, converts, providers
from ds_engines.precision import BF16
from ds_engines.spec import ModelSpec

log = logging.getLogger(__name__)

DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}

_FOLDER = "session.model_external_initializers_file_folder_path"
"""Where weights are that stand beside a model which is given as bytes."""

_SMALL = {
    "session.use_device_allocator_for_initializers": "1",
    "session.disable_prepacking": "1",
    "session.use_external_initializer_file_buffers_directly": "1",
}
"""Weights are held once and as they are, rather than in the order that is quickest to multiply."""


def settings(options: EngineOptions, folder: Path | None = None) -> ort.SessionOptions:
    """Those that every session of ours has. `folder`: that of a file which is given as bytes."""
    made = ort.SessionOptions()
    made.intra_op_num_threads = options.threads
    made.inter_op_num_threads = 1
    made.log_severity_level = 4
    # Spinning threads would take the processor from the gateways, which share it.
    made.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if folder is not None:
        made.add_session_config_entry(_FOLDER, str(folder))
    if options.dtype == BF16:
        # That of processors of ARM; `refuse_dtype` lets no other come here.
        made.add_session_config_entry("mlas.enable_gemm_fastmath_arm64_bfloat16", "1")
    if options.memory_efficient:
        made.enable_cpu_mem_arena = False
        made.enable_mem_pattern = False
        for key, value in _SMALL.items():
            made.add_session_config_entry(key, value)
    return made


def opened(
    model: Path | bytes, settings: ort.SessionOptions, wanted: Any = ((CPU, {}),)
) -> ort.InferenceSession:
    """A session with the providers `wanted`. ONNX Runtime takes FP8 for INT8 where it fuses
    quantized operators, and then refuses what it has made: such models run without that.
    """
    given = {"providers": list(wanted), "enable_fallback": 0}
    try:
        return ort.InferenceSession(model, settings, **given)
    except Exception as error:
        if "float8" not in str(error):
            raise
    settings.add_session_config_entry("session.disable_quant_qdq", "1")
    return ort.InferenceSession(model, settings, **given)


def source(artifact: Path, choice: Choice, options: EngineOptions) -> Path | bytes:
    """The file, or what `--dtype fp16` makes of it for a provider that computes in its types."""
    return halved(artifact) if converts(choice, options.dtype) else artifact


def placed(
    artifact: Path, options: EngineOptions, wanted: Choice, made: ort.SessionOptions
) -> tuple[ort.InferenceSession, Choice]:
    """A session on the provider that is wanted; on the CPU where that cannot be used and was not
    asked for. Raises LoadError.
    """
    if wanted.cuda:
        _check_room(artifact, wanted)
        with contextlib.suppress(Exception):  # it prints what is missing, and the session says so
            ort.preload_dlls()
    model = source(artifact, wanted, options)
    try:
        session = opened(model, made, providers(wanted, options, _cache(wanted)))
    except Exception as error:
        if not wanted.gpu or wanted.sure:
            raise LoadError(
                f"{artifact} is not a model that ONNX Runtime can load: {first_line(error)}"
            ) from error
        why = first_line(error)
    else:
        if wanted.provider in session.get_providers():
            return session, wanted
        why = "ONNX Runtime could not start it: are the libraries of CUDA and cuDNN there?"
    if wanted.sure:
        raise LoadError(f"{artifact} cannot run with {wanted}: {why}")
    log.warning("%s does not run with %s: %s", artifact.name, wanted, why)
    return placed(artifact, options, choose("cpu", ort.get_available_providers()), made)


def others(
    artifact: Path, options: EngineOptions, choice: Choice
) -> Iterator[ort.InferenceSession]:
    """More sessions of a model that has one by this choice, each with the weights again. Raises
    LoadError.
    """
    model = source(artifact, choice, options)
    while True:
        made = settings(options, artifact.parent)
        try:
            session = opened(model, made, providers(choice, options, _cache(choice)))
        except Exception as error:
            raise LoadError(f"{artifact} cannot be loaded again: {first_line(error)}") from error
        yield session


def _check_room(artifact: Path, wanted: Choice) -> None:
    """Raises DoesNotFit where the weights do not fit on the GPU, as far as CUDA can be asked."""
    ledger = _ledger(artifact, wanted)
    if ledger is not None:
        ledger.need("weights", artifact.stat().st_size)
        ledger.check()


def fits(spec: ModelSpec, chosen: Choice, more: int) -> bool:
    """Whether so many sessions more than there are fit on the GPU with their weights; as far as
    CUDA can be asked, else they do.
    """
    ledger = _ledger(spec.artifact, chosen) if chosen.cuda else None
    if ledger is None:
        return True
    ledger.need("weights", more * spec.artifact.stat().st_size)
    try:
        ledger.check()
    except DoesNotFit:
        return False
    return True


def _ledger(artifact: Path, wanted: Choice) -> Ledger | None:
    try:
        from ds_engines.cuda import device  # noqa: PLC0415 - it needs cuda-bindings
    except ImportError:
        return None
    if wanted.number >= device.count():
        return None
    here = device.find(f"cuda:{wanted.number}")
    return Ledger(artifact.name, str(here), here.free())


def _cache(choice: Choice) -> Path | None:
    from ds_engines import tensorrt_store  # noqa: PLC0415 - only TensorRT builds what is kept

    return tensorrt_store.home() / "onnxruntime" if choice.cuda else None


def dtype_of(kind: str) -> np.dtype[Any]:
    """Numpy's type for ONNX Runtime's name of one; bits for BF16."""
    return datatypes.DATATYPES[DATATYPES[kind]].dtype


def first_line(error: Exception) -> str:
    """What an error says, without where."""
    return str(error).strip().split("\n", 1)[0]
