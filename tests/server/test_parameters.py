"""What request parameters say about scheduling, the same over both protocols."""

from __future__ import annotations

import pytest

from ds_engines.errors import InvalidRequest
from ds_serve.gateway import parameters
from ds_serve.transport.messages import Schedule


def test_nothing_said_is_nothing():
    assert parameters.schedule({}) is None
    assert parameters.schedule({"binary_data_output": True}) is None
    assert parameters.schedule({"sequence_id": 0, "sequence_start": False}) is None


def test_all_that_can_be_said():
    given = {
        "priority": 2,
        "timeout": 1500,
        "sequence_id": "left",
        "sequence_start": True,
        "sequence_end": True,
    }
    assert parameters.schedule(given) == Schedule(2, 1500, "left", True, True)


@pytest.mark.parametrize(("given", "number"), [(7, 7), (2**64 - 1, 2**64 - 1), (-1, 2**64 - 1)])
def test_a_sequences_number_is_unsigned(given, number):
    assert parameters.schedule({"sequence_id": given}) == Schedule(sequence=number)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("priority", -1),
        ("priority", True),
        ("priority", "high"),
        ("timeout", 1.5),
        ("timeout", 2**64),
        ("sequence_id", 2**64),
        ("sequence_id", 1.0),
        ("sequence_id", None),
        ("sequence_id", "x" * 129),
        ("sequence_start", 1),
        ("sequence_end", "true"),
    ],
)
def test_what_cannot_be_is_named(name, value):
    with pytest.raises(InvalidRequest, match=f"parameter '{name}' is "):
        parameters.schedule({name: value})
