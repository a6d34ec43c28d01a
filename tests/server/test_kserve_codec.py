"""KServe v2 over HTTP: what is sent arrives, and what makes no sense is refused by name."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest
import wire
from hypothesis import example, given
from hypothesis import strategies as st

from ds_engines import datatypes
from ds_engines.errors import InvalidRequest, ServeError, Unsupported
from ds_serve.gateway.http.kserve_codec import HEADER_LENGTH, Wanted, decode, encode
from ds_serve.gateway.requests import InferReply, InferRequest, end_by_timeout
from ds_serve.transport.messages import Schedule

MOST = 60.0
"""Seconds that a request may take."""


def read(body: bytes, **headers: bytes) -> tuple[InferRequest, Wanted]:
    names = {key.replace("_", "-").encode(): value for key, value in headers.items()}
    return decode("any", "", names, body, MOST)


def read_binary(head: bytes, *rest: bytes) -> tuple[InferRequest, Wanted]:
    headers = {HEADER_LENGTH: b"%d" % len(head)}
    return decode("any", "", headers, b"".join((head, *rest)), MOST)


def as_json(spec: Any, array: Any) -> dict[str, Any]:
    """An input as a client writes it in JSON."""
    data = datatypes.to_json(spec.datatype, array)
    return {"name": spec.name, "datatype": spec.datatype, "shape": array.shape, "data": data}


def as_binary(spec: Any, array: Any) -> tuple[dict[str, Any], bytes]:
    """The JSON part of an input as a client writes it, and the binary part."""
    raw = bytes(datatypes.to_bytes(spec.datatype, array))
    about = {"name": spec.name, "datatype": spec.datatype, "shape": array.shape}
    return about | {"parameters": {"binary_data_size": len(raw)}}, raw


@given(wire.arrays())
def test_json_arrives_as_it_was_sent(given_: tuple[Any, Any]) -> None:
    """NaN as a NaN: JSON does not tell them apart."""
    spec, array = given_
    request, _ = read(json.dumps({"inputs": [as_json(spec, array)]}).encode())
    found = wire.carried(request)[spec.name]
    if spec.datatype == "BF16":
        found, array = map(datatypes.bf16_to_float32, (found, array))
    assert found.shape == array.shape
    np.testing.assert_array_equal(found, array)


@given(wire.arrays())
def test_json_may_be_nested(given_: tuple[Any, Any]) -> None:
    spec, array = given_
    if spec.datatype not in ("INT32", "BOOL", "UINT64") or not array.size:
        return
    given = as_json(spec, array) | {"data": array.tolist() if array.ndim else [array.item()]}
    request, _ = read(json.dumps({"inputs": [given]}).encode())
    assert wire.same(wire.carried(request)[spec.name], array)


@given(wire.inputs())
def test_binary_arrives_as_it_was_sent(given_: list[tuple[Any, Any]]) -> None:
    inputs = [as_binary(*pair) for pair in given_]
    head = json.dumps({"inputs": [about for about, _ in inputs]}).encode()
    request, _ = read_binary(head, *(raw for _, raw in inputs))
    found = wire.carried(request)
    assert list(found) == [spec.name for spec, _ in given_]
    for spec, array in given_:
        assert wire.same(found[spec.name], array)


@pytest.mark.parametrize(
    "text", ['{"id": NaN}', '{"inputs": [{"name": NaN}]}', '{"id": "\\ud800", "x": NaN}', "[NaN]",
             '{"x": NaN', '{"inputs": [{"shape": [NaN]}]}', '{"x": NaN, "y": %s}' % ("9" * 5000)]
)  # fmt: skip
def test_nan_makes_nothing_else_right(text: str) -> None:
    with pytest.raises(InvalidRequest, match="not an inference request in JSON"):
        read(text.encode())


def test_json_and_binary_inputs_mix() -> None:
    one, other = wire.anything("INT8", 1), wire.anything("FP32", 1)
    about, raw = as_binary(other, np.array([1.5, -2], np.float32))
    head = json.dumps({"inputs": [as_json(one, np.array([3, 4], np.int8)), about]}).encode()
    found = wire.carried(read_binary(head, raw)[0])
    assert found[one.name].tolist() == [3, 4]
    assert found[other.name].tolist() == [1.5, -2]


# Answers.


def answered(given_: list[tuple[Any, Any]], wanted: Wanted) -> tuple[dict[str, Any], bytes]:
    """The JSON part and the binary part of an answer that holds these tensors."""
    tensors = [wire.tensor(*pair) for pair in given_]
    answer = encode(InferReply("any", "1", "id-1", tensors), wanted)
    body = b"".join(bytes(chunk) for chunk in answer.chunks)
    size = int(dict(answer.headers).get(HEADER_LENGTH, len(body)))
    return json.loads(body[:size]), body[size:]


@given(wire.arrays())
def test_json_answer_holds_the_tensor(given_: tuple[Any, Any]) -> None:
    spec, array = given_
    reply, rest = answered([given_], Wanted())
    (output,) = reply["outputs"]
    assert rest == b""
    assert (reply["model_name"], reply["model_version"], reply["id"]) == ("any", "1", "id-1")
    assert (output["name"], output["datatype"]) == (spec.name, spec.datatype)
    assert tuple(output["shape"]) == array.shape
    if spec.datatype == "BYTES":
        assert output["data"] == [element.decode() for element in array.flat]
    elif spec.datatype == "BF16":
        expected = datatypes.bf16_to_float32(array).reshape(-1)
        np.testing.assert_array_equal(np.array(output["data"], np.float32), expected)
    else:
        np.testing.assert_array_equal(np.array(output["data"], array.dtype), array.reshape(-1))


@given(wire.inputs().filter(len))
def test_binary_answer_holds_the_tensors_in_order(given_: list[tuple[Any, Any]]) -> None:
    last = given_[-1][0].name
    reply, rest = answered(given_, Wanted(frozenset(spec.name for spec, _ in given_[:-1])))
    for (spec, array), output in zip(given_, reply["outputs"], strict=True):
        if spec.name == last:
            assert "data" in output
            continue
        size = output["parameters"]["binary_data_size"]
        assert rest[:size] == bytes(datatypes.to_bytes(spec.datatype, array))
        rest = rest[size:]
    assert rest == b""


@pytest.mark.parametrize(
    ("said", "binary"),
    [
        ({}, {"a": False, "b": False}),
        ({"parameters": {"binary_data_output": True}}, {"a": True, "b": True}),
        ({"outputs": [{"name": "a", "parameters": {"binary_data": True}}]}, {"a": True}),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [{"name": "a", "parameters": {"binary_data": False}}, {"name": "b"}],
            },
            {"a": False, "b": True},
        ),
    ],
)
def test_outputs_come_in_the_form_that_was_asked_for(
    said: dict[str, Any], binary: dict[str, bool]
) -> None:
    request, wanted = read(json.dumps({"inputs": [], **said}).encode())
    assert {name: name in wanted for name in binary} == binary
    assert request.outputs == tuple(output["name"] for output in said.get("outputs", []))


def test_an_answer_without_an_id_has_none() -> None:
    answer = encode(InferReply("any", "1", "", []), Wanted())
    assert "id" not in json.loads(answer.chunks[0])


# Deadlines.


@pytest.mark.parametrize(
    ("parameters", "header", "seconds"),
    [
        ({}, None, MOST),
        ({"timeout": 0}, None, MOST),
        ({"timeout": 1_500_000}, None, 1.5),
        ({"timeout": 10**12}, None, MOST),
        ({}, b"2.5", 2.5),
        ({}, b"1e9", MOST),
        ({"timeout": 1_000_000}, b"2.5", 1.0),
        ({"timeout": 3_000_000}, b"2.5", 2.5),
    ],
)
def test_the_soonest_deadline_counts(
    parameters: dict[str, Any], header: bytes | None, seconds: float
) -> None:
    headers = {} if header is None else {"x_request_timeout": header}
    request, _ = read(json.dumps({"parameters": parameters}).encode(), **headers)
    end_by_timeout(request)
    assert request.deadline - request.arrived == pytest.approx(seconds)


# Nonsense.


def survives(body: bytes, headers: dict[bytes, bytes]) -> None:
    """It is a request, or refused as a wrong one; whatever else is raised is a bug."""
    try:
        request, _ = decode("any", "", headers, body, MOST)
        wire.carried(request)
    except (InvalidRequest, Unsupported):
        return


lengths = st.one_of(st.none(), st.binary(max_size=4), st.integers(-1, 400).map(b"%d".__mod__))


@given(st.binary(max_size=60), lengths)
def test_arbitrary_bytes_are_refused_or_read(body: bytes, length: bytes | None) -> None:
    survives(body, {} if length is None else {HEADER_LENGTH: length})


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 2**31, 2**63, 2**64, 10**30, 10**400]),
    st.floats(),
    st.text(max_size=4),
    st.sampled_from(["any", "FP32-2", *wire.NAMES]),
)
trees = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
parameters = st.dictionaries(
    st.sampled_from(["binary_data_size", "timeout", "priority", "classification", "x"]), trees
)
sizes = st.one_of(st.integers(0, 3), scalars)


@st.composite
def inputs(draw: st.DrawFn) -> dict[str, Any]:
    """Something like an input: most of it right, so that the rest of it matters."""
    axes = draw(st.integers(0, 3))
    datatype = draw(st.sampled_from(wire.NAMES))
    right = {
        "name": f"{datatype}-{axes}",
        "datatype": datatype,
        "shape": draw(st.lists(sizes, min_size=axes, max_size=axes)),
        "data": draw(st.lists(st.integers(0, 1), max_size=4)),
        "parameters": {"binary_data_size": draw(st.integers(0, 16))},
    }
    for key in draw(st.sets(st.sampled_from([*right]), max_size=2)):
        right[key] = draw(parameters if key == "parameters" else trees)
    for key in draw(st.sets(st.sampled_from(["data", "parameters"]), max_size=1)):
        del right[key]
    return right


requests = st.fixed_dictionaries(
    {"inputs": st.lists(inputs(), max_size=3)},
    optional={"parameters": parameters, "outputs": trees, "id": trees},
)


@given(requests, st.binary(max_size=40))
@example({"inputs": [{"name": "FP32-3", "datatype": "FP32", "shape": [1, 0, 10**30],
                      "parameters": {"binary_data_size": 0}}]}, b"")  # fmt: skip
@example({"inputs": [{"name": "BYTES-3", "datatype": "BYTES", "shape": [1, 2**62, 0],
                      "parameters": {"binary_data_size": 0}}]}, b"")  # fmt: skip
def test_requests_that_are_almost_right_are_refused_or_read(request: Any, rest: bytes) -> None:
    head = json.dumps(request).encode()
    survives(head + rest, {HEADER_LENGTH: b"%d" % len(head)})


@given(st.data(), wire.arrays())
def test_changed_bytes_are_refused_or_read(data: st.DataObject, given_: tuple[Any, Any]) -> None:
    about, raw = as_binary(*given_)
    head = json.dumps({"inputs": [about], "parameters": {"timeout": 5000}, "id": "x"}).encode()
    body = data.draw(wire.mutated(head + raw))
    survives(body, {HEADER_LENGTH: b"%d" % len(head)})


@pytest.mark.parametrize(
    "text",
    [
        "[" * 50_000 + "]" * 50_000,
        '{"a":' * 50_000 + "1" + "}" * 50_000,
        "1" * 5000,
        "-" + "9" * 5000,
        "1e999999999",
        '"\\ud800"',
        "NaN",
    ],
)
def test_json_beyond_all_bounds_is_refused(text: str) -> None:
    for body in ('{"parameters": {"x": %s}}', '{"inputs": [{"data": [%s]}]}', '{"id": %s}', "%s"):
        survives((body % text).encode(), {})


def test_what_is_wrong_is_named() -> None:
    spec = wire.anything("INT8", 1)
    given = as_json(spec, np.array([1], np.int8))
    for change, said in [
        ({"data": [300]}, "300"),
        ({"data": [1.5]}, "1.5"),
        ({"datatype": "INT9"}, "INT9"),
        ({"data": [1, 2]}, "1 elements, got 2"),
    ]:
        with pytest.raises(InvalidRequest, match=f"{spec.name}.*{said}"):
            read(json.dumps({"inputs": [given | change]}).encode())


@pytest.mark.parametrize(
    ("sizes", "rest", "length", "said"),
    [
        ([1, 1], b"a", 0, "'INT8-1'.*1 bytes.*0 are left"),
        ([1, 1], b"abc", 0, "1 bytes follow"),
        ([-1], b"a", 0, "'INT8-1'.*-1"),
        ([1.0], b"a", 0, "'INT8-1'.*1.0"),
        ([True], b"a", 0, "'INT8-1'.*True"),
        (["1"], b"a", 0, "'INT8-1'.*'1'"),
        ([1], b"a", 5, "at most the body's"),
        ([1], b"a", -3, "not an inference request in JSON"),
    ],
)
def test_binary_parts_that_do_not_add_up_are_named(
    sizes: list[Any], rest: bytes, length: int, said: str
) -> None:
    given = {"name": "INT8-1", "datatype": "INT8", "shape": [1]}
    inputs = [given | {"parameters": {"binary_data_size": size}} for size in sizes]
    head = json.dumps({"inputs": inputs}).encode()
    with pytest.raises(InvalidRequest) as refused:
        decode("any", "", {HEADER_LENGTH: b"%d" % (len(head) + length)}, head + rest, MOST)
    assert re.search(said, str(refused.value)), refused.value


def test_a_region_needs_shared_memory() -> None:
    given = as_json(wire.anything("INT8", 1), np.array([1], np.int8))
    given["parameters"] = {"shared_memory_region": "r"}
    with pytest.raises(ServeError, match="shared_memory_region"):
        read(json.dumps({"inputs": [given]}).encode())


def test_what_a_request_says_about_when_it_runs_is_kept() -> None:
    said = {"sequence_id": 7, "sequence_start": True, "priority": 2, "timeout": 5000, "mood": "x"}
    request, _ = read(json.dumps({"parameters": said}).encode())
    assert request.schedule == Schedule(2, 5000, 7, start=True)
    assert request.parameters["mood"] == "x"
    request, _ = read(b'{"parameters": {"mood": 1.5}}')
    assert request.schedule is None


@pytest.mark.parametrize("value", [[1], {"a": 1}, None])
def test_parameters_have_plain_values(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="parameter 'mood' is"):
        read(json.dumps({"parameters": {"mood": value}}).encode())


def test_reserved_parameters_are_refused() -> None:
    body = b'{"parameters": {"triton_enable_empty_final_response": true}}'
    with pytest.raises(InvalidRequest, match=r"'triton_enable_empty_final_response'.*reserved"):
        read(body)


def test_classes_are_wanted_of_the_outputs_that_say_so() -> None:
    outputs = [{"name": "y", "parameters": {"classification": 3}}, {"name": "z"}]
    _, wanted = read(json.dumps({"outputs": outputs}).encode())
    assert wanted.classes == {"y": 3}


def test_numbers_keep_every_digit() -> None:
    numbers = [math.pi, 5e-324, 1.7976931348623157e308, -0.0]
    spec = wire.anything("FP64", 1)
    reply, _ = answered([(spec, np.array(numbers))], Wanted())
    assert list(map(repr, reply["outputs"][0]["data"])) == list(map(repr, numbers))
