"""Request parameters that both protocols share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ds_engines.errors import InvalidRequest, Unsupported

UNSUPPORTED = (
    "sequence_id",
    "sequence_start",
    "sequence_end",
    "priority",
    "classification",
)
"""Parameters that change what a request means, and that this server does not know yet."""


def refuse(parameters: Mapping[str, Any], where: str) -> None:
    """Raises Unsupported where a parameter would change the meaning, and is not known yet."""
    for name in UNSUPPORTED:
        if parameters.get(name):
            raise Unsupported(f"{where} has parameter {name!r}, which is not supported")


def timeout(parameters: Mapping[str, Any], most: float) -> float:
    """Seconds that a request may take: its `timeout` (microseconds, 0: none), at most `most`."""
    value = parameters.get("timeout", 0)
    if type(value) is not int or value < 0:
        raise InvalidRequest(f"parameter 'timeout' is {value!r}; it must be microseconds")
    return min(value, most * 1e6) / 1e6 if value else most
