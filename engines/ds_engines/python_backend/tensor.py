"""Tensors as model.py has them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ds_engines.base import Array
from ds_engines.python_backend.faults import TritonModelException

NUMBERS: dict[str, int] = {
    "BOOL": 1, "UINT8": 2, "UINT16": 3, "UINT32": 4, "UINT64": 5, "INT8": 6, "INT16": 7,
    "INT32": 8, "INT64": 9, "FP16": 10, "FP32": 11, "FP64": 12, "BYTES": 13,
}  # fmt: skip
"""KServe's names, and the numbers of the enumeration in Triton's model configuration."""

NUMPY: dict[int, type[Any]] = {
    1: np.bool_, 2: np.uint8, 3: np.uint16, 4: np.uint32, 5: np.uint64, 6: np.int8, 7: np.int16,
    8: np.int32, 9: np.int64, 10: np.float16, 11: np.float32, 12: np.float64, 13: np.object_,
}  # fmt: skip

_NAMES = {np.dtype(NUMPY[number]): name for name, number in NUMBERS.items()}

CPU = 1
"""DLPack's number of the device that all tensors are on."""


class Tensor:
    """A named array. Texts are object arrays of bytes."""

    def __init__(self, name: str, array: Any) -> None:
        if not isinstance(array, np.ndarray):
            kind = type(array).__name__
            raise TritonModelException(f"tensor {name!r} is a {kind}; it must be a numpy array")
        self._name = str(name)
        self._array = _plain(self._name, array)

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Array:
        """Shared with the tensor, not a copy."""
        return self._array

    def triton_dtype(self) -> int:
        """The number that the model configuration has for the datatype."""
        return NUMBERS[self.datatype]

    @property
    def datatype(self) -> str:
        """KServe's name."""
        return _NAMES[self._array.dtype]

    def shape(self) -> list[int]:
        return list(self._array.shape)

    def is_cpu(self) -> bool:
        return True

    def to_dlpack(self) -> Any:
        """A DLPack capsule of the same memory."""
        return self.__dlpack__()

    @staticmethod
    def from_dlpack(name: str, tensor: Any) -> Tensor:
        """From an object with `__dlpack__`, or a capsule; it must be on the CPU."""
        source = tensor if hasattr(tensor, "__dlpack__") else _Capsule(tensor)
        try:
            return Tensor(name, np.from_dlpack(source))
        except (BufferError, RuntimeError, TypeError) as error:
            raise TritonModelException(f"tensor {name!r} cannot be taken over: {error}") from None

    def __dlpack__(self, stream: Any = None) -> Any:
        if self._array.dtype == np.object_:
            raise TritonModelException(f"tensor {self._name!r} holds texts, which DLPack has not")
        return self._array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return CPU, 0


class _Capsule:
    """A bare capsule as an object that numpy takes."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return CPU, 0


def _plain(name: str, array: Array) -> Array:
    """The array in the byte order of this machine; texts as objects."""
    if array.dtype.kind in "SU":
        array = array.astype(np.object_)
    native = array.dtype.newbyteorder("=")
    if native not in _NAMES:
        raise TritonModelException(
            f"tensor {name!r} is of the numpy type {array.dtype}, which no datatype stands for"
        )
    return np.ascontiguousarray(array, native).reshape(array.shape)


def wire(tensor: Tensor) -> tuple[str, str, Array]:
    """Name, datatype and array; what is no bytes in a tensor of texts is written out."""
    array = tensor.as_numpy()
    if array.dtype == np.object_:
        flat = [_text(element) for element in array.reshape(-1)]
        array = np.empty(len(flat), np.object_)
        array[:] = flat
        array = array.reshape(tensor.shape())
    return tensor.name(), tensor.datatype, array


def _text(element: object) -> bytes:
    return element if isinstance(element, bytes) else str(element).encode()
