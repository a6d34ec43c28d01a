"""The conformance page names what the server offers: no more, and no less."""

from __future__ import annotations

import re
from pathlib import Path

from fastapi.routing import APIRoute

from ds_proto.service import METHODS, SERVICE
from ds_serve.gateway.budget import Budget
from ds_serve.gateway.config import Limits
from ds_serve.gateway.gateway import Gateway
from ds_serve.gateway.grpc import server
from ds_serve.gateway.grpc.service import InferenceService
from ds_serve.gateway.http import rest
from ds_serve.gateway.http.request_ids import RequestIds

PAGE = Path(__file__).parents[2] / "docs/conformance.md"
STATES = {"supported", "refused", "ignored", "not applicable"}
OPTIONAL = "[/versions/{version}]"


def table(title: str) -> dict[str, str]:
    """First column without its backticks, to the second."""
    section = PAGE.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(.+?)` \| ([^|]+?) \|", section, re.MULTILINE)
    assert rows, f"there is no table under {title}"
    return dict(rows)


def both(route: str) -> list[str]:
    return [route.replace(OPTIONAL, ""), route.replace(OPTIONAL, OPTIONAL[1:-1])]


def routes() -> set[str]:
    app = rest.build(Gateway(Limits()), Budget(1, 1))
    return {
        f"{method} {route.path}"
        for route in app.routes
        if isinstance(route, APIRoute) and route.path.startswith("/v2")
        for method in route.methods
    }


def test_every_call_and_service_is_in_the_table() -> None:
    service = InferenceService(Gateway(Limits()), Budget(1, 1))
    others = server.services(service, RequestIds()).keys() - {SERVICE}
    assert table("gRPC calls").keys() == METHODS.keys() | others


def test_every_call_has_a_method() -> None:
    assert [name for name in METHODS if not hasattr(InferenceService, name)] == []


def test_every_route_is_in_the_table() -> None:
    named = {each for route in table("HTTP routes") for each in both(route)}
    assert named == routes()


def test_every_row_says_where_it_stands() -> None:
    rows = re.findall(r"^\| `.+?` \| ([^|]+?) \|", PAGE.read_text(), re.MULTILINE)
    assert set(rows) <= STATES
