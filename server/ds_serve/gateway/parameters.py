"""Request parameters that both protocols share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ds_engines.errors import InvalidRequest
from ds_serve.transport.messages import Schedule

LARGEST = 2**64 - 1
"""Of a priority, a timeout and a sequence's number: they are unsigned, of 64 bits."""

LONGEST_ID = 128
"""Characters of a sequence's name, as Triton has it."""

NAMES = frozenset({"priority", "timeout", "sequence_id", "sequence_start", "sequence_end"})
"""The parameters that say when a request runs."""

NOTHING = Schedule()

RESERVED = "triton_"
"""What the names of parameters begin with that are the server's own."""


def schedule(parameters: Mapping[str, Any]) -> Schedule | None:
    """What a request's parameters say about when it runs; None where they say nothing.

    The parameters are `priority`, `timeout` (microseconds), `sequence_id` (a number or a text),
    `sequence_start` and `sequence_end`. A model that is not scheduled by them ignores them, but
    the timeout: there it is the request's deadline. Raises InvalidRequest.
    """
    said = Schedule(
        priority=_count(parameters, "priority"),
        timeout_us=_count(parameters, "timeout"),
        sequence=_sequence(parameters),
        start=_flag(parameters, "sequence_start"),
        end=_flag(parameters, "sequence_end"),
    )
    return None if said == NOTHING else said


def _count(parameters: Mapping[str, Any], name: str) -> int:
    value = parameters.get(name, 0)
    if type(value) is not int or not 0 <= value <= LARGEST:
        unit = "microseconds" if name == "timeout" else "a whole number, 0 or more"
        raise InvalidRequest(f"parameter {name!r} is {value!r}; it must be {unit}")
    return value


def _flag(parameters: Mapping[str, Any], name: str) -> bool:
    value = parameters.get(name, False)
    if type(value) is not bool:
        raise InvalidRequest(f"parameter {name!r} is {value!r}; it must be true or false")
    return value


def _sequence(parameters: Mapping[str, Any]) -> int | str:
    value = parameters.get("sequence_id", 0)
    if type(value) is str and len(value) <= LONGEST_ID:
        return value
    if type(value) is int and -(2**63) <= value <= LARGEST:
        return value % (LARGEST + 1)  # gRPC's parameter is signed
    raise InvalidRequest(
        f"parameter 'sequence_id' is {value!r}; it must be a whole number of 64 bits or a text of "
        f"at most {LONGEST_ID} characters"
    )
