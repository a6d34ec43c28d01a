"""One request whose large tensors lie in shared memory."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from ds_client import messages
from ds_client.errors import AccessDenied, InvalidRequest, ModelNotFound, Overloaded, Unsupported
from ds_client.infos import ModelInfo
from ds_client.messages import Inputs, Outputs, Target
from ds_client.shared_memory import Region, SharedMemory
from ds_client.tensors import WIDTHS, Array, numbers
from ds_proto import grpc_service_pb2 as pb
from ds_proto.model_config_pb2 import ModelConfig

SMALLEST = 64 * 1024
"""Bytes. A smaller tensor is quicker sent."""

ALIGNMENT = 64

REFUSALS = (InvalidRequest, ModelNotFound, Unsupported, AccessDenied, Overloaded)
"""Errors after which the server looks at the request no more."""

Rows = Mapping[str, int | None]
"""A model's outputs, and the bytes of one row; None where that varies."""


class Lease:
    """Ends with its `with` block, or by `end`. `region` is None where everything is sent."""

    def __init__(
        self,
        request: pb.ModelInferRequest,
        pool: Leases | None = None,
        region: Region | None = None,
    ) -> None:
        self.request = request
        self.region = region
        self._pool = pool

    def outputs_of(self, answer: pb.ModelInferResponse) -> Outputs:
        """Copies of what lies in the region, and the rest. Raises ServerFailure."""
        return messages.outputs_of(answer, self.read)

    @property
    def read(self) -> messages.Read | None:
        """Where outputs are to be found that are not in the answer."""
        return None if self.region is None else self.region.read

    def forgotten(self, error: InvalidRequest) -> bool:
        """Whether the server does not know the region any more: it was started anew."""
        if self.region is None or self.region.name not in str(error):
            return False
        self.region.forgotten = True
        return True

    def end(self, error: BaseException | None) -> None:
        """`error`: how the request ended, None where it was answered."""
        if self._pool is None:
            return
        if isinstance(error, InvalidRequest | ModelNotFound):
            self._pool.forget(self.request)
        if self.region is not None:
            self._pool.memory.give(self.region, error is None or isinstance(error, REFUSALS))
            self.region = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end(error)


class Leases:
    """Makes requests out of regions. It knows how large the answers of a model are once told."""

    def __init__(self, memory: SharedMemory) -> None:
        self.memory = memory
        self._lock = threading.Lock()
        self._models: dict[tuple[str, str], Rows] = {}

    def knows(self, target: Target) -> bool:
        return (target.model, target.version) in self._models

    def learn(self, target: Target, rows: Rows) -> None:
        with self._lock:
            self._models[target.model, target.version] = rows

    def forget(self, request: pb.ModelInferRequest) -> None:
        with self._lock:
            self._models.pop((request.model_name, request.model_version), None)

    def make(self, target: Target, inputs: Inputs, id: str) -> Lease:
        """Raises InvalidRequest for an input or a parameter that cannot be sent."""
        arrays = {name: found for name, value in inputs.items() if (found := numbers(name, value))}
        large = {name: each for name, each in arrays.items() if each[1].nbytes >= SMALLEST}
        answers, names = self._answers(target, [array for _, array in arrays.values()])
        places, size = _layout([*(each[1].nbytes for each in large.values()), *answers.values()])
        region = self.memory.take(size) if size else None
        if region is None:
            return Lease(messages.infer_request(target, inputs, id), self)
        try:
            sent = {name: value for name, value in inputs.items() if name not in large}
            request = messages.infer_request(replace(target, outputs=names), sent, id)
            for (name, (datatype, array)), place in zip(large.items(), places, strict=False):
                given = request.inputs.add(name=name, datatype=datatype, shape=array.shape)
                _say(given.parameters, region, place)
                np.ndarray(array.shape, array.dtype, region.memory, place.offset)[...] = array
            placed = [output for output in request.outputs if output.name in answers]
            for output, place in zip(placed, places[len(large) :], strict=True):
                _say(output.parameters, region, place)
        except BaseException:
            self.memory.give(region, intact=True)
            raise
        return Lease(request, self, region)

    def _answers(
        self, target: Target, arrays: Sequence[Array]
    ) -> tuple[dict[str, int], Sequence[str]]:
        """The bytes of each output that is worth a place, and the outputs to ask for."""
        rows = self._models.get((target.model, target.version), {})
        count = arrays[0].shape[0] if arrays and arrays[0].ndim else 0
        names = target.outputs or tuple(rows)
        sizes = {name: (rows.get(name) or 0) * count for name in names}
        found = {name: size for name, size in sizes.items() if size >= SMALLEST}
        return found, names if found else target.outputs


class _Place(NamedTuple):
    offset: int
    size: int


def _layout(sizes: Iterable[int]) -> tuple[list[_Place], int]:
    """Where each tensor lies, and the bytes of all."""
    places, end = [], 0
    for size in sizes:
        places.append(_Place(end, size))
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return places, end


def rows_of(info: ModelInfo, config: ModelConfig) -> Rows:
    """Answers of batches go through memory where a row has a fixed size."""
    if config.max_batch_size == 0:
        return {}
    return {tensor.name: _row(tensor.datatype, tensor.shape) for tensor in info.outputs}


def _row(datatype: str, shape: tuple[int, ...]) -> int | None:
    width = WIDTHS.get(datatype)
    if width is None or not shape or min(shape[1:], default=0) < 0:
        return None
    return width * prod(shape[1:])


def _say(parameters: Any, region: Region, place: _Place) -> None:
    parameters["shared_memory_region"].string_param = region.name
    parameters["shared_memory_offset"].int64_param = place.offset
    parameters["shared_memory_byte_size"].int64_param = place.size
