"""ONNX Runtime on the CPU."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort

from ds_engines.base import Array, EngineOptions, Tensors, refuse, refuse_devices
from ds_engines.batch_axes import complete, joined
from ds_engines.errors import EngineFailure, InvalidRequest, LoadError, ServeError
from ds_engines.spec import ModelSpec, TensorSpec

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

BFLOAT16 = 16
"""`TensorProto.DataType.BFLOAT16` of the ONNX format."""


RUNS = "a file as it is; ds-quantize makes one that is quantized"


class OnnxRuntimeEngine:
    """One session; ONNX Runtime lets many threads run it at once.

    `profile`: where to write the times of layers, which `end_profiling` ends.
    """

    def __init__(
        self, spec: ModelSpec, options: EngineOptions, profile: Path | None = None
    ) -> None:
        refuse_devices(options, "ONNX Runtime")
        refuse(options, "ONNX Runtime", RUNS)
        self._session = _session(spec, options, profile)
        self._has_bf16 = False
        self.spec = self._described(spec)
        self.spec = complete(self.spec, self)

    def run(self, batch: Tensors, outputs: tuple[str, ...] = ()) -> Tensors:
        names = outputs or tuple(tensor.name for tensor in self.spec.outputs)
        try:
            if self._has_bf16:
                return self._run_values(batch, names)
            return dict(zip(names, self._session.run(names, _strings(batch)), strict=True))
        except ServeError:
            raise
        except Exception as error:
            raise EngineFailure(f"ONNX Runtime failed: {_first_line(error)}") from error

    def close(self) -> None:
        del self._session

    def end_profiling(self) -> Path:
        """The file with the times, in the format of Chrome's tracing."""
        return Path(self._session.end_profiling())

    def _run_values(self, batch: Tensors, names: tuple[str, ...]) -> Tensors:
        """BF16 has no numpy type, so such models run on ONNX Runtime's own values."""
        values = {name: self._value(name, array) for name, array in _strings(batch).items()}
        results = self._session.run_with_ort_values(names, values)
        return {name: _array(value) for name, value in zip(names, results, strict=True)}

    def _value(self, name: str, array: Array) -> Any:
        tensor = self.spec.input(name)
        if tensor is not None and tensor.datatype == "BF16":
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, BFLOAT16)
        return ort.OrtValue.ortvalue_from_numpy(array)

    def _described(self, spec: ModelSpec) -> ModelSpec:
        inputs = [_tensor(spec, node) for node in self._session.get_inputs()]
        outputs = [_tensor(spec, node) for node in self._session.get_outputs()]
        symbols = {node.name: node.shape for node in self._session.get_inputs()}
        self._has_bf16 = any(tensor.datatype == "BF16" for tensor in (*inputs, *outputs))
        if self._has_bf16:
            _refuse_strings(spec, inputs)
        return msgspec.structs.replace(
            spec,
            platform="onnxruntime_onnx",
            inputs=tuple(joined(inputs, symbols)),
            outputs=tuple(outputs),
            defaulted=self._defaulted(spec),
        )

    def _defaulted(self, spec: ModelSpec) -> tuple[TensorSpec, ...]:
        """Inputs with an initializer, as older files have them for every weight."""
        unfit = "BYTES" if self._has_bf16 else "BF16"
        found = (
            _tensor(spec, node)
            for node in self._session.get_overridable_initializers()
            if node.type in DATATYPES
        )
        return tuple(tensor for tensor in found if tensor.datatype != unfit)


def _session(spec: ModelSpec, options: EngineOptions, profile: Path | None) -> ort.InferenceSession:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4
    # Spinning threads would take the processor from the gateways, which share it.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile)
    try:
        return opened(spec.artifact, settings)
    except Exception as error:
        raise LoadError(
            f"{spec.artifact} is not a model that ONNX Runtime can load: {_first_line(error)}"
        ) from error


def opened(model: Path | bytes, settings: ort.SessionOptions) -> ort.InferenceSession:
    """A session on the CPU. ONNX Runtime takes FP8 for INT8 where it fuses quantized operators,
    and then refuses what it has made: such models run without that.
    """
    try:
        return ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    except Exception as error:
        if "float8" not in str(error):
            raise
    settings.add_session_config_entry("session.disable_quant_qdq", "1")
    return ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])


def _tensor(spec: ModelSpec, node: Any) -> TensorSpec:
    if node.type not in DATATYPES:
        raise LoadError(
            f"{spec.artifact}: tensor {node.name!r} is a {node.type}, which cannot be served; "
            f"served are {', '.join(DATATYPES)}"
        )
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape)
    return TensorSpec(name=node.name, datatype=DATATYPES[node.type], shape=shape)


def _refuse_strings(spec: ModelSpec, inputs: list[TensorSpec]) -> None:
    """ONNX Runtime makes no values of strings, and BF16 models run on values."""
    name = next((tensor.name for tensor in inputs if tensor.datatype == "BYTES"), None)
    if name is not None:
        raise LoadError(
            f"{spec.artifact}: a model with BF16 tensors cannot have an input of strings, as "
            f"{name!r} is: ONNX Runtime takes one or the other from Python"
        )


def _strings(batch: Tensors) -> Tensors:
    """ONNX strings are text: ONNX Runtime takes `str`, and BYTES tensors hold bytes."""
    return {
        name: _decoded(name, array) if array.dtype == np.object_ else array
        for name, array in batch.items()
    }


def _decoded(name: str, array: Array) -> Array:
    decoded = np.empty(array.size, dtype=np.object_)
    try:
        decoded[:] = [bytes(item).decode() for item in array.flat]
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"input {name!r} must be UTF-8, as ONNX strings are text: {error}"
        ) from error
    return decoded.reshape(array.shape)


def _array(value: ort.OrtValue) -> Array:
    if value.element_type() != BFLOAT16:
        array: Array = value.numpy()
        return array
    shape = value.shape()
    memory = (ctypes.c_uint16 * math.prod(shape)).from_address(value.data_ptr())
    return np.frombuffer(memory, dtype=np.uint16).reshape(shape).copy()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
