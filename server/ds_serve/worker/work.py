"""From requests to a batch, through the engine, and back to an answer for each."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from ds_engines import datatypes
from ds_engines.base import Array, BatchEngine, Tensors
from ds_engines.errors import EngineFailure, OutOfMemory, ServeError
from ds_engines.spec import ModelSpec, TensorSpec
from ds_serve import child
from ds_serve.scheduler.queue import Entry
from ds_serve.scheduler.sequences import Step
from ds_serve.transport.link import Link
from ds_serve.transport.messages import Answer, Fault, Infer, Tensor
from ds_serve.worker.device_memory import OnDevice

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Job:
    """A request inside the worker. Times are in seconds of the monotonic clock.

    `queued_ns`: nanoseconds of the same clock, of a request that is traced. `step`: its place in
    its sequence, where it has one. `cache_key`: under which its answer is to be kept. `begun`: it
    has an answer already, which is not its last. `targets`: where on a GPU outputs are to be put.
    """

    gateway: Link
    request: Infer
    inputs: Tensors
    answer: Answer | None = None
    started: float = 0.0
    queued_ns: int = 0
    step: Step | None = None
    cache_key: bytes = b""
    begun: bool = False
    targets: list[tuple[str, OnDevice]] = field(default_factory=list)

    @property
    def key(self) -> Hashable:
        """What it is called in the queue."""
        return (self.gateway, self.request.id)


@dataclass(slots=True)
class Timing:
    """What one execution took, in nanoseconds, and the rows that it held."""

    rows: int
    input_ns: int
    infer_ns: int
    output_ns: int


def lane_of(spec: ModelSpec, request: Infer) -> Hashable:
    """Requests of one lane differ only in their rows, so that they can be joined."""
    if not spec.batch.max_batch_size:
        return None
    known, given = spec.inputs, request.inputs
    if len(given) == len(known) == 1:
        return (request.outputs, _shape_of(known[0], given[0]))
    return (request.outputs, tuple([_shape_of(spec.input(each.name), each) for each in given]))


def _shape_of(known: TensorSpec | None, tensor: Tensor) -> Hashable:
    axis = None if known is None else known.batch_axis
    if axis is None:
        held = tensor.data if isinstance(tensor.data, OnDevice) else bytes(_data(tensor))
        return (tensor.name, tensor.shape, held)
    return (tensor.name, tensor.shape[:axis], tensor.shape[axis + 1 :])


def _data(tensor: Tensor) -> memoryview:
    assert isinstance(tensor.data, memoryview), "frames were resolved by the reader"
    return tensor.data


def arrays_of(request: Infer) -> Tensors:
    """The request's tensors as numpy arrays, copied only where unaligned. Raises InvalidRequest."""
    return {tensor.name: _array(tensor) for tensor in request.inputs}


def _array(tensor: Tensor) -> Array:
    if isinstance(tensor.data, OnDevice):
        return cast(Array, tensor.data.array(tensor))
    array = datatypes.to_array(tensor.datatype, tensor.shape, _data(tensor), tensor.name)
    return array if array.flags.aligned else array.copy()


class BatchRunner:
    """Runs a batch of jobs; each gets its own answer, and a bad one fails alone."""

    def __init__(self, engine: BatchEngine) -> None:
        self._engine = engine
        self._spec = engine.spec

    def run(self, entries: list[Entry]) -> list[Timing]:
        """Sets every job's `answer`. Never raises: what goes wrong is an answer too."""
        jobs = [entry.payload for entry in entries]
        assert all(isinstance(job, Job) for job in jobs)
        return self._run([job for job in jobs if isinstance(job, Job)])

    def _run(self, jobs: list[Job]) -> list[Timing]:
        begun = time.monotonic()
        for job in jobs:
            job.started = begun
        try:
            return [self._execute(jobs)]
        except Exception as error:
            if isinstance(error, EngineFailure) and error.fatal:
                # The supervisor tells all who wait, and starts another worker.
                os._exit(child.fail(str(error)))
            if len(jobs) > 1:
                return [timing for job in jobs for timing in self._run([job])]
            jobs[0].answer = Answer(jobs[0].request.id, fault=_fault(self._spec, error))
            return []

    def _execute(self, jobs: list[Job]) -> Timing:
        t0 = time.monotonic_ns()
        batch = self._joined(jobs)
        t1 = time.monotonic_ns()
        rows = sum(job.request.rows for job in jobs)
        results = self._results(batch, self._wanted(jobs[0].request), rows)
        t2 = time.monotonic_ns()
        answers = self._split(jobs, results)
        for job, answer in zip(jobs, answers, strict=True):
            job.answer = answer
            _put(job, answer)
        t3 = time.monotonic_ns()
        for job, answer in zip(jobs, answers, strict=True):
            if job.request.traced:
                answer.times = (job.queued_ns, t0, t1, t2, t3)
        return Timing(rows, t1 - t0, t2 - t1, t3 - t2)

    def _results(self, batch: Tensors, wanted: tuple[str, ...], rows: int) -> Tensors:
        """What the engine answers; where its memory does not suffice, in halves."""
        try:
            return self._engine.run(batch, wanted)
        except OutOfMemory as error:
            if rows < 2 or not self._divisible(wanted):
                raise
            log.warning("model %s: %d rows again in halves: %s", self._spec.name, rows, error)
        half = rows // 2
        first = self._results(rows_of(self._spec.inputs, batch, 0, half), wanted, half)
        rest = self._results(rows_of(self._spec.inputs, batch, half, rows), wanted, rows - half)
        return {
            tensor.name: np.concatenate([first[tensor.name], rest[tensor.name]], tensor.batch_axis)
            for tensor in self._spec.outputs
            if tensor.name in first and tensor.batch_axis is not None
        }

    def _divisible(self, wanted: tuple[str, ...]) -> bool:
        """Whether halves' answers make the whole's."""
        asked = (each for each in self._spec.outputs if not wanted or each.name in wanted)
        return bool(self._spec.batch.max_batch_size) and all(
            tensor.batch_axis is not None for tensor in asked
        )

    def _wanted(self, request: Infer) -> tuple[str, ...]:
        """The outputs that the engine must give; none named: all."""
        return request.outputs

    def _joined(self, jobs: list[Job]) -> Tensors:
        if len(jobs) == 1:
            return jobs[0].inputs
        first = jobs[0].inputs
        batch: Tensors = {}
        for tensor in self._spec.inputs:
            if tensor.name not in first:
                continue
            if tensor.batch_axis is None:
                batch[tensor.name] = first[tensor.name]
            else:
                parts = [job.inputs[tensor.name] for job in jobs]
                batch[tensor.name] = np.concatenate(parts, axis=tensor.batch_axis)
        return batch

    def _split(self, jobs: list[Job], results: Tensors) -> list[Answer]:
        total = sum(job.request.rows for job in jobs)
        answers = [Answer(job.request.id, []) for job in jobs]
        for tensor in self._spec.outputs:
            if tensor.name not in results:
                continue
            array = results[tensor.name]
            axis = tensor.batch_axis
            if axis is not None:
                check_rows(tensor.name, array, axis, total)
            if len(jobs) == 1 or axis is None:
                for answer in answers:
                    answer.outputs.append(_tensor(tensor.name, tensor.datatype, array))
            elif axis == 0 and datatypes.DATATYPES[tensor.datatype].itemsize:
                _deal_rows(tensor, array, jobs, answers)
            else:
                _deal_slices(tensor, array, axis, jobs, answers)
        return answers


def _put(job: Job, answer: Answer) -> None:
    """Outputs onto GPUs; one that does not fit fails its own request."""
    wanted = dict(job.targets)
    try:
        for output in answer.outputs:
            if output.name in wanted:
                wanted[output.name].put(output)
    except ServeError as error:
        job.answer = Answer(job.request.id, fault=Fault.of(error))


def _deal_rows(tensor: TensorSpec, array: Array, jobs: list[Job], answers: list[Answer]) -> None:
    """Rows lie one behind the other: each job's are a piece of the raw bytes."""
    data = memoryview(datatypes.to_bytes(tensor.datatype, array, tensor.name))
    size, rest = len(data) // len(array), array.shape[1:]
    start = 0
    for job, answer in zip(jobs, answers, strict=True):
        rows = job.request.rows
        stop = start + rows * size
        answer.outputs.append(Tensor(tensor.name, tensor.datatype, (rows, *rest), data[start:stop]))
        start = stop


def _deal_slices(
    tensor: TensorSpec, array: Array, axis: int, jobs: list[Job], answers: list[Answer]
) -> None:
    start = 0
    for job, answer in zip(jobs, answers, strict=True):
        stop = start + job.request.rows
        part = _slice(array, axis, start, stop)
        answer.outputs.append(_tensor(tensor.name, tensor.datatype, part))
        start = stop


def rows_of(inputs: tuple[TensorSpec, ...], batch: Tensors, start: int, stop: int) -> Tensors:
    """Some rows of a batch, as views; tensors without a batch axis are all rows'."""
    axes = {tensor.name: tensor.batch_axis for tensor in inputs}
    return {
        name: array if (axis := axes.get(name)) is None else _slice(array, axis, start, stop)
        for name, array in batch.items()
    }


def _slice(array: Array, axis: int, start: int, stop: int) -> Array:
    part: Array = array[(slice(None),) * axis + (slice(start, stop),)]
    return part


def check_rows(name: str, array: Array, axis: int, total: int) -> None:
    if array.ndim <= axis or array.shape[axis] != total:
        raise EngineFailure(
            f"the model answered {total} rows with an output {name!r} of shape "
            f"{list(array.shape)}; its rows cannot be told apart"
        )


def _tensor(name: str, datatype: str, array: Array) -> Tensor:
    data = datatypes.to_bytes(datatype, array, name)
    return Tensor(name, datatype, array.shape, memoryview(data))


def _fault(spec: ModelSpec, error: Exception) -> Fault:
    if isinstance(error, ServeError):
        return Fault.of(error)
    log.error("model %s: a batch failed", spec.name, exc_info=error)
    return Fault("EngineFailure", f"model {spec.name!r} failed while running this request")
