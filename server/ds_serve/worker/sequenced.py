"""Models whose requests belong to sequences: what they are told, and the state they are lent."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence

import numpy as np

from ds_engines.base import Array, BatchEngine, Tensors
from ds_engines.errors import InvalidRequest
from ds_engines.spec import Control, ModelSpec, SequencePolicy, StateTensor
from ds_serve.scheduler.queue import Entry
from ds_serve.scheduler.sequences import SequenceQueue, Step
from ds_serve.transport.messages import Answer, Infer, Schedule
from ds_serve.worker.inputs import control_array, first_states
from ds_serve.worker.work import BatchRunner, Job, Timing, check_rows, lane_of

NO_SEQUENCE = Schedule()


class Sequenced:
    """Requests of a sequence run one after the other."""

    def __init__(self, engine: BatchEngine, policy: SequencePolicy) -> None:
        self._spec = engine.spec
        self._policy = policy
        self.queue = SequenceQueue(engine.spec.name, engine.spec.batch, policy)
        self.run = SequenceRunner(engine, policy).run

    def push(self, job: Job) -> None:
        lane = lane_of(self._spec, job.request)
        self.queue.push(step_of(self._spec, self._policy, job, lane))

    def finished(self, entries: Sequence[Entry]) -> None:
        steps = (entry for entry in entries if isinstance(entry, Step))
        self.queue.finished(steps, time.monotonic())


def step_of(spec: ModelSpec, policy: SequencePolicy, job: Job, lane: Hashable) -> Step:
    """The request in the queue, with its controls among its inputs. Raises InvalidRequest."""
    request = job.request
    schedule = request.schedule or NO_SEQUENCE
    _check(spec, request, schedule)
    for control in policy.controls:
        job.inputs[control.input] = control_array(spec, control, _value(control, schedule))
    return Step(
        key=job.key,
        lane=lane,
        rows=request.rows,
        arrived=request.arrived,
        deadline=request.deadline,
        payload=job,
        sequence=schedule.sequence,
        start=schedule.start,
        end=schedule.end,
        partition=request.partition,
    )


def _check(spec: ModelSpec, request: Infer, schedule: Schedule) -> None:
    if not schedule.sequence:
        raise InvalidRequest(
            f"model {spec.name!r} serves sequences: a request must name its own with sequence_id, "
            "a number other than 0 or a text"
        )
    if request.rows != 1:
        raise InvalidRequest(
            f"the request has {request.rows} rows; model {spec.name!r} serves sequences, "
            "of which a request has one row"
        )


def _value(control: Control, schedule: Schedule) -> bool | int | str:
    """No row of a batch is ever there without a request: what runs is READY."""
    match control.kind:
        case "START":
            return schedule.start
        case "END":
            return schedule.end
        case "CORRID":
            return schedule.sequence
    return True


class SequenceRunner(BatchRunner):
    """Lends each request the state of its sequence, and keeps what comes out for the next one."""

    def __init__(self, engine: BatchEngine, policy: SequencePolicy) -> None:
        super().__init__(engine)
        self._states = policy.states
        self._hidden = policy.outputs
        self._public = tuple(tensor.name for tensor in engine.spec.public.outputs)
        self._first = first_states(engine.spec)

    def run(self, entries: list[Entry]) -> list[Timing]:
        for entry in entries:
            if isinstance(entry, Step) and isinstance(entry.payload, Job):
                entry.payload.step = entry
                if entry.start and entry.line is not None:
                    entry.line.state = None
        return super().run(entries)

    def _wanted(self, request: Infer) -> tuple[str, ...]:
        shown = request.outputs or self._public
        return shown + tuple(s.output for s in self._states if s.output not in shown)

    def _joined(self, jobs: list[Job]) -> Tensors:
        for job in jobs:
            job.inputs.update(self._state_of(job))
        return super()._joined(jobs)

    def _state_of(self, job: Job) -> Tensors:
        kept = job.step.line.state if job.step is not None and job.step.line is not None else None
        return kept if isinstance(kept, dict) else self._first

    def _split(self, jobs: list[Job], results: Tensors) -> list[Answer]:
        kept = [self._parts(state, jobs, results[state.output]) for state in self._states]
        wanted = jobs[0].request.outputs or self._public
        answers = super()._split(jobs, {name: results[name] for name in wanted})
        for index, job in enumerate(jobs):
            if job.step is not None and job.step.line is not None:
                job.step.line.state = {
                    state.input: parts[index]
                    for state, parts in zip(self._states, kept, strict=True)
                }
        return answers

    def _parts(self, state: StateTensor, jobs: list[Job], array: Array) -> list[Array]:
        """Each request's own, copied: a view would keep the whole batch's."""
        axis = next(t.batch_axis for t in self._spec.outputs if t.name == state.output)
        if axis is None or not self._spec.batch.max_batch_size:
            return [array]
        check_rows(state.output, array, axis, len(jobs))
        return [np.take(array, [row], axis) for row in range(len(jobs))]
