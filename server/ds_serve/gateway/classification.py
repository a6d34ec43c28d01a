"""The classification extension: an output's largest values, with where they stand, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_engines import datatypes
from ds_engines.errors import InvalidRequest
from ds_engines.spec import ModelSpec, TensorSpec
from ds_serve.gateway.requests import Done, InferReply
from ds_serve.transport.messages import Tensor

PARAMETER = "classification"
MOST_ELEMENTS = 1_000_000
"""Of an output that is ranked, as Triton has it."""

UNRANKED = ("BOOL", "BYTES")

Classes = Mapping[str, int]
"""Outputs by name, and how many classes are wanted of each."""


def wanted(parameters: Mapping[str, Any], where: str) -> int:
    """How many classes an output's parameters ask for; 0 where they do not. Raises
    InvalidRequest.
    """
    count = parameters.get(PARAMETER, 0)
    if type(count) is not int or count < 0:
        raise InvalidRequest(f"{where}: {PARAMETER} is {count!r}; it must be a number of classes")
    if count and "shared_memory_region" in parameters:
        raise InvalidRequest(f"{where}: an output in shared memory cannot be classified")
    return count


def check(spec: ModelSpec, classes: Classes) -> None:
    """Raises InvalidRequest where an output has values that have no order."""
    for output in spec.outputs:
        if output.name in classes and output.datatype in UNRANKED:
            raise InvalidRequest(
                f"output {output.name!r} is {output.datatype}, which cannot be classified"
            )


def ranked(spec: ModelSpec, classes: Classes, reply: InferReply) -> InferReply:
    """The reply with those outputs as BYTES, `[count]` or `[rows, count]` of
    `value:index[:label]`. Raises InvalidRequest where one has too many elements.
    """
    known = {output.name: output for output in spec.outputs}
    batched = spec.batch.max_batch_size > 0
    reply.outputs = [
        _ranked(known[tensor.name], tensor, classes[tensor.name], batched)
        if tensor.name in classes and tensor.name in known
        else tensor
        for tensor in reply.outputs
    ]
    return reply


def done(spec: ModelSpec, classes: Classes, answer: Done) -> Done:
    """Tells `answer` the reply with its outputs ranked."""
    check(spec, classes)

    def rank(outcome: Any) -> None:
        if isinstance(outcome, InferReply):
            try:
                outcome = ranked(spec, classes, outcome)
            except InvalidRequest as error:
                outcome = error
        answer(outcome)

    return rank


def _ranked(known: TensorSpec, tensor: Tensor, count: int, batched: bool) -> Tensor:
    assert isinstance(tensor.data, memoryview), "an answer's outputs hold their bytes"
    values = datatypes.to_array(tensor.datatype, tensor.shape, tensor.data, tensor.name)
    if tensor.datatype == "BF16":
        values = datatypes.bf16_to_float32(values)
    if values.size > MOST_ELEMENTS:
        raise InvalidRequest(
            f"output {tensor.name!r} has {values.size:,} elements; at most {MOST_ELEMENTS:,} can "
            "be classified"
        )
    if batched and known.batch_axis == 0:
        texts = [_largest(row.reshape(-1), count, known.labels) for row in values]
        width = len(texts[0]) if texts else 0
        shape: tuple[int, ...] = (len(texts), width)
    else:
        texts = [_largest(values.reshape(-1), count, known.labels)]
        shape = (len(texts[0]),)
    flat = np.array([text for row in texts for text in row], dtype=np.object_)
    data = memoryview(datatypes.to_bytes("BYTES", flat, tensor.name))
    return Tensor(tensor.name, "BYTES", shape, data)


def _largest(values: NDArray[Any], count: int, labels: Sequence[str]) -> list[bytes]:
    """The texts of the largest values, of equal ones the first."""
    backwards = np.argsort(values[::-1], kind="stable")[::-1]
    order = len(values) - 1 - backwards
    return [_text(values[index], int(index), labels) for index in order[:count]]


def _text(value: Any, index: int, labels: Sequence[str]) -> bytes:
    number = f"{value:f}" if isinstance(value, np.floating) else str(value)
    label = f":{labels[index]}" if index < len(labels) else ""
    return f"{number}:{index}{label}".encode()
