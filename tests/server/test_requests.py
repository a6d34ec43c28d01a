"""The checks that every protocol shares: a request against the model's spec."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from ds_engines.errors import InvalidRequest
from ds_engines.spec import BatchPolicy, ModelSpec, TensorSpec
from ds_serve.gateway.requests import InferRequest, check
from ds_serve.transport.messages import Tensor

SPEC = ModelSpec(
    "m",
    "onnxruntime",
    Path("m.onnx"),
    inputs=(
        TensorSpec("x", "FP32", (-1, 3), 0),
        TensorSpec("state", "FP32", (2, -1, -1), 1),
        TensorSpec("rate", "INT64", (1,), None),
        TensorSpec("note", "BYTES", (-1, 1), 0, optional=True),
    ),
    outputs=(TensorSpec("y", "FP32", (-1, 3), 0), TensorSpec("z", "FP32", (-1,), 0)),
    batch=BatchPolicy(max_batch_size=4),
)
SIZES = {"FP32": 4, "INT64": 8}


def tensor(name: str, shape: tuple[int, ...], datatype: str = "FP32", data: Any = None) -> Tensor:
    size = max(0, math.prod(shape)) * SIZES.get(datatype, 0)
    return Tensor(
        name, datatype, shape, memoryview(bytes(min(size, 1000)) if data is None else data)
    )


def request(**changes: Tensor | None) -> InferRequest:
    """Two rows, all right but for the changes; None leaves an input out."""
    inputs: dict[str, Tensor | None] = {
        "x": tensor("x", (2, 3)),
        "state": tensor("state", (2, 2, 5)),
        "rate": tensor("rate", (1,), "INT64"),
    }
    inputs |= changes
    return InferRequest("m", "", [given for given in inputs.values() if given], 0.0, 1.0)


def test_rows_are_counted_along_each_tensors_own_axis() -> None:
    assert check(SPEC, request()) == 2
    three = request(x=tensor("x", (3, 3)), state=tensor("state", (2, 3, 0)))
    assert check(SPEC, three) == 3


def test_inputs_come_in_any_order() -> None:
    shuffled = request()
    shuffled.inputs.reverse()
    assert check(SPEC, shuffled) == 2


def test_an_optional_input_may_be_there() -> None:
    note = tensor("note", (2, 1), "BYTES", b"\x01\x00\x00\x00a\x00\x00\x00\x00")
    assert check(SPEC, request(note=note)) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x": tensor("x", (2, 3), "FP64")}, "'x' of model 'm' is FP32.*FP64"),
        ({"x": tensor("x", (2, 3), "")}, "'x'.*FP32.*nothing"),
        ({"x": tensor("x", (2, 4))}, r"'x'.*\[-1, 3\].*\[2, 4\]"),
        ({"x": tensor("x", (2,))}, r"'x'.*\[-1, 3\].*\[2\]"),
        ({"x": tensor("x", (2, 3, 1))}, r"'x'.*\[2, 3, 1\]"),
        ({"x": tensor("x", (-1, 3))}, r"'x'.*\[-1, 3\]"),
        ({"x": tensor("x", (2, 3), data=bytes(23))}, "'x'.*24 bytes, got 23"),
        ({"x": tensor("x", (2, 3), data=bytes(25))}, "'x'.*24 bytes, got 25"),
        ({"state": tensor("state", (2, 2, 2**63))}, "'state'"),
        ({"state": tensor("state", (2, 2, 2**62))}, "'state'.*bytes"),
        ({"state": tensor("state", (2, 3, 5))}, "'state' has 3 rows on axis 1.*have 2"),
        ({"rate": tensor("rate", (2,), "INT64")}, r"'rate'.*\[1\].*\[2\]"),
        ({"rate": None}, r"'rate' of model 'm' is missing: it is INT64 of shape \[1\]"),
        (
            {"other": tensor("other", (1,))},
            "no input 'other'; its inputs are: x, state, rate, note",
        ),
        ({"again": tensor("x", (2, 3))}, "'x' is there twice"),
        ({"note": tensor("note", (2, 1), "BYTES", b"\x09\x00\x00\x00a")}, "'note'"),
        ({"note": tensor("note", (2, 1), "BYTES", bytes(4))}, "'note'.*8 bytes, got 4"),
        ({"note": tensor("note", (2, 1), "BYTES", bytes(12))}, "'note'.*2 elements"),
        ({"x": Tensor("x", "FP32", (2, 3), 1)}, "'x' has no data"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes: dict[str, Tensor], said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check(SPEC, request(**changes))
    assert re.search(said, str(refused.value)), refused.value


@pytest.mark.parametrize("rows", [0, 5])
def test_rows_are_bounded(rows: int) -> None:
    sized = request(x=tensor("x", (rows, 3)), state=tensor("state", (2, rows, 1)))
    with pytest.raises(InvalidRequest, match=f"{rows} rows; model 'm' takes 1 to 4"):
        check(SPEC, sized)


@pytest.mark.parametrize(
    ("outputs", "said"),
    [(("y", "w"), "no output 'w'; its outputs are: y, z"), (("y", "y"), "asked for twice")],
)
def test_outputs_that_there_are_not_are_refused(outputs: tuple[str, ...], said: str) -> None:
    wanting = request()
    wanting.outputs = outputs
    with pytest.raises(InvalidRequest, match=said):
        check(SPEC, wanting)


def test_a_model_that_is_not_batched_takes_what_fits_its_shapes() -> None:
    spec = ModelSpec("u", "onnxruntime", Path("u"), inputs=(TensorSpec("x", "FP32", (-1, 3)),))
    for rows in (0, 1, 9):
        sent = InferRequest("u", "", [tensor("x", (rows, 3))], 0.0, 1.0)
        assert check(spec, sent) == 1
