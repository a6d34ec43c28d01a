"""The classification extension: the largest values of an output, as Triton writes them."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_engines import datatypes
from ds_engines.errors import EngineFailure, InvalidRequest
from ds_engines.spec import BatchPolicy, ModelSpec, TensorSpec
from ds_serve.gateway import classification
from ds_serve.gateway.requests import InferReply
from ds_serve.transport.messages import Tensor


def model(datatype="FP32", batched=True, labels=()) -> ModelSpec:
    axis = 0 if batched else None
    output = TensorSpec("y", datatype, (-1, -1), axis, labels=labels)
    policy = BatchPolicy(max_batch_size=8 if batched else 0)
    return ModelSpec("m", "test", Path("m"), outputs=(output,), batch=policy)


def reply(array: np.ndarray, datatype: str = "FP32", name: str = "y") -> InferReply:
    data = memoryview(datatypes.to_bytes(datatype, array))
    return InferReply("m", "1", "", [Tensor(name, datatype, array.shape, data)])


def texts(found: InferReply) -> list:
    (tensor,) = found.outputs
    assert tensor.datatype == "BYTES"
    array = datatypes.to_array("BYTES", tensor.shape, tensor.data)
    return np.vectorize(bytes.decode, otypes=[object])(array).tolist()


def test_each_row_has_its_own_classes():
    scores = np.array([[0.1, 0.7, 0.2], [5, 1, 4]], np.float32)
    found = classification.ranked(model(), {"y": 2}, reply(scores))
    assert texts(found) == [
        ["0.700000:1", "0.200000:2"],
        ["5.000000:0", "4.000000:2"],
    ]


def test_labels_follow_where_there_are_some():
    scores = np.array([[1, 3, 2]], np.int64)
    spec = model("INT64", labels=("a", "b"))
    found = classification.ranked(spec, {"y": 3}, reply(scores, "INT64"))
    assert texts(found) == [["3:1:b", "2:2", "1:0:a"]]


def test_a_model_without_batches_has_one_ranking():
    scores = np.array([[1, 9], [7, 2]], np.uint8)
    found = classification.ranked(model("UINT8", batched=False), {"y": 9}, reply(scores, "UINT8"))
    assert texts(found) == ["9:1", "7:2", "2:3", "1:0"]


def test_halves_are_ranked_too():
    halves = np.array([[-1.5, 0.25]], ml_dtypes.bfloat16)
    found = classification.ranked(model("BF16"), {"y": 1}, reply(halves.view(np.uint16), "BF16"))
    assert texts(found) == [["0.250000:1"]]


@given(st.lists(st.integers(0, 255), min_size=1, max_size=20), st.integers(1, 25))
def test_the_largest_come_first_and_of_equal_ones_the_first(values, count):
    spec = model("UINT8", batched=False)
    found = classification.ranked(spec, {"y": count}, reply(np.array(values, np.uint8), "UINT8"))
    expected = sorted(range(len(values)), key=lambda index: (-values[index], index))
    assert texts(found) == [f"{values[index]}:{index}" for index in expected[:count]]


def test_other_outputs_stay_as_they_are():
    other = reply(np.ones((1, 2), np.float32), name="z")
    assert classification.ranked(model(), {"y": 1}, other).outputs[0].datatype == "FP32"


def test_no_rows_give_no_classes():
    found = classification.ranked(model(), {"y": 2}, reply(np.ones((0, 3), np.float32)))
    assert found.outputs[0].shape == (0, 0)


@pytest.mark.parametrize("datatype", ["BOOL", "BYTES"])
def test_what_has_no_order_is_refused_before_it_runs(datatype):
    with pytest.raises(InvalidRequest, match=f"'y' is {datatype}"):
        classification.done(model(datatype), {"y": 1}, print)


def test_too_many_elements_are_refused():
    told = []
    done = classification.done(model("UINT8"), {"y": 1}, told.append)
    done(reply(np.zeros((1, classification.MOST_ELEMENTS + 1), np.uint8), "UINT8"))
    assert isinstance(told[0], InvalidRequest)
    assert "1,000,001" in str(told[0])


def test_errors_are_passed_on():
    told = []
    failure = EngineFailure("no")
    classification.done(model(), {"y": 1}, told.append)(failure)
    assert told == [failure]


@pytest.mark.parametrize("count", [-1, 1.5, "3", True, None])
def test_a_count_that_is_none_is_named(count):
    with pytest.raises(InvalidRequest, match="output 'y': classification is"):
        classification.wanted({"classification": count}, "output 'y'")


def test_an_output_in_shared_memory_cannot_be_classified():
    with pytest.raises(InvalidRequest, match="shared memory"):
        classification.wanted({"classification": 1, "shared_memory_region": "r"}, "output 'y'")


def test_nothing_asked_is_nothing():
    assert classification.wanted({"binary_data": True, "classification": 0}, "output 'y'") == 0
