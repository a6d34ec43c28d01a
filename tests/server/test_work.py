"""From requests to a batch and back: what is joined, what is split, and who fails."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ds_engines.base import Tensors
from ds_engines.errors import EngineFailure, OutOfMemory
from ds_engines.spec import BatchPolicy, ModelSpec, TensorSpec
from ds_serve import child
from ds_serve.scheduler.queue import Entry
from ds_serve.transport.link import Link
from ds_serve.transport.messages import Answer, Infer, Tensor
from ds_serve.worker.work import BatchRunner, Job, Timing, arrays_of, lane_of

Array = np.ndarray[Any, Any]

SPEC = ModelSpec(
    "m",
    "python",
    Path("m"),
    inputs=(
        TensorSpec("x", "FP32", (-1, -1), 0),
        TensorSpec("state", "FP32", (2, -1), 1),
        TensorSpec("scale", "FP32", (), None),
    ),
    outputs=(
        TensorSpec("y", "FP32", (-1, -1), 0),
        TensorSpec("next", "FP32", (2, -1), 1),
        TensorSpec("about", "FP32", (), None),
    ),
    batch=BatchPolicy(max_batch_size=8),
)


class Engine:
    """y = x * scale, next = state + 1. Fails on 13, and misses a row of 7s."""

    def __init__(self, spec: ModelSpec = SPEC) -> None:
        self.spec = spec
        self.batches: list[Tensors] = []

    def run(self, batch: Tensors, outputs: tuple[str, ...] = ()) -> Tensors:
        self.batches.append(batch)
        x = batch["x"]
        if (x == 13).any():
            raise EngineFailure("13 is too much")
        if (x == 17).any():
            raise MemoryError("secrets of the engine")
        kept = x[~(x == 7).all(axis=1)] if x.size else x
        found = {"y": kept * batch["scale"], "next": batch["state"] + 1, "about": batch["scale"]}
        return {name: found[name] for name in outputs or found}

    def close(self) -> None:
        pass


def tensor(name: str, array: Array) -> Tensor:
    return Tensor(name, "FP32", array.shape, memoryview(array.tobytes()))


def infer(x: Any, scale: float = 2.0, outputs: tuple[str, ...] = (), request_id: int = 1) -> Infer:
    rows = np.array(x, np.float32)
    state = np.stack([rows[:, 0], -rows[:, 0]]) if rows.shape[1] else np.zeros((2, len(rows)), "f4")
    inputs = [
        tensor("x", rows),
        tensor("state", state),
        tensor("scale", np.array(scale, np.float32)),
    ]
    return Infer(request_id, len(rows), 0.0, 1.0, inputs, outputs)


def run(engine: Engine, *requests: Infer) -> tuple[list[Answer], list[Timing]]:
    link = Link(lambda link, frames: None)
    jobs = [Job(link, request, arrays_of(request)) for request in requests]
    entries = [Entry(n, "lane", job.request.rows, 0.0, payload=job) for n, job in enumerate(jobs)]
    timings = BatchRunner(engine).run(entries)
    answers = [job.answer for job in jobs if job.answer is not None]
    assert len(answers) == len(requests)
    return answers, timings


def values(answer: Answer) -> dict[str, list[Any]]:
    assert answer.fault is None, answer.fault
    return {
        output.name: np.frombuffer(output.data, np.float32).reshape(output.shape).tolist()
        for output in answer.outputs
    }


def test_each_request_gets_its_own_rows_back() -> None:
    engine = Engine()
    answers, timings = run(engine, infer([[1]]), infer([[2], [3]], request_id=2), infer([[4]]))
    assert [values(answer) for answer in answers] == [
        {"y": [[2]], "next": [[2], [0]], "about": 2},
        {"y": [[4], [6]], "next": [[3, 4], [-1, -2]], "about": 2},
        {"y": [[8]], "next": [[5], [-3]], "about": 2},
    ]
    assert [answer.id for answer in answers] == [1, 2, 1]
    assert len(engine.batches) == 1
    assert engine.batches[0]["x"].tolist() == [[1], [2], [3], [4]]
    assert engine.batches[0]["state"].shape == (2, 4)
    assert engine.batches[0]["scale"].shape == ()
    assert [timing.rows for timing in timings] == [4]


def test_inputs_may_come_in_another_order() -> None:
    turned = infer([[2]])
    turned.inputs.reverse()
    answers, _ = run(Engine(), turned, infer([[3]]))
    assert [values(answer)["y"] for answer in answers] == [[[4]], [[6]]]


def test_only_the_outputs_asked_for_are_there() -> None:
    answers, _ = run(Engine(), infer([[2]], outputs=("next",)), infer([[3]], outputs=("next",)))
    assert [list(values(answer)) for answer in answers] == [["next"], ["next"]]


def test_rows_of_no_elements_are_split_too() -> None:
    answers, _ = run(Engine(), infer([[], []]), infer([[]]))
    assert [values(answer)["y"] for answer in answers] == [[[], []], [[]]]


def test_a_request_that_fails_fails_alone() -> None:
    engine = Engine()
    answers, timings = run(engine, infer([[1]]), infer([[13]]), infer([[3]]))
    assert [answer.fault and answer.fault.message for answer in answers] == [
        None, "13 is too much", None,
    ]  # fmt: skip
    assert [values(answer)["y"] for answer in answers[::2]] == [[[2]], [[6]]]
    assert len(engine.batches) == 4
    assert [timing.rows for timing in timings] == [1, 1]


class Small(Engine):
    """Has memory for so many rows."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def run(self, batch: Tensors, outputs: tuple[str, ...] = ()) -> Tensors:
        answers = super().run(batch, outputs)
        if len(batch["x"]) > self.rows:
            raise OutOfMemory("cudaMalloc: 8 MiB are not free")
        return answers


def test_what_the_devices_memory_does_not_hold_is_run_in_halves() -> None:
    engine, wanted = Small(2), ("y", "next")
    answers, timings = run(
        engine,
        infer([[1], [2], [3]], outputs=wanted),
        infer([[4], [5], [6], [7.5]], outputs=wanted, request_id=2),
    )
    assert [values(answer) for answer in answers] == [
        {"y": [[2], [4], [6]], "next": [[2, 3, 4], [0, -1, -2]]},
        {"y": [[8], [10], [12], [15]], "next": [[5, 6, 7, 8.5], [-3, -4, -5, -6.5]]},
    ]
    assert [len(batch["x"]) for batch in engine.batches] == [7, 3, 1, 2, 4, 2, 2]
    assert [timing.rows for timing in timings] == [7]


def test_a_row_that_the_memory_does_not_hold_fails_its_request_alone() -> None:
    answers, _ = run(Small(0), infer([[1]], outputs=("y",)), infer([[2]], outputs=("y",)))
    assert [answer.fault and answer.fault.kind for answer in answers] == ["OutOfMemory"] * 2


def test_an_answer_of_all_rows_together_is_not_put_together_from_halves() -> None:
    answers, _ = run(Small(1), infer([[1], [2]]))
    assert answers[0].fault is not None
    assert answers[0].fault.kind == "OutOfMemory"


def test_an_engine_that_can_run_nothing_more_ends_its_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Lost(Engine):
        def run(self, batch: Tensors, outputs: tuple[str, ...] = ()) -> Tensors:
            error = EngineFailure("the device is gone")
            error.fatal = True
            raise error

    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setenv(child.FAILURE_FILE, str(tmp_path / "failure"))
    with pytest.raises(SystemExit) as caught:
        run(Lost(), infer([[1]]), infer([[2]]))
    assert caught.value.code == 1
    assert (tmp_path / "failure").read_text() == "the device is gone"


def test_missing_rows_are_noticed_and_go_to_nobody_else() -> None:
    answers, _ = run(Engine(), infer([[1]]), infer([[7]]), infer([[3]]))
    assert [values(answer)["y"] for answer in answers[::2]] == [[[2]], [[6]]]
    fault = answers[1].fault
    assert fault is not None
    assert fault.kind == "EngineFailure"
    assert "1 rows with an output 'y' of shape [0, 1]" in fault.message


def test_what_an_engine_raises_by_mistake_is_no_clients_business(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers, _ = run(Engine(), infer([[17]]))
    fault = answers[0].fault
    assert fault is not None
    assert (fault.kind, fault.message) == (
        "EngineFailure",
        "model 'm' failed while running this request",
    )
    assert "secrets of the engine" in caplog.text


def test_only_what_can_be_joined_shares_a_lane() -> None:
    def lane(*arguments: Any, **options: Any) -> Any:
        return lane_of(SPEC, infer(*arguments, **options))

    alike = lane([[1, 2]])
    assert lane([[3, 4], [5, 6]], request_id=9) == alike
    assert lane([[1]]) != alike
    assert lane([[1, 2]], scale=3.0) != alike
    assert lane([[1, 2]], outputs=("y",)) != alike
    few = infer([[1, 2]])
    few.inputs.pop()
    assert lane_of(SPEC, few) != alike


def test_arrays_are_aligned_wherever_their_bytes_lie() -> None:
    whole = np.arange(9, dtype=np.float32)
    shifted = memoryview(b"\0" + whole.tobytes())[1:]
    (array,) = arrays_of(Infer(1, 1, 0.0, 1.0, [Tensor("x", "FP32", (9,), shifted)], ())).values()
    assert array.flags.aligned
    assert array.tolist() == whole.tolist()
