"""The generate extension's JSON: names become tensors or parameters."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_engines import datatypes
from ds_engines.errors import InvalidRequest
from ds_engines.spec import ModelSpec, TensorSpec
from ds_serve import text_tensors
from ds_serve.gateway.http.generate_codec import decode, encode
from ds_serve.gateway.requests import InferReply, InferRequest
from ds_serve.transport.messages import Schedule, Tensor

CHAT = ModelSpec(
    "chat", "test", Path("x"), "text", inputs=text_tensors.INPUTS, outputs=text_tensors.OUTPUTS
)


def taking(shape: tuple[int, ...], datatype: str = "INT32") -> ModelSpec:
    return ModelSpec("m", "test", Path("x"), inputs=(TensorSpec("x", datatype, shape),))


def values(request: InferRequest) -> dict[str, Any]:
    return {
        each.name: datatypes.to_array(each.datatype, each.shape, each.data).tolist()
        for each in request.inputs
    }


def read(body: dict[str, Any], spec: ModelSpec = CHAT, *, stream: bool = False) -> InferRequest:
    return decode(spec, json.dumps(body).encode(), 60.0, stream=stream)


def test_a_text_and_its_sampling_parameters():
    body = {
        "id": "42",
        "text_input": "Once",
        "max_tokens": 5,
        "parameters": {"temperature": 0, "stop": ["."], "priority": 2},
    }
    request = read(body)
    found = values(request)
    assert request.id == "42"
    assert found.pop("text_input") == [b"Once"]
    (sampling,) = found.pop("sampling_parameters")
    assert json.loads(sampling) == {"max_tokens": 5, "temperature": 0, "stop": ["."]}
    assert found == {"stream": [False]}
    assert request.schedule == Schedule(priority=2)


@pytest.mark.parametrize("given_", ['{"seed": 1}', {"seed": 1}])
def test_sampling_parameters_may_be_an_object_or_its_text(given_):
    found = values(read({"text_input": "a", "sampling_parameters": given_, "top_p": 0.5}))
    assert json.loads(found["sampling_parameters"][0]) == {"seed": 1, "top_p": 0.5}


@pytest.mark.parametrize(("said", "streams"), [({}, True), ({"stream": False}, False)])
def test_a_stream_of_events_streams_unless_told_otherwise(said, streams):
    found = values(read({"text_input": "a", "parameters": said}, stream=True))
    assert found["stream"] == [streams]


@pytest.mark.parametrize(
    ("shape", "given_", "expected"),
    [
        ((1,), 7, [7]),
        ((-1, 2), [1, 2, 3, 4], [[1, 2], [3, 4]]),
        ((-1, -1), [1, 2, 3], [[1, 2, 3]]),
        ((2, 2), [1, 2, 3, 4], [[1, 2], [3, 4]]),
        ((), 7, 7),
        ((-1, 2), [], []),
    ],
)
def test_numbers_fill_the_shape(shape, given_, expected):
    (found,) = values(read({"x": given_}, taking(shape))).values()
    assert found == expected


@given(st.lists(st.sampled_from([-1, 1, 2, 3]), max_size=4), st.integers(0, 24))
def test_a_shape_is_filled_or_refused(shape, count):
    spec = taking(tuple(shape))
    fixed = math.prod(size for size in shape if size > 0)
    fits = count % fixed == 0 and (-1 in shape or count == fixed)
    body = {"x": list(range(count))}
    if not fits:
        with pytest.raises(InvalidRequest, match="'x'"):
            read(body, spec)
        return
    (tensor,) = read(body, spec).inputs
    assert math.prod(tensor.shape) == count
    assert all(size in (-1, got) for size, got in zip(shape, tensor.shape, strict=True))


def test_what_is_no_input_is_a_parameter():
    request = read({"x": 1, "mood": "good", "parameters": {"sequence_id": 7}}, taking((1,)))
    assert request.parameters == {"mood": "good", "sequence_id": 7}
    assert request.schedule == Schedule(sequence=7)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"[]", "JSON object"),
        (b"{", "not JSON"),
        (b'{"id": 1}', "id is 1"),
        (b'{"parameters": 1}', "parameters is 1"),
        (b'{"x": 1, "parameters": {"x": 1}}', "'x' is there twice"),
        (b'{"mood": [1]}', "'mood' is none of the model's inputs"),
        (b'{"x": "a"}', "'x'"),
        (b'{"x": [[1], 2]}', "'x'"),
    ],
)
def test_what_makes_no_sense_is_named(body, said):
    with pytest.raises(InvalidRequest, match=said):
        decode(taking((-1, 1)), body, 60.0, stream=False)


@given(st.binary(max_size=50))
def test_arbitrary_bytes_are_refused_or_read(body):
    try:
        decode(CHAT, body, 60.0, stream=False)
    except InvalidRequest:
        return


def test_outputs_stand_by_their_names():
    outputs = []
    for name, array, datatype in (
        ("text_output", np.array([b'say "hi"'], np.object_), "BYTES"),
        ("scores", np.array([[1.5, 2.0]], np.float32), "FP32"),
        ("nothing", np.zeros(0, np.int8), "INT8"),
    ):
        data = memoryview(datatypes.to_bytes(datatype, array))
        outputs.append(Tensor(name, datatype, array.shape, data))
    assert json.loads(encode(InferReply("m", "3", "42", outputs))) == {
        "model_name": "m",
        "model_version": "3",
        "id": "42",
        "text_output": 'say "hi"',
        "scores": [1.5, 2.0],
        "nothing": [],
    }
