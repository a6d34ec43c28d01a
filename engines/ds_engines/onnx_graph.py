"""An ONNX file's graph, as far as it is looked at here, without the package `onnx`.

Messages of the format are declared with the fields that are needed; others are kept as they are.
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto numbers them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from ds_engines.base import Array

_Kind = descriptor_pb2.FieldDescriptorProto
_PACKAGE = "ds_engines.onnx"
_MESSAGES: dict[str, dict[str, tuple[int, str, bool]]] = {
    "Model": {"graph": (7, "Graph", False)},
    "Graph": {
        "node": (1, "Node", True),
        "initializer": (5, "Tensor", True),
        "output": (12, "Value", True),
    },
    "Node": {
        "input": (1, "string", True),
        "output": (2, "string", True),
        "name": (3, "string", False),
        "op_type": (4, "string", False),
        "attribute": (5, "Attribute", True),
    },
    "Attribute": {"name": (1, "string", False), "t": (5, "Tensor", False)},
    "Value": {"name": (1, "string", False)},
    "Entry": {"key": (1, "string", False), "value": (2, "string", False)},
    "Tensor": {
        "data_type": (2, "int32", False),
        "float_data": (4, "float", True),
        "int32_data": (5, "int32", True),
        "name": (8, "string", False),
        "raw_data": (9, "bytes", False),
        "double_data": (10, "double", True),
        "external_data": (13, "Entry", True),
    },
}
"""Message to field to its number, its type and whether it is repeated."""

_REAL = {1: "<f4", 10: "<f2", 11: "<f8", 16: "<u2"}
"""TensorProto's data types of real numbers; BF16 as bits."""

BFLOAT16 = 16


class Node(NamedTuple):
    """`name` is the file's, or that of its first output where it has none."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class OnnxGraph:
    """The outermost graph of a model. A file `path` holds `data`, or what it was made of."""

    def __init__(self, data: bytes, path: Path) -> None:
        self._data = data
        self._folder = path.parent
        self._model = _classes()["Model"].FromString(self._data)

    @property
    def nodes(self) -> Iterator[Node]:
        for node in self._model.graph.node:
            outputs = tuple(filter(None, node.output))
            name = node.name or (outputs[0] if outputs else "")
            yield Node(name, node.op_type, tuple(filter(None, node.input)), outputs)

    @property
    def constants(self) -> Iterator[tuple[str, Array, bool]]:
        """Weights of real numbers, and constants that are nodes: name, flat array, and whether that
        has the bits of BF16.
        """
        for name, tensor in self._tensors():
            if tensor.data_type in _REAL:
                yield name, self._array(tensor), tensor.data_type == BFLOAT16

    def _tensors(self) -> Iterator[tuple[str, Any]]:
        for tensor in self._model.graph.initializer:
            yield tensor.name, tensor
        for node in self._model.graph.node:
            if node.op_type == "Constant" and node.output:
                for attribute in node.attribute:
                    if attribute.name == "value":
                        yield node.output[0], attribute.t

    def with_outputs(self, names: Iterable[str]) -> bytes:
        """The file with these tensors as outputs beside those that it has.

        Of a message that is written in two parts, readers add up what is repeated: the file need
        not be written anew.
        """
        more = _classes()["Model"]()
        there = {output.name for output in self._model.graph.output}
        for name in names:
            if name not in there:
                more.graph.output.add(name=name)
        added: bytes = more.SerializeToString()
        return self._data + added

    def _array(self, tensor: Any) -> Array:
        kind = np.dtype(_REAL[tensor.data_type])
        where = {entry.key: entry.value for entry in tensor.external_data}
        if where:
            with (self._folder / where["location"]).open("rb") as file:
                file.seek(int(where.get("offset", 0)))
                length = where.get("length")
                return np.frombuffer(file.read(int(length) if length else -1), kind)
        if tensor.raw_data:
            return np.frombuffer(tensor.raw_data, kind)
        if tensor.int32_data:  # bits of 16
            bits = np.array(tensor.int32_data, np.uint16)
            return bits if tensor.data_type == BFLOAT16 else bits.view(np.float16)
        return np.array(tensor.float_data or tensor.double_data)


@functools.cache
def _classes() -> dict[str, Any]:
    """In a pool of their own: the package `onnx` may declare the same file."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(_described().SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _MESSAGES
    }


def _described() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="ds_engines/onnx.proto", package=_PACKAGE, syntax="proto2"
    )
    for message, fields in _MESSAGES.items():
        made = file.message_type.add(name=message)
        for name, (number, kind, many) in fields.items():
            field = made.field.add(name=name, number=number)
            field.label = _Kind.LABEL_REPEATED if many else _Kind.LABEL_OPTIONAL
            if kind in _MESSAGES:
                field.type, field.type_name = _Kind.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            else:
                field.type = getattr(_Kind, f"TYPE_{kind.upper()}")
    return file
