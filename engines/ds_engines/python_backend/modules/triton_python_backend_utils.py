"""What `import triton_python_backend_utils` gives to a model.py."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ds_engines.python_backend import requests as _requests
from ds_engines.python_backend.faults import TritonError, TritonModelException
from ds_engines.python_backend.logger import Logger, LogLevel
from ds_engines.python_backend.metrics import Metric, MetricFamily
from ds_engines.python_backend.model_config import ModelConfig
from ds_engines.python_backend.requests import (
    InferenceRequest,
    InferenceResponse,
    InferenceResponseSender,
    InferenceTrace,
    ResponseIterator,
)
from ds_engines.python_backend.tensor import NUMBERS, NUMPY, Tensor

__all__ = [
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_END",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_START",
    "TRITONSERVER_REQUEST_RELEASE_ALL",
    "TRITONSERVER_REQUEST_RELEASE_RESCHEDULE",
    "TRITONSERVER_RESPONSE_COMPLETE_FINAL",
    "TRITON_STRING_TO_NUMPY",
    "InferenceRequest",
    "InferenceResponse",
    "InferenceResponseSender",
    "InferenceTrace",
    "LogLevel",
    "Logger",
    "Metric",
    "MetricFamily",
    "ModelConfig",
    "PreferredMemory",
    "ResponseIterator",
    "Tensor",
    "TritonError",
    "TritonModelException",
    "deserialize_bytes_tensor",
    "get_input_config_by_name",
    "get_input_tensor_by_name",
    "get_output_config_by_name",
    "get_output_tensor_by_name",
    "is_model_ready",
    "numpy_to_triton_type",
    "serialize_byte_tensor",
    "triton_string_to_numpy",
    "triton_to_numpy_type",
    "using_decoupled_model_transaction_policy",
]

TRITONSERVER_REQUEST_FLAG_SEQUENCE_START = _requests.SEQUENCE_START
TRITONSERVER_REQUEST_FLAG_SEQUENCE_END = _requests.SEQUENCE_END
TRITONSERVER_RESPONSE_COMPLETE_FINAL = _requests.RESPONSE_COMPLETE_FINAL
TRITONSERVER_REQUEST_RELEASE_ALL = _requests.RELEASE_ALL
TRITONSERVER_REQUEST_RELEASE_RESCHEDULE = 2

TRITONSERVER_MEMORY_GPU, TRITONSERVER_MEMORY_CPU = 0, 1

TRITON_STRING_TO_NUMPY: dict[str, type[Any]] = {
    "TYPE_STRING" if name == "BYTES" else f"TYPE_{name}": bool if name == "BOOL" else NUMPY[number]
    for name, number in NUMBERS.items()
}

_LENGTH = struct.Struct("<I")


class PreferredMemory:
    """Where outputs of called models should lie; here it is always the CPU."""

    def __init__(self, preferred_memory_type: int, preferred_device_id: int = 0) -> None:
        self.memory_type, self.device_id = preferred_memory_type, preferred_device_id


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str) -> Tensor | None:
    return _named(inference_request.inputs(), name)


def get_output_tensor_by_name(inference_response: InferenceResponse, name: str) -> Tensor | None:
    return _named(inference_response.output_tensors(), name)


def get_input_config_by_name(model_config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    return _configured(model_config, "input", name)


def get_output_config_by_name(model_config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    return _configured(model_config, "output", name)


def using_decoupled_model_transaction_policy(model_config: Mapping[str, Any]) -> bool:
    return bool(model_config.get("model_transaction_policy", {}).get("decoupled", False))


def triton_to_numpy_type(data_type: int) -> type[Any] | None:
    """The numpy type of a number of Triton's enumeration; None for one that has none."""
    return NUMPY.get(data_type)


def numpy_to_triton_type(data_type: npt.DTypeLike) -> int | None:
    """The number in Triton's enumeration; None for a numpy type that has none."""
    dtype = np.dtype(data_type)
    if dtype.kind == "S":
        return NUMBERS["BYTES"]
    return next((number for number, kind in NUMPY.items() if np.dtype(kind) == dtype), None)


def triton_string_to_numpy(triton_type_string: str) -> type[Any]:
    """The numpy type of a name such as TYPE_FP32. Raises KeyError."""
    return TRITON_STRING_TO_NUMPY[triton_type_string]


def serialize_byte_tensor(input_tensor: npt.NDArray[Any]) -> Any:
    """The elements in C order, each after its length; () for an empty tensor, None for numbers."""
    if input_tensor.size == 0:
        return ()
    if input_tensor.dtype.kind not in "OS":
        return None
    texts = [
        item if isinstance(item, bytes) else str(item).encode()
        for item in input_tensor.reshape(-1).tolist()
    ]
    return b"".join(_LENGTH.pack(len(text)) + text for text in texts)


def deserialize_bytes_tensor(encoded_tensor: bytes) -> npt.NDArray[np.object_]:
    """The elements of `serialize_byte_tensor`, in one axis."""
    texts: list[bytes] = []
    at = 0
    while at < len(encoded_tensor):
        (length,) = _LENGTH.unpack_from(encoded_tensor, at)
        at += _LENGTH.size
        texts.append(bytes(encoded_tensor[at : at + length]))
        at += length
    made = np.empty(len(texts), np.object_)
    made[:] = texts
    return made


def is_model_ready(model_name: str, model_version: str = "") -> bool:
    """Whether another model of the server answers."""
    return _requests.caller().ready(model_name, model_version)


def _named(tensors: list[Tensor], name: str) -> Tensor | None:
    return next((tensor for tensor in tensors if tensor.name() == name), None)


def _configured(config: Mapping[str, Any], what: str, name: str) -> dict[str, Any] | None:
    return next((one for one in config.get(what, ()) if one["name"] == name), None)
