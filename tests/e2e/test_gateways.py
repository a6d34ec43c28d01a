"""Several gateways behind one pair of ports; health, metrics, logs and request ids."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import grpc
import httpx2
import orjson
import pytest
import tritonclient.grpc as triton
from onnx_models import lookup, slow
from serving import Server, until
from slow_requests import (
    busy,
    call,
    is_right,
    json_request,
    message,
    post,
    send_raw,
    statistics,
    trailers,
    until_waiting,
)

from ds_proto import grpc_service_pb2 as pb


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gateways")
    models = ["--model", slow(folder / "slow.onnx"), "--model", lookup(folder / "lookup.onnx")]
    with Server(*models, "--gateways", "2", "--log-format", "json") as server:
        yield server


ANEW = {"Connection": "close"}
"""A request with it, and the next one, may reach any gateway."""


def _get(server, path):
    return server.client.get(server.http + path, headers=ANEW)


def _post_anew(server):
    return post(server, headers=ANEW)


def _answering(answers):
    """How many gateways they came from: ids that gateways give begin with a part of their own."""
    assert all(is_right(answer) for answer in answers)
    return len({answer.headers["x-request-id"].partition("-")[0] for answer in answers})


def test_the_kernel_spreads_connections_over_all_gateways(server):
    assert _answering([_post_anew(server) for _ in range(32)]) == 2


def test_grpc_connections_are_spread_too(server):
    ids = set()
    for number in range(32):
        options = [("grpc.use_local_subchannel_pool", 1), ("ds.number", number)]
        with grpc.insecure_channel(server.grpc, options) as channel:
            infer = call(channel, "ModelInfer")
            assert len(infer(message()).outputs) == 1
            with pytest.raises(grpc.RpcError) as error:
                infer(pb.ModelInferRequest(model_name="nobody"))
            ids.add(trailers(error.value)["x-request-id"].partition("-")[0])
    assert len(ids) == 2


def test_every_gateway_tells_the_same_sums(server):
    before = statistics(server, "lookup")["inference_count"]
    x = {"name": "index", "datatype": "INT64", "shape": [2, 1], "data": [1, 2]}
    for _ in range(20):
        answer = server.client.post(
            f"{server.http}/v2/models/lookup/infer", json={"inputs": [x]}, headers=ANEW
        )
        assert answer.status_code == 200
    told = [_get(server, "/v2/models/lookup/stats").json() for _ in range(16)]
    assert all(one == told[0] for one in told)
    assert told[0]["model_stats"][0]["inference_count"] == before + 40
    with triton.InferenceServerClient(server.grpc) as client:
        over_grpc = client.get_inference_statistics("lookup", as_json=True)["model_stats"][0]
    assert int(over_grpc["inference_count"]) == before + 40
    assert over_grpc["execution_count"] == str(told[0]["model_stats"][0]["execution_count"])
    names = ("nv_inference_count{", "ds_gateway_responses_total{", "ds_batch_rows_count{")
    for name in names:
        lines = {
            tuple(sorted(s for s in _get(server, "/metrics").text.splitlines() if name in s))
            for _ in range(8)
        }
        assert len(lines) == 1, lines
        assert lines.pop()
    assert server.metric("nv_inference_count", model="lookup") == before + 40


def test_one_gateway_dies_and_the_other_goes_on(server):
    counted = server.metric("ds_gateway_responses_total", protocol="http", code="200")
    victim, other = server.gateways()
    os.kill(victim, signal.SIGKILL)
    # Reaped, so its last thread is gone and its sockets with it: until then they take connections.
    until(lambda: not Path(f"/proc/{victim}").exists(), "it did not die")
    assert _answering([_post_anew(server) for _ in range(8)]) >= 1
    until(lambda: _answering([_post_anew(server) for _ in range(16)]) == 2, "it did not return")
    assert other in server.gateways()
    now = server.metric("ds_gateway_responses_total", protocol="http", code="200")
    assert now >= counted + 24, "what the dead one counted is kept"


def test_what_waits_for_a_dead_gateway_is_never_run(server):
    executed = statistics(server)["execution_count"]
    with busy(server) as running:
        lost = [send_raw(server, json_request()) for _ in range(6)]
        until_waiting(server, 6)
        for gateway in server.gateways():
            os.kill(gateway, signal.SIGKILL)
        assert isinstance(running.exception(), httpx2.TransportError)
    assert [_rest(connection) for connection in lost] == [b""] * 6
    until(lambda: _answers(server), "no gateway came back")
    until_waiting(server, 0)
    until(server.ready, "not ready again")
    assert is_right(_post_anew(server))
    assert statistics(server)["execution_count"] <= executed + 2


def _rest(connection):
    with connection:
        try:
            return connection.recv(1)
        except ConnectionResetError:
            return b""


def _answers(server):
    try:
        return _get(server, "/health/live").status_code == 200
    except httpx2.TransportError:
        return False


@pytest.mark.parametrize(
    "path",
    ["/health/live", "/health/ready", "/health", "/v2/health/live", "/v2/health/ready",
     "/v2/models/slow/ready", "/v2/models/slow/versions/1/ready"],
)  # fmt: skip
def test_health_of_a_server_that_is_well(server, path):
    assert _get(server, path).status_code == 200


def test_grpc_health_of_a_server_that_is_well(server):
    with triton.InferenceServerClient(server.grpc) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("slow")
        assert client.is_model_ready("slow", "1")
        assert not client.is_model_ready("slow", "2")
        assert not client.is_model_ready("nobody")


HEADERS = {"X-Request-Id": "from-the-client"}


def test_http_request_id_is_echoed(server):
    for answer, status in (
        (post(server, headers=HEADERS), 200),
        (post(server, model="nobody", headers=HEADERS), 404),
        (post(server, rows=1000, headers=HEADERS), 400),
        (server.client.get(f"{server.http}/v2/models/slow", headers=HEADERS), 200),
        (server.client.get(f"{server.http}/v2/models/nobody", headers=HEADERS), 404),
        (server.client.get(f"{server.http}/nowhere", headers=HEADERS), 404),
    ):
        assert answer.status_code == status
        assert answer.headers["x-request-id"] == "from-the-client"


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "caf\xe9"])
def test_http_request_id_that_is_unfit_is_replaced(server, given):
    answer = post(server, headers={"X-Request-Id": given.encode("latin-1")})
    assert answer.headers["x-request-id"] not in ("", given)


def test_grpc_request_id_is_echoed(server):
    metadata = (("x-request-id", "from-the-client"),)
    with grpc.insecure_channel(server.grpc) as channel:
        infer = call(channel, "ModelInfer")
        with pytest.raises(grpc.RpcError) as error:
            infer(message(model="nobody"), metadata=metadata)
        assert trailers(error.value)["x-request-id"] == "from-the-client"
        _, done = infer.with_call(message(), metadata=metadata)
        assert dict(done.trailing_metadata())["x-request-id"] == "from-the-client"


def test_logs_are_json_and_tell_refused_requests_by_their_id(server):
    ids = {"http": "log-http", "grpc": "log-grpc", "engine": "log-engine"}
    post(server, model="nobody", headers={"X-Request-Id": ids["http"]})
    x = {"name": "index", "datatype": "INT64", "shape": [1, 1], "data": [99]}
    failed = server.client.post(
        f"{server.http}/v2/models/lookup/infer",
        json={"inputs": [x]},
        headers={"X-Request-Id": ids["engine"]},
    )
    assert failed.status_code == 500
    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError):
        call(channel, "ModelInfer")(
            message(model="nobody"), metadata=(("x-request-id", ids["grpc"]),)
        )
    entries = [orjson.loads(line) for line in server.log().splitlines()]
    assert all({"time", "level", "process", "message"} <= entry.keys() for entry in entries)
    about = {entry["request_id"]: entry for entry in entries if "request_id" in entry}
    assert about["log-http"]["status"] == 404
    assert about["log-grpc"]["status"] == "NOT_FOUND"
    assert about["log-engine"]["status"] == 500
    assert about["log-engine"]["level"] == "warning"
    assert "'nobody'" in about["log-http"]["message"]


def test_metrics_tell_what_was_refused(server):
    before = server.metric("ds_gateway_responses_total", protocol="http", code="404")
    post(server, model="nobody")
    assert server.metric("ds_gateway_responses_total", protocol="http", code="404") == before + 1
    assert server.metric("ds_model_ready", model="slow") == 1
    assert "# TYPE nv_inference_count counter" in _get(server, "/metrics").text


def test_there_are_two_by_default(tmp_path):
    with Server("--model", lookup(tmp_path / "lookup.onnx"), "--gateways", "0") as server:
        assert len(server.gateways()) == min(2, len(os.sched_getaffinity(0)))
