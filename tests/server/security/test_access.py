"""Every method and route asks for what it should, and none was forgotten."""

from __future__ import annotations

import re

import pytest
from fastapi.routing import APIRoute

from ds_engines.errors import Unauthenticated
from ds_proto import grpc_service_pb2 as pb
from ds_proto.service import METHODS
from ds_serve.gateway.http import errors, rest
from ds_serve.security import access
from ds_serve.security.access import OPEN, Access, of_http, of_rpc
from ds_serve.security.guard import Kind

HEALTH = {"/health", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"}


def routes():
    """Method, path and path with a model in it of every route of the application."""
    for route in rest.build(None, None).routes:
        if isinstance(route, APIRoute):
            for method in route.methods:
                yield method, route.path, re.sub(r"{model(:path)?}", "mlp", route.path)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_in_the_table_with_its_model(name):
    assert name in access._RPCS
    kind, field = access._RPCS[name]
    request = METHODS[name].request()
    names = {each.name for each in request.DESCRIPTOR.fields} & {"name", "model_name"}
    if field:
        setattr(request, field, "mlp")
    elif kind not in (None, Kind.MEMORY):
        assert not names, "its model is looked at"
    assert of_rpc(name, request) == Access(kind, "mlp" if field else "")
    assert (kind is None) == (name in ("ServerLive", "ServerReady"))


def test_methods_that_are_not_known_are_administrators():
    assert of_rpc("Shutdown", pb.ServerLiveRequest()) == Access(Kind.ADMIN)


def test_only_health_is_open():
    found = {path for method, path, _ in routes() if of_http(method, path) == OPEN}
    assert found == HEALTH


def test_every_route_that_names_a_model_is_asked_for_that_model():
    named = [(method, path, real) for method, path, real in routes() if "{model" in path]
    assert len(named) > 10
    for method, path, real in named:
        assert of_http(method, real).model == "mlp", path


@pytest.mark.parametrize(
    ("method", "path", "wanted"),
    [
        ("POST", "/v2/models/m/infer", Access(Kind.INFER, "m")),
        ("POST", "/v2/models/m/versions/3/generate_stream", Access(Kind.INFER, "m")),
        ("GET", "/v2/models/m", Access(Kind.READ, "m")),
        ("GET", "/v2/models/m/versions/3/stats", Access(Kind.READ, "m")),
        ("GET", "/v2/models/stats", Access(Kind.READ)),
        ("GET", "/v2", Access(Kind.READ)),
        ("POST", "/v2/repository/index", Access(Kind.READ)),
        ("POST", "/v2/repository/r/models/m/load", Access(Kind.CONTROL, "m")),
        ("POST", "/v2/repository/models/m/unload", Access(Kind.CONTROL, "m")),
        ("GET", "/v2/models/m/trace/setting", Access(Kind.ADMIN, "m")),
        ("POST", "/v2/trace/setting", Access(Kind.ADMIN)),
        ("GET", "/v2/logging", Access(Kind.ADMIN)),
        ("POST", "/v2/systemsharedmemory/region/r/register", Access(Kind.MEMORY)),
        ("GET", "/v2/cudasharedmemory/status", Access(Kind.MEMORY)),
        ("POST", "/v1/chat/completions", Access(Kind.INFER)),
        ("GET", "/v1/models", Access(Kind.READ)),
        ("GET", "/v1/models/a/b", Access(Kind.READ, "a/b")),
        ("GET", "/metrics", Access(Kind.READ)),
        ("GET", "/docs", Access(Kind.READ)),
        ("POST", "/health/live/x", Access(Kind.ADMIN)),
        ("DELETE", "/anything", Access(Kind.ADMIN)),
        ("POST", "/v2/models/m/infer\n", Access(Kind.ADMIN)),
        ("GET", "/health/live\n", Access(Kind.READ)),
    ],
)
def test_what_a_path_asks_for(method, path, wanted):
    assert of_http(method, path) == wanted


def test_metrics_may_be_open():
    assert of_http("GET", "/metrics", open_metrics=True) == OPEN
    assert of_http("GET", "/metrics/", open_metrics=True) == Access(Kind.READ)


def test_a_refusal_says_how_to_send_a_key():
    headers = errors.kserve(Unauthenticated("a key is needed")).headers
    assert (b"www-authenticate", b"Bearer") in headers
