"""How an answer says which tier it is from: response parameters over KServe, headers over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import Counter

TIER, DEGRADED = "ds_tier", "ds_degraded"
"""Of an answer's parameters: how many times it was passed on, 0 for none, and whether it is a
model's that was not sure and could not ask the other."""

TIER_HEADER, DEGRADED_HEADER = b"x-ds-tier", b"x-ds-degraded"

LOCAL, ESCALATED, DEGRADED_OUTCOME = "local", "escalated", "degraded"

answers = Counter(
    "ds_edge_answers",
    "Answers of models that escalate: local (sure itself), escalated (another's), degraded (not "
    "sure, and the other could not be asked).",
    ("model", "outcome"),
)

Headers = list[tuple[bytes, bytes]]


def marked(
    parameters: Mapping[str, Any] | None, tier: int = 0, *, degraded: bool = False
) -> dict[str, Any]:
    """An answer's parameters with these marks; those of its own stay."""
    others = {k: v for k, v in (parameters or {}).items() if k not in (TIER, DEGRADED)}
    return others | {TIER: tier} | ({DEGRADED: True} if degraded else {})


def tier_of(parameters: Mapping[str, Any] | None) -> int:
    """Of another server's answer, which may say anything."""
    tier = (parameters or {}).get(TIER, 0)
    return tier if type(tier) is int and 0 <= tier < 100 else 0


def degraded_in(parameters: Mapping[str, Any] | None) -> bool:
    return (parameters or {}).get(DEGRADED) is True


def headers(parameters: Mapping[str, Any] | None) -> Headers:
    """The same marks as headers; none where there are no marks."""
    if not parameters or TIER not in parameters:
        return []
    return as_headers(tier_of(parameters), degraded=degraded_in(parameters))


def as_headers(tier: int, *, degraded: bool) -> Headers:
    found = [(TIER_HEADER, b"%d" % tier)]
    return [*found, (DEGRADED_HEADER, b"true")] if degraded else found
