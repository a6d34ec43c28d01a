"""A tensor request as the gateway sees it, and the checks that every protocol shares."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import msgspec

from ds_engines import datatypes
from ds_engines.errors import InvalidRequest, ServeError
from ds_engines.spec import ModelSpec, TensorSpec
from ds_serve.tracing import Trace
from ds_serve.transport.arena import Block
from ds_serve.transport.messages import InCuda, Schedule, Tensor

Outcome = TypeVar("Outcome")

LARGEST = 2**63 - 1
"""Elements along one axis. No more fits the messages between processes, nor any engine."""


class InferRequest(msgspec.Struct, gc=False):
    """One request to one model. `outputs` is empty where the client wants all of them.

    `arrived` and `deadline` are in seconds of the monotonic clock. `block` holds the inputs' bytes
    where they were received into memory that the worker reads. `schedule` is None where the client
    says nothing about it; requests of different `partition` share no cached answers and sequences.
    `targets`: outputs that are to be put on a GPU.
    `rank` is the class of the caller's key, in which lower is earlier; text models know it.
    """

    model: str
    version: str
    inputs: list[Tensor]
    arrived: float
    deadline: float
    id: str = ""
    outputs: tuple[str, ...] = ()
    parameters: dict[str, Any] = {}
    block: Block | None = None
    trace: Trace | None = None
    schedule: Schedule | None = None
    partition: str = ""
    rank: int = 0
    targets: list[tuple[str, InCuda]] = []


class InferReply(msgspec.Struct, gc=False):
    """One answer. A request to a decoupled model has several; the last one is `final`.

    `parameters`: what the model tells the client beside its outputs.
    """

    model: str
    version: str
    id: str
    outputs: list[Tensor]
    final: bool = True
    parameters: dict[str, Any] | None = None


Done = Callable[[InferReply | ServeError], None]
"""Told the one answer, or what went wrong; must not raise."""

Abandon = Callable[[], None]
"""Nobody wants the answer any more: it is not computed where that can be helped, nor told."""


def end_by_timeout(request: InferRequest) -> None:
    """Make the client's own timeout the request's deadline, as it is where no queue honours it."""
    if request.schedule is not None and request.schedule.timeout_us:
        timeout = request.arrived + request.schedule.timeout_us / 1e6
        request.deadline = min(request.deadline, timeout)


def resolve(future: asyncio.Future[Outcome], outcome: Outcome | ServeError) -> None:
    """Give the outcome to whoever awaits the future, if anybody still does."""
    if future.done():
        return
    if isinstance(outcome, ServeError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


async def answered(
    begin: Callable[[InferRequest, Done], Abandon], request: InferRequest
) -> InferReply:
    """The one answer to a request that is begun here, and abandoned once nobody waits for it."""
    answer: asyncio.Future[InferReply] = asyncio.get_running_loop().create_future()
    abandon = begin(request, partial(resolve, answer))
    try:
        return await answer
    finally:
        abandon()


def check(spec: ModelSpec, request: InferRequest) -> int:
    """The number of rows in the request.

    Raises InvalidRequest where a tensor is missing, unknown or repeated, or has another datatype,
    shape or size than the model expects.
    """
    rows: int | None = None
    in_order = len(request.inputs) == len(spec.inputs)
    for index, tensor in enumerate(request.inputs):
        known = spec.inputs[index] if index < len(spec.inputs) else None
        if known is None or known.name != tensor.name:
            known = spec.input(tensor.name)
            in_order = False
        if known is None:
            names = ", ".join(t.name for t in spec.inputs)
            raise InvalidRequest(
                f"model {spec.name!r} has no input {tensor.name!r}; its inputs are: {names}"
            )
        axis = _check_tensor(spec, known, tensor)
        if axis is None:
            continue
        if rows is not None and tensor.shape[axis] != rows:
            raise InvalidRequest(
                f"input {tensor.name!r} has {tensor.shape[axis]} rows on axis {axis}, "
                f"other inputs have {rows}"
            )
        rows = tensor.shape[axis]
    if not in_order:
        _check_names(spec, request)
    if request.outputs:
        _check_outputs(spec, request)
    return _check_rows(spec, rows)


def _check_tensor(spec: ModelSpec, known: TensorSpec, tensor: Tensor) -> int | None:
    """The tensor's batch axis, where the model is batched and the tensor has one."""
    if tensor.datatype != known.datatype:
        raise InvalidRequest(
            f"input {tensor.name!r} of model {spec.name!r} is {known.datatype}, "
            f"the request says {tensor.datatype or 'nothing'}"
        )
    shape, expected = tensor.shape, known.shape
    fits = len(shape) == len(expected)
    if fits:
        for size, wanted in zip(shape, expected, strict=True):
            if size != wanted and (wanted != -1 or not 0 <= size <= LARGEST):
                fits = False
    if not fits:
        raise InvalidRequest(
            f"input {tensor.name!r} of model {spec.name!r} has shape {list(expected)} "
            f"(-1: any size), the request's is {list(shape)}"
        )
    data = _data(tensor)
    if not _has_size(tensor.datatype, shape, data):
        datatypes.check_data(tensor.name, tensor.datatype, shape, data)
    return known.batch_axis if spec.batch.max_batch_size else None


def _has_size(datatype: str, shape: tuple[int, ...], data: memoryview) -> bool:
    """Whether fixed-size data is right, said at once; the long way says what is wrong."""
    itemsize = datatypes.DATATYPES[datatype].itemsize
    return itemsize > 0 and math.prod(shape) * itemsize == len(data)


def _data(tensor: Tensor) -> memoryview:
    if not isinstance(tensor.data, memoryview):
        raise InvalidRequest(f"input {tensor.name!r} has no data")
    return tensor.data


def _check_names(spec: ModelSpec, request: InferRequest) -> None:
    names = {tensor.name for tensor in request.inputs}
    if len(names) != len(request.inputs):
        seen = [tensor.name for tensor in request.inputs]
        twice = next(name for name in seen if seen.count(name) > 1)
        raise InvalidRequest(f"input {twice!r} is there twice")
    for tensor in spec.inputs:
        if tensor.name not in names and not tensor.optional:
            raise InvalidRequest(
                f"input {tensor.name!r} of model {spec.name!r} is missing: it is "
                f"{tensor.datatype} of shape {list(tensor.shape)}"
            )


def _check_outputs(spec: ModelSpec, request: InferRequest) -> None:
    known = [tensor.name for tensor in spec.outputs]
    if known == list(request.outputs):
        return
    for name in request.outputs:
        if name not in known:
            raise InvalidRequest(
                f"model {spec.name!r} has no output {name!r}; its outputs are: {', '.join(known)}"
            )
    if len(set(request.outputs)) != len(request.outputs):
        raise InvalidRequest("an output is asked for twice")


def _check_rows(spec: ModelSpec, rows: int | None) -> int:
    if rows is None:
        return 1
    most = spec.batch.max_batch_size
    if not 0 < rows <= most:
        raise InvalidRequest(
            f"the request has {rows} rows; model {spec.name!r} takes 1 to {most} at a time"
        )
    return rows
