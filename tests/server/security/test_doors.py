"""The check in front of ASGI applications and of gRPC's methods."""

from __future__ import annotations

import json

import pytest

from ds_engines.errors import ConfigError, Forbidden, RateLimited, Unauthenticated
from ds_proto import grpc_service_pb2 as pb
from ds_serve.security.asgi import Guarded, caller_of
from ds_serve.security.guard import OpenGuard
from ds_serve.security.keys import entry, make
from ds_serve.security.rpc import let_in, let_in_next, let_in_stream, shown
from ds_serve.security.settings import Security
from ds_serve.security.tls import TLS


@pytest.fixture
def key(tmp_path):
    """A key for the models a*, with one request at a time."""
    secret, digest = make()
    text = entry("k", digest) + 'models = ["a*"]\nconcurrency = 1\n'
    (tmp_path / "keys.toml").write_text(text)
    return secret


@pytest.fixture
def security(key, tmp_path):
    return Security(keys=str(tmp_path / "keys.toml"))


@pytest.fixture
def guard(security, tmp_path):
    return security.guard(tmp_path)


async def ask(application, method, path, secret=None):
    """Status, headers and body."""
    sent = []

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"a")]
    if secret:
        headers.append((b"authorization", b"Bearer " + secret.encode()))
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    await application(scope, None, send)
    start, body = sent
    return start["status"], dict(start["headers"]), body["body"]


async def names_its_caller(scope, receive, send):
    """Asks for the same again meanwhile, and for what its body would name."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": caller_of(scope).name.encode()})


async def test_a_request_with_a_key_reaches_the_application(guard, key):
    application = Guarded(names_its_caller, guard)
    for _ in range(3):  # one after the other, at most one is under way
        assert await ask(application, "POST", "/v2/models/a/infer", key) == (200, {}, b"k")


async def test_a_request_without_one_does_not(guard, key):
    application = Guarded(names_its_caller, guard)
    status, headers, body = await ask(application, "POST", "/v2/models/a/infer")
    assert status == 401
    assert headers[b"www-authenticate"] == b"Bearer"
    assert headers[b"connection"] == b"close"
    assert json.loads(body)["error"].startswith("a key is needed")
    status, _, body = await ask(application, "POST", "/v2/models/b/infer", key)
    assert (status, json.loads(body)["error"]) == (403, "key 'k' does not allow model 'b'")
    status, _, body = await ask(application, "POST", "/v1/chat/completions", "wrong")
    assert status == 401
    assert json.loads(body)["error"]["code"] == "invalid_api_key"


async def test_health_needs_none(guard):
    application = Guarded(names_its_caller, guard)
    assert await ask(application, "GET", "/health/live") == (200, {}, b"")
    assert (await ask(application, "GET", "/metrics"))[0] == 401
    assert (await ask(Guarded(names_its_caller, guard, True), "GET", "/metrics"))[0] == 200


async def test_a_request_is_under_way_until_it_is_answered_or_fails(guard, key):
    async def meanwhile(scope, receive, send):
        inner = await ask(application, "POST", "/v2/models/a/infer", key)
        assert inner[0] == 429
        with pytest.raises(Forbidden, match="does not allow model 'b'"):
            caller_of(scope).require("b")
        raise OSError("no answer")

    application = Guarded(meanwhile, guard)
    for _ in range(2):
        with pytest.raises(OSError, match="no answer"):
            await ask(application, "POST", "/v2/models/a/infer", key)


def test_a_method_is_let_in_by_its_metadata(guard, key):
    metadata = (("x-request-id", "1"), ("authorization", f"Bearer {key}"))
    with let_in(guard, "ModelInfer", pb.ModelInferRequest(model_name="a"), metadata) as caller:
        assert caller.name == "k"
        with pytest.raises(RateLimited):
            let_in(guard, "ModelInfer", pb.ModelInferRequest(model_name="a"), metadata)
    with pytest.raises(Forbidden):
        let_in(guard, "ModelConfig", pb.ModelConfigRequest(name="b"), metadata)
    for none in ((), None, (("authorization", "Bearer x"),)):
        with pytest.raises(Unauthenticated):
            let_in(guard, "ModelConfig", pb.ModelConfigRequest(name="a"), none)
        assert let_in(guard, "ServerLive", pb.ServerLiveRequest(), none).name == ""


def test_each_request_of_a_stream_is_let_in_by_itself(guard, key):
    with pytest.raises(Unauthenticated):
        let_in_stream(guard, None)
    stream = let_in_stream(guard, [("authorization", f"Bearer {key}")])
    request = pb.ModelInferRequest(model_name="a")
    with let_in_next(stream, "ModelStreamInfer", request), pytest.raises(RateLimited):
        let_in_next(stream, "ModelStreamInfer", request)
    with pytest.raises(Forbidden):
        let_in_next(stream, "ModelStreamInfer", pb.ModelInferRequest(model_name="b"))


def test_lists_show_a_caller_its_models(guard, key):
    index, statistics = pb.RepositoryIndexResponse(), pb.ModelStatisticsResponse()
    for name in ("a1", "b", "a2"):
        index.models.add(name=name)
        statistics.model_stats.add(name=name)
    metadata = [("authorization", f"Bearer {key}")]
    caller = let_in(guard, "RepositoryIndex", pb.RepositoryIndexRequest(), metadata)
    assert [each.name for each in shown(caller, index).models] == ["a1", "a2"]
    assert [each.name for each in shown(caller, statistics).model_stats] == ["a1", "a2"]
    assert shown(caller, caller) is caller


def test_what_an_operator_says_is_checked(security, tmp_path):
    security.check()
    Security().check()
    assert isinstance(Security().guard(tmp_path), OpenGuard)
    for wrong in (Security(keys="none.toml"), Security(tls=TLS(certificate="x"))):
        with pytest.raises(ConfigError):
            wrong.check()
