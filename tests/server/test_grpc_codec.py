"""ModelInfer messages: what is sent arrives, and what makes no sense is refused by name."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx_models
import pytest
import wire
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from ds_engines import datatypes
from ds_engines.errors import InvalidRequest, Unsupported
from ds_proto import grpc_service_pb2 as pb
from ds_serve.gateway.grpc.codec import (
    CONTENTS,
    LARGE,
    decode,
    encode,
    read,
    wants_empty_final,
)
from ds_serve.gateway.requests import InferReply
from ds_serve.transport.messages import Schedule

MOST = 60.0

Tensors = list[tuple[Any, Any]]


def raw_message(tensors: Tensors) -> Any:
    message = pb.ModelInferRequest(model_name="any", id="id-1")
    for spec, array in tensors:
        message.inputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
        message.raw_input_contents.append(bytes(datatypes.to_bytes(spec.datatype, array)))
    return message


def typed_message(tensors: Tensors) -> Any:
    message = pb.ModelInferRequest(model_name="any")
    for spec, array in tensors:
        given = message.inputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
        getattr(given.contents, CONTENTS[spec.datatype]).extend(array.reshape(-1).tolist())
    return message


def padded(message: Any) -> bytes:
    """The message, long enough that its raw contents are not copied."""
    message.parameters["padding"].string_param = "x" * LARGE
    return message.SerializeToString()


@given(wire.inputs())
def test_a_large_message_lends_its_raw_contents(tensors: Tensors) -> None:
    message = raw_message(tensors)
    found, raw = read(padded(message))
    assert not found.raw_input_contents
    assert [bytes(view) for view in raw] == list(message.raw_input_contents)
    (decoded, _), (expected, _) = decode(found, MOST, raw), decode(message, MOST)
    assert [(t.name, t.shape, bytes(t.data)) for t in decoded.inputs] == [
        (t.name, t.shape, bytes(t.data)) for t in expected.inputs
    ]


@given(wire.inputs(), st.data())
def test_a_large_message_is_parsed_as_protobuf_does(tensors: Tensors, data: Any) -> None:
    """Cut short or with bytes changed: both read it, or both refuse it."""
    payload = bytearray(padded(raw_message(tensors)))
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, len(payload) - 1))
        payload[place] = data.draw(st.integers(0, 255))
    payload = bytes(payload[: data.draw(st.integers(LARGE, len(payload)))])
    try:
        whole = pb.ModelInferRequest.FromString(payload)
    except DecodeError:
        with pytest.raises(DecodeError):
            read(payload)
        return
    message, raw = read(payload)
    message.raw_input_contents.extend(bytes(view) for view in raw)
    assert message == whole or b"nan" in str(whole).encode()


@given(wire.inputs())
def test_raw_contents_arrive_as_they_were_sent(tensors: Tensors) -> None:
    found = wire.carried(decode(raw_message(tensors), MOST)[0])
    assert list(found) == [spec.name for spec, _ in tensors]
    for spec, array in tensors:
        assert wire.same(found[spec.name], array)


@given(wire.arrays(onnx_models.PLAIN))
def test_typed_contents_arrive_as_they_were_sent(given_: tuple[Any, Any]) -> None:
    spec, array = given_
    found = wire.carried(decode(typed_message([given_]), MOST)[0])[spec.name]
    assert found.shape == array.shape
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


INTEGERS = [name for name in onnx_models.PLAIN if "INT" in name]


@pytest.mark.parametrize("datatype", INTEGERS)
def test_typed_contents_hold_the_largest_and_the_smallest(datatype: str) -> None:
    dtype = datatypes.DATATYPES[datatype].dtype
    bounds = np.array([np.iinfo(dtype).min, 0, np.iinfo(dtype).max], dtype)
    spec = wire.anything(datatype, 1)
    found = wire.carried(decode(typed_message([(spec, bounds)]), MOST)[0])[spec.name]
    np.testing.assert_array_equal(found, bounds)


@given(wire.inputs())
def test_answers_hold_the_tensors_in_order(tensors: Tensors) -> None:
    reply = InferReply("any", "1", "id-1", [wire.tensor(*pair) for pair in tensors])
    message = encode(reply)
    assert (message.model_name, message.model_version, message.id) == ("any", "1", "id-1")
    both = zip(message.outputs, message.raw_output_contents, strict=True)
    for (spec, array), (output, raw) in zip(tensors, both, strict=True):
        assert (output.name, output.datatype) == (spec.name, spec.datatype)
        assert tuple(output.shape) == array.shape
        assert raw == bytes(datatypes.to_bytes(spec.datatype, array))


def test_what_else_a_message_says_is_kept() -> None:
    message = raw_message([])
    message.model_version = "3"
    message.outputs.add(name="b")
    message.outputs.add(name="a")
    message.parameters["mood"].string_param = "good"
    message.parameters["timeout"].int64_param = 2_500_000
    request, _ = decode(message, MOST)
    assert (request.model, request.version, request.id) == ("any", "3", "id-1")
    assert request.outputs == ("b", "a")
    assert request.parameters["mood"] == "good"
    assert request.schedule == Schedule(timeout_us=2_500_000)
    assert request.deadline - request.arrived == pytest.approx(MOST)


# Nonsense.


def survives(message: Any) -> None:
    """It is a request, or refused as a wrong one; whatever else is raised is a bug."""
    try:
        wire.carried(decode(message, MOST)[0])
    except (InvalidRequest, Unsupported):
        return


@given(st.binary(max_size=80))
def test_arbitrary_bytes_are_refused_or_read(data: bytes) -> None:
    message = pb.ModelInferRequest()
    try:
        message.ParseFromString(data)
    except DecodeError:
        return
    survives(message)


@given(st.data(), wire.inputs(), st.booleans())
def test_changed_bytes_are_refused_or_read(
    data: st.DataObject, tensors: Tensors, raw: bool
) -> None:
    if raw:
        message = raw_message(tensors)
    else:
        message = typed_message([pair for pair in tensors if pair[0].datatype in CONTENTS])
    changed = data.draw(wire.mutated(message.SerializeToString()))
    parsed = pb.ModelInferRequest()
    try:
        parsed.ParseFromString(changed)
    except DecodeError:
        return
    survives(parsed)


whole = st.one_of(st.integers(0, 3), st.sampled_from([-1, -(2**63), 2**31, 2**62, 2**63 - 1]))
fields = st.sampled_from(sorted(set(CONTENTS.values())))
numbers = {
    "bool_contents": st.booleans(),
    "int_contents": st.sampled_from([0, 1, -1, 127, 128, -129, 2**31 - 1]),
    "int64_contents": st.sampled_from([0, 1, -(2**63), 2**63 - 1]),
    "uint_contents": st.sampled_from([0, 1, 255, 256, 2**32 - 1]),
    "uint64_contents": st.sampled_from([0, 1, 2**64 - 1]),
    "fp32_contents": st.floats(width=32),
    "fp64_contents": st.floats(),
    "bytes_contents": st.binary(max_size=4),
}


@st.composite
def messages(draw: st.DrawFn) -> Any:
    """Inputs that are right in some ways and wrong in others."""
    message = pb.ModelInferRequest(model_name="any")
    for _ in range(draw(st.integers(0, 3))):
        axes = draw(st.integers(0, 3))
        datatype = draw(st.sampled_from([*wire.NAMES, "", "FP8"]))
        shape = draw(st.lists(whole, min_size=axes, max_size=axes))
        given = message.inputs.add(name=f"{datatype}-{axes}", datatype=datatype, shape=shape)
        for field in draw(st.lists(fields, max_size=2)):
            getattr(given.contents, field).extend(draw(st.lists(numbers[field], max_size=3)))
        for key in draw(st.sets(st.sampled_from(["priority", "x"]), max_size=1)):
            given.parameters[key].int64_param = draw(st.integers(0, 1))
    raw = draw(st.lists(st.binary(max_size=16), max_size=3))
    message.raw_input_contents.extend(raw)
    timeout = draw(st.one_of(st.none(), whole))
    if timeout is not None:
        message.parameters["timeout"].int64_param = timeout
    return message


def endless(datatype: str, shape: list[int]) -> Any:
    message = pb.ModelInferRequest(model_name="any", raw_input_contents=[b""])
    message.inputs.add(name=f"{datatype}-3", datatype=datatype, shape=shape)
    return message


@given(messages())
@example(endless("FP32", [1, 0, 2**63 - 1]))
@example(endless("BYTES", [1, 2**62, 0]))
def test_messages_that_are_almost_right_are_refused_or_read(message: Any) -> None:
    survives(message)


def wrong(**changes: Any) -> Any:
    message = pb.ModelInferRequest(model_name="any")
    message.inputs.add(**({"name": "INT8-1", "datatype": "INT8", "shape": [1]} | changes))
    return message


contents = pb.InferTensorContents


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (wrong(contents=contents(int_contents=[300])), "'INT8-1'.*beyond INT8"),
        (wrong(contents=contents(int_contents=[1, 2])), r"'INT8-1'.*\[1\] has 1 .* holds 2"),
        (wrong(contents=contents(int64_contents=[1])), "'INT8-1'.*int_contents.*int64_contents"),
        (wrong(), r"'INT8-1'.*1 elements.*holds 0"),
        (wrong(datatype="FP16"), "FP16.*raw_input_contents"),
        (wrong(datatype="FP8"), "'FP8'"),
        (wrong(shape=[-1], contents=contents(int_contents=[1])), "'INT8-1'.*-1"),
    ],
)
def test_what_is_wrong_is_named(message: Any, said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode(message, MOST)
    assert re.search(said, str(refused.value)), refused.value


def test_contents_of_both_kinds_are_refused() -> None:
    message = wrong(contents=contents(int_contents=[1]))
    message.raw_input_contents.append(b"\x01")
    with pytest.raises(InvalidRequest, match="'INT8-1' has contents beside raw_input_contents"):
        decode(message, MOST)
    message.raw_input_contents.append(b"\x01")
    with pytest.raises(InvalidRequest, match="1 inputs and 2 raw_input_contents"):
        decode(message, MOST)


def test_what_a_request_says_about_when_it_runs_is_kept() -> None:
    message = pb.ModelInferRequest(model_name="any")
    message.parameters["sequence_id"].string_param = "left"
    message.parameters["sequence_end"].bool_param = True
    message.parameters["priority"].uint64_param = 2
    message.parameters["mood"].double_param = 0.5
    request, _ = decode(message, MOST)
    assert request.schedule == Schedule(2, 0, "left", end=True)
    assert request.parameters["mood"] == 0.5


def test_reserved_parameters_are_refused_but_the_known_one() -> None:
    message = pb.ModelInferRequest(model_name="any")
    assert not wants_empty_final(message)
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    decode(message, MOST)
    assert wants_empty_final(message)
    message.parameters["triton_mood"].bool_param = True
    with pytest.raises(InvalidRequest, match=r"'triton_mood'.*reserved"):
        decode(message, MOST)


def test_classes_are_wanted_of_the_outputs_that_say_so() -> None:
    message = pb.ModelInferRequest(model_name="any")
    message.outputs.add(name="y").parameters["classification"].int64_param = 3
    message.outputs.add(name="z")
    assert decode(message, MOST)[1].classes == {"y": 3}
