"""What a sequence's requests are told and lent, and what is kept of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from ds_engines.base import Tensors
from ds_engines.errors import EngineFailure, InvalidRequest, LoadError
from ds_engines.spec import (
    BatchPolicy,
    Control,
    ModelSpec,
    SequencePolicy,
    StateTensor,
    TensorSpec,
    WarmUp,
    WarmUpInput,
)
from ds_serve.transport.link import Link
from ds_serve.transport.messages import Answer, Infer, Schedule, Tensor
from ds_serve.worker.inputs import control_array, first_states, from_file, warm_up_batch
from ds_serve.worker.sequenced import Sequenced
from ds_serve.worker.work import Job, arrays_of

Array = np.ndarray[Any, Any]

POLICY = SequencePolicy(
    slots=8,
    controls=(Control("id", "CORRID", "INT32"),),
    states=(StateTensor("state", "next", "FP32", (2, -1), (2, 1)),),
)
SPEC = ModelSpec(
    "m",
    "python",
    Path("m"),
    inputs=(
        TensorSpec("x", "FP32", (-1, 1), 0),
        TensorSpec("id", "INT32", (-1, 1), 0),
        TensorSpec("state", "FP32", (2, -1, -1), 1),
    ),
    outputs=(TensorSpec("y", "FP32", (-1, 1), 0), TensorSpec("next", "FP32", (2, -1, -1), 1)),
    batch=BatchPolicy(max_batch_size=8),
    sequence=POLICY,
)
ALONE = msgspec.structs.replace(
    SPEC,
    inputs=(
        TensorSpec("x", "FP32", (1, 1)),
        TensorSpec("id", "INT32", (1, 1)),
        TensorSpec("state", "FP32", (2, 1)),
    ),
    outputs=(TensorSpec("y", "FP32", (1, 1)), TensorSpec("next", "FP32", (2, 1))),
    batch=BatchPolicy(),
    sequence=msgspec.structs.replace(
        POLICY, slots=1, states=(StateTensor("state", "next", "FP32", (2, 1)),)
    ),
)


class Engine:
    """next = state + [x, -x], y = next[0]. Fails on 13."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.batches: list[Tensors] = []

    def run(self, batch: Tensors, outputs: tuple[str, ...] = ()) -> Tensors:
        self.batches.append(batch)
        x = batch["x"]
        if (x == 13).any():
            raise EngineFailure("13 is too much")
        following = batch["state"] + np.stack([x, -x]).reshape(batch["state"].shape)
        found = {"y": following.reshape(2, -1, 1)[0], "next": following}
        return {name: found[name] for name in outputs}

    def close(self) -> None:
        pass


class Rig:
    def __init__(self, spec: ModelSpec) -> None:
        self.engine = Engine(spec)
        assert spec.sequence is not None
        self.plan = Sequenced(self.engine, spec.sequence)
        self._link = Link(lambda link, frames: None)
        self._count = 0

    def push(self, sequence: int | str, x: float, rows: int = 1, **flags: bool) -> Job:
        self._count += 1
        data = memoryview(np.full((rows, 1), x, np.float32).tobytes())
        schedule = Schedule(sequence=sequence, **flags)
        request = Infer(self._count, rows, 0.0, 1e9, [Tensor("x", "FP32", (rows, 1), data)], ())
        request.schedule = schedule
        job = Job(self._link, request, arrays_of(request))
        self.plan.push(job)
        return job

    def run(self) -> None:
        """All that waits."""
        while (batch := self.plan.queue.take(0.0)).entries:
            self.plan.run(batch.entries)
            self.plan.finished(batch.entries)


def value(job: Job) -> float:
    answer = job.answer
    assert isinstance(answer, Answer)
    assert answer.fault is None
    assert [output.name for output in answer.outputs] == ["y"]
    return float(np.frombuffer(answer.outputs[0].data, np.float32)[0])


@pytest.mark.parametrize("spec", [SPEC, ALONE])
def test_each_sequence_has_its_own_state(spec: ModelSpec) -> None:
    rig = Rig(spec)
    jobs = [
        rig.push(sequence, x, start=x == 1, end=x == 3) for sequence in (1, 2) for x in (1, 2, 3)
    ]
    rig.run()
    assert [value(job) for job in jobs] == [1, 3, 6, 1, 3, 6]
    assert len(rig.engine.batches) == (3 if spec is SPEC else 6)


def test_a_request_that_fails_leaves_the_state_as_it_was() -> None:
    rig = Rig(SPEC)
    jobs = [rig.push(1, x, start=x == 1) for x in (1, 13, 2)]
    other = rig.push(2, 5, start=True), rig.push(2, 6)
    rig.run()
    assert jobs[1].answer is not None
    assert jobs[1].answer.fault is not None
    assert [value(jobs[0]), value(jobs[2])] == [1, 3]
    assert [value(job) for job in other] == [5, 11]


def test_a_state_is_no_view_of_its_batch() -> None:
    rig = Rig(SPEC)
    jobs = [rig.push(sequence, 1, start=True) for sequence in (1, 2, 3)]
    rig.run()
    for job in jobs:
        assert job.step is not None
        assert job.step.line is not None
        state = job.step.line.state
        assert isinstance(state, dict)
        assert state["state"].shape == (2, 1, 1)
        assert state["state"].base is None or state["state"].base.size == 2


@pytest.mark.parametrize(("given", "told"), [(7, 7), (2**32 + 5, 5), (2**64 - 1, -1)])
def test_a_long_id_loses_its_upper_half(given: int, told: int) -> None:
    array = control_array(SPEC, POLICY.controls[0], given)
    assert (array.dtype, array.tolist()) == (np.int32, [[told]])


def test_what_a_sequence_cannot_be() -> None:
    rig = Rig(SPEC)
    with pytest.raises(InvalidRequest, match="2 rows; model 'm' serves sequences"):
        rig.push(1, 1, rows=2, start=True)
    with pytest.raises(InvalidRequest, match="told it as INT32, so it must be a number"):
        rig.push("left", 1, start=True)
    with pytest.raises(InvalidRequest, match="must name its own with sequence_id"):
        rig.push("", 1, start=True)


def test_a_warm_up_has_the_first_requests_controls_and_states() -> None:
    batch = warm_up_batch(SPEC, WarmUp("w", 3, 1, (WarmUpInput("x", "FP32", (1,), "random"),)))
    assert {name: array.shape for name, array in batch.items()} == {
        "x": (3, 1),
        "id": (3, 1),
        "state": (2, 3, 1),
    }
    assert len(set(batch["x"].ravel())) == 3
    named = msgspec.structs.replace(
        SPEC,
        inputs=(TensorSpec("id", "BYTES", (-1,), 0),),
        sequence=SequencePolicy(controls=(Control("id", "CORRID", "BYTES"),)),
    )
    assert warm_up_batch(named, WarmUp("w", 2, 1))["id"].tolist() == [b"", b""]
    assert first_states(SPEC)["state"].shape == (2, 1, 1)


def test_files_of_another_size_are_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(bytes(7))
    with pytest.raises(LoadError, match=r"state is not FP32\[2\]"):
        from_file(str(tmp_path / "state"), "FP32", (2,))
    with pytest.raises(LoadError, match="cannot be read: No such file"):
        from_file(str(tmp_path / "none"), "FP32", (2,))
