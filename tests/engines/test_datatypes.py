"""Tensors in their three forms: array, raw bytes, JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ds_engines import datatypes
from ds_engines.errors import EngineFailure, InvalidRequest, ServeError

T = TypeVar("T")
FIXED = [name for name, kind in datatypes.DATATYPES.items() if kind.itemsize]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
NAMES = st.sampled_from([*datatypes.DATATYPES])


def byte_arrays(shape: tuple[int, ...], elements: list[bytes]) -> np.ndarray[Any, Any]:
    array = np.empty(math.prod(shape), dtype=object)
    array[:] = elements
    return array.reshape(shape)


def refused_by_name(call: Callable[..., T], *arguments: object) -> T | None:
    """What the call gives; None where it refuses tensor `x` by name. Other errors pass through."""
    try:
        return call(*arguments)
    except InvalidRequest as error:
        if not str(error).startswith("tensor 'x'"):
            raise
        return None


@given(data=st.data(), name=st.sampled_from(FIXED), shape=SHAPES)
def test_fixed_size_types_round_trip_through_bytes(data, name, shape):
    array = data.draw(hnp.arrays(datatypes.DATATYPES[name].dtype, shape))
    raw = bytes(datatypes.to_bytes(name, array))
    datatypes.check_data("x", name, shape, raw)
    back = datatypes.to_array(name, shape, raw)
    assert back.shape == shape
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()


@given(data=st.data(), shape=SHAPES)
def test_bytes_round_trip_through_the_stream(data, shape):
    size = math.prod(shape)
    elements = data.draw(st.lists(st.binary(max_size=9), min_size=size, max_size=size))
    array = byte_arrays(shape, elements)
    raw = datatypes.to_bytes("BYTES", array)
    assert datatypes.count_elements(raw) == size
    back = datatypes.to_array("BYTES", shape, raw)
    assert back.shape == shape
    assert back.reshape(-1).tolist() == elements


@given(raw=st.binary(max_size=64), name=NAMES | st.text(max_size=6), shape=st.lists(st.integers()))
def test_arbitrary_bytes_raise_nothing_but_invalid_request(raw, name, shape):
    for data in (raw, memoryview(raw)):
        array = refused_by_name(datatypes.to_array, name, shape, data, "x")
        if array is not None:
            assert bytes(datatypes.to_bytes(name, array)) == raw or name == "BOOL"


@given(raw=st.binary(max_size=64))
def test_arbitrary_streams_count_or_say_what_is_cut_short(raw):
    count = refused_by_name(datatypes.count_elements, raw, "x")
    if count is not None:
        array = datatypes.to_array("BYTES", [count], raw)
        assert datatypes.to_bytes("BYTES", array) == raw


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=8,
)


@given(value=JSON_VALUES, name=NAMES, shape=st.lists(st.integers(-1, 4), max_size=3))
def test_arbitrary_json_raises_nothing_but_invalid_request(value, name, shape):
    array = refused_by_name(datatypes.from_json, "x", name, shape, value)
    if array is not None:
        assert array.shape == tuple(shape)
        assert array.dtype == datatypes.DATATYPES[name].dtype


@given(data=st.data(), name=st.sampled_from(FIXED), shape=SHAPES)
@settings(max_examples=300)
def test_fixed_size_types_round_trip_through_json(data, name, shape):
    array = data.draw(hnp.arrays(datatypes.DATATYPES[name].dtype, shape))
    values = datatypes.to_json(name, array)
    assert len(values) == array.size
    for text in (json.dumps(values), datatypes.to_json_text(name, array)):
        back = datatypes.from_json("x", name, shape, json.loads(text))
        np.testing.assert_array_equal(as_numbers(name, back), as_numbers(name, array))


def as_numbers(name: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return datatypes.bf16_to_float32(array) if name == "BF16" else array


@given(texts=st.lists(st.text(max_size=5)))
def test_text_round_trips_through_json(texts):
    shape = (len(texts),)
    array = datatypes.from_json("x", "BYTES", shape, texts)
    assert array.tolist() == [text.encode() for text in texts]
    assert datatypes.to_json("BYTES", array) == texts
    assert json.loads(datatypes.to_json_text("BYTES", array)) == texts


@given(hnp.arrays(np.float32, 8, elements=st.floats(width=32)))
def test_bfloat16_rounds_to_nearest_even(array):
    ours = datatypes.float32_to_bf16(array)
    theirs = array.astype(ml_dtypes.bfloat16)
    finite = ~np.isnan(array)
    np.testing.assert_array_equal(ours[finite], theirs.view(np.uint16)[finite])
    assert np.isnan(datatypes.bf16_to_float32(ours)[~finite]).all()


def test_bfloat16_keeps_every_value():
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = datatypes.bf16_to_float32(bits)
    finite = ~np.isnan(values)
    np.testing.assert_array_equal(datatypes.float32_to_bf16(values)[finite], bits[finite])
    expected = bits.view(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(values, expected)


def test_arrays_are_views_of_the_bytes_and_back():
    raw = np.arange(50_000, dtype=np.float32).tobytes()
    array = datatypes.to_array("FP32", [50_000], raw)
    assert not array.flags.owndata
    view = datatypes.to_bytes("FP32", array)
    assert isinstance(view, memoryview)
    assert view == raw
    assert np.shares_memory(np.frombuffer(view, np.float32), array)


def test_an_array_with_gaps_is_written_row_major():
    array = np.arange(6, dtype=np.int32).reshape(2, 3).T
    assert bytes(datatypes.to_bytes("INT32", array)) == array.tobytes()
    assert datatypes.to_json("INT32", array) == [0, 3, 1, 4, 2, 5]
    assert json.loads(datatypes.to_json_text("INT32", array)) == [0, 3, 1, 4, 2, 5]


def test_any_byte_but_zero_is_true():
    array = datatypes.to_array("BOOL", [3], b"\x00\x02\xff")
    assert array.tolist() == [False, True, True]
    assert array.view(np.uint8).tolist() == [0, 1, 1]


def test_non_finite_floats_are_written_as_triton_writes_them():
    array = np.array([np.nan, np.inf, -np.inf, 0.1], np.float32)
    assert datatypes.to_json_text("FP32", array) == b"[NaN,Infinity,-Infinity,0.10000000149011612]"
    assert datatypes.to_json_text("FP32", array[3:]) == b"[0.1]"
    assert datatypes.to_json("FP32", array)[1] == math.inf


def test_a_million_uneven_elements_are_counted():
    raw = b"\x01\x00\x00\x00a\x00\x00\x00\x00" * 500_000
    assert datatypes.count_elements(raw) == 1_000_000
    assert datatypes.count_elements(raw, limit=10) == 11
    assert datatypes.count_elements(b"\x00" * 4_000_000) == 1_000_000


@pytest.mark.parametrize(
    ("name", "shape", "raw", "message"),
    [
        ("FP32", [2, 3], b"1234", "tensor 'x': FP32 of shape [2, 3] takes 24 bytes, got 4"),
        ("FP32", [1], b"12345", "takes 4 bytes, got 5"),
        ("BOOL", [1], b"", "takes 1 bytes, got 0"),
        ("FP8", [1], b"1", "datatype 'FP8' is not one of BOOL, UINT8"),
        ("INT8", [-1, 2], b"1", "shape [-1, 2] holds -1"),
        ("INT8", [1] * 65, b"1", "dimension"),
        ("BYTES", [2], b"\0\0\0\0", "takes at least 8 bytes, got 4"),
        ("BYTES", [1], b"\5\0\0\0abc", "element 0 is cut short: the element takes 5 bytes, 3 are"),
        ("BYTES", [1], b"\0\0\0\0\0", "element 1 is cut short: its length takes 4 bytes, 1 are"),
        ("BYTES", [1], b"\0\0\0\0\1\0\0\0a", "has 1 elements, the data holds more"),
        ("BYTES", [2], b"\4\0\0\0abcd", "has 2 elements, the data holds 1"),
    ],
)
def test_wrong_raw_data_is_named(name, shape, raw, message):
    with pytest.raises(InvalidRequest, match="tensor 'x'") as caught:
        datatypes.to_array(name, shape, raw, "x")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape", "value", "message"),
    [
        ("INT8", [2], [1, 300], "element 1 is 300, outside INT8's -128 to 127"),
        ("UINT64", [1], [-1], "element 0 is -1, outside UINT64's 0 to 18446744073709551615"),
        (
            "INT32",
            [1],
            [1.0],
            "element 0 is a number 1.0; each element of INT32 must be an integer",
        ),
        ("INT32", [1], [True], "element 0 is a boolean true; each element of INT32"),
        ("FP32", [2], [1, "2"], 'element 1 is a string "2"; each element of FP32 must be a number'),
        ("FP32", [1], [None], "element 0 is a null; each element"),
        ("FP32", [1], [1e39], "element 0 is 1e+39, beyond the range of FP32"),
        ("FP16", [1], [70_000], "element 0 is 70000, beyond the range of FP16"),
        ("BF16", [1], [3.4e38], "beyond the range of BF16"),
        ("FP64", [1], [10**5000], "element 0 is a number of thousands of digits, beyond"),
        ("BOOL", [1], [2], "element 0 is 2; each element of BOOL must be true or false"),
        ("BYTES", [1], [5], "element 0 is a number 5; each element of BYTES must be a string"),
        ("BYTES", [1], ["\ud800"], "half of a surrogate pair"),
        ("INT8", [3], [1, 2], "shape [3] has 3 elements, got 2"),
        ("INT8", [2, 2], [[1, 2], [3]], "data is ragged"),
        ("INT8", [2, 2], [[1, 2], 3], "mixes lists and elements"),
        ("INT8", [1], {"a": 1}, "data is a object, it must be a list"),
    ],
)
def test_wrong_json_data_is_named(name, shape, value, message):
    with pytest.raises(InvalidRequest, match="tensor 'x'") as caught:
        datatypes.from_json("x", name, shape, value)
    assert message in str(caught.value)


def test_nested_and_flat_lists_are_the_same_tensor():
    flat = datatypes.from_json("x", "FP16", [2, 2], [1, 2.5, 3, 0.1])
    nested = datatypes.from_json("x", "FP16", [2, 2], [[1, 2.5], [3, 0.1]])
    np.testing.assert_array_equal(flat, nested)
    assert flat[1, 1] == np.float16(0.1)


def test_output_that_is_not_text_asks_for_binary():
    array = byte_arrays((1,), [b"\xff"])
    with pytest.raises(InvalidRequest, match=r"tensor 'y'.*not UTF-8.*binary"):
        datatypes.to_json("BYTES", array, "y")


def test_an_engine_that_breaks_its_promise_is_named():
    with pytest.raises(EngineFailure, match="tensor 'y': the engine gave float64 where FP32"):
        datatypes.to_bytes("FP32", np.zeros(1), "y")
    with pytest.raises(ServeError, match="gave a float where BYTES"):
        datatypes.to_bytes("BYTES", byte_arrays((1,), [1.5]), "y")  # type: ignore[list-item]


json_lists = st.recursive(
    st.one_of(
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.booleans(),
        st.text(max_size=2),
        st.none(),
    ),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=12,
).filter(lambda value: isinstance(value, list))


@given(st.sampled_from(sorted(datatypes.DATATYPES)), json_lists, st.lists(st.integers(0, 4)))
def test_json_to_raw_bytes_is_the_same_by_both_ways(name: str, data: Any, shape: list[int]) -> None:
    """Both give the same bytes, or the same error."""

    def long_way() -> bytes:
        array = datatypes.from_json("x", name, shape, data)
        return bytes(datatypes.to_bytes(name, array, "x"))

    outcomes = []
    for way in (long_way, lambda: bytes(datatypes.bytes_of_json("x", name, shape, data))):
        try:
            outcomes.append(way())
        except InvalidRequest as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]
