"""Messages of the inference service: filled in at random, changed, or bytes of no meaning."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from tritonclient.grpc import service_pb2 as pb

METHODS = {
    f"/{pb.DESCRIPTOR.services_by_name['GRPCInferenceService'].full_name}/{method.name}": (
        GetMessageClass(method.input_type)
    )
    for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
}
"""The requests of each method, by its path."""

WORDS = (
    "", "1", "x", "y", "text_input", "stream", "sampling_parameters", "FP32", "BYTES", "INT64",
    "BOOL", "BF16", "FP99", "binary_data_size", "shared_memory_region", "sequence_id", "priority",
    "timeout", "classification", "trace_rate", "log_info", "config", "file:1/model.onnx", "../x",
    "\0", "ü" * 300,
)  # fmt: skip
NUMBERS = (0, 1, -1, 2, 64, 127, 255, 2**31 - 1, 2**31, 2**63 - 1, -(2**63), 2**64 - 1)
DEEPEST = 5
OMITTED = 0.4
"""The share of fields that are left out."""


@dataclass(frozen=True)
class Maker:
    """Makes messages; `right` are some for ModelInfer that the server answers."""

    random: random.Random
    models: Sequence[str]
    right: Sequence[Message]

    def bytes_for(self, path: str) -> bytes:
        """A message to send to the method: as it should be, a bit off, or anything."""
        kind = self.random.random()
        if kind < 0.2 or path not in METHODS:
            return self.random.randbytes(self.random.choice((0, 1, 5, 50, 500, 5000)))
        data = self._message(path).SerializeToString()
        return data if kind < 0.5 else self.changed(data)

    def changed(self, data: bytes) -> bytes:
        """A few bytes changed, left out or put in."""
        made = bytearray(data)
        for _ in range(self.random.randint(1, 4)):
            start = self.random.randint(0, len(made))
            stop = start + self.random.randint(0, 3)
            made[start:stop] = self.random.randbytes(self.random.randint(0, 3))
        return bytes(made)

    def _message(self, path: str) -> Message:
        made = METHODS[path]()
        if isinstance(made, pb.ModelInferRequest) and self.right and self.random.random() < 0.6:
            made.CopyFrom(self.random.choice(self.right))
            return made
        self._fill(made, 0)
        return made

    def _fill(self, message: Any, depth: int) -> None:
        for field in message.DESCRIPTOR.fields:
            if self.random.random() < OMITTED or depth > DEEPEST:
                continue
            if field.message_type and field.message_type.GetOptions().map_entry:
                self._fill_map(getattr(message, field.name), field.message_type, depth)
            elif field.is_repeated:
                self._fill_list(getattr(message, field.name), field, depth)
            elif field.message_type:
                getattr(message, field.name).SetInParent()
                self._fill(getattr(message, field.name), depth + 1)
            else:
                setattr(message, field.name, self._value(field))

    def _fill_list(self, values: Any, field: FieldDescriptor, depth: int) -> None:
        for _ in range(self.random.randint(0, 3)):
            if field.message_type:
                self._fill(values.add(), depth + 1)
            else:
                values.append(self._value(field))

    def _fill_map(self, values: Any, entry: Any, depth: int) -> None:
        key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
        for _ in range(self.random.randint(0, 3)):
            if value.message_type:
                self._fill(values[self._value(key)], depth + 1)
            else:
                values[self._value(key)] = self._value(value)

    def _value(self, field: FieldDescriptor) -> Any:
        if field.enum_type:
            return self.random.choice(field.enum_type.values).number
        if field.type == FieldDescriptor.TYPE_BYTES:
            return self.random.randbytes(self.random.choice((0, 1, 4, 8, 256)))
        return self._makers()[field.cpp_type]()

    def _makers(self) -> dict[int, Callable[[], Any]]:
        return {
            FieldDescriptor.CPPTYPE_INT32: lambda: self._number(-(2**31), 2**31 - 1),
            FieldDescriptor.CPPTYPE_INT64: lambda: self._number(-(2**63), 2**63 - 1),
            FieldDescriptor.CPPTYPE_UINT32: lambda: self._number(0, 2**32 - 1),
            FieldDescriptor.CPPTYPE_UINT64: lambda: self._number(0, 2**64 - 1),
            FieldDescriptor.CPPTYPE_DOUBLE: self._fraction,
            FieldDescriptor.CPPTYPE_FLOAT: self._fraction,
            FieldDescriptor.CPPTYPE_BOOL: lambda: self.random.random() < 0.5,
            FieldDescriptor.CPPTYPE_STRING: self._text,
        }

    def _number(self, low: int, high: int) -> int:
        return min(max(self.random.choice(NUMBERS), low), high)

    def _fraction(self) -> float:
        return self.random.choice((0.0, -1.0, 0.5, 1e30, float("inf"), float("nan")))

    def _text(self) -> str:
        return self.random.choice((*self.models, *WORDS))
