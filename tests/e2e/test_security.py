"""Keys, TLS and slow clients in the whole server."""

from __future__ import annotations

import json
import re
import shutil
import socket
import ssl
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import grpc
import httpx2
import numpy as np
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from onnx_models import mlp, slow
from serving import Server, until
from slow_requests import SECOND

from ds_client import (
    TLS,
    Client,
    Forbidden,
    RateLimited,
    Unauthenticated,
    Unavailable,
)
from ds_proto.service import METHODS
from ds_serve.gateway.grpc import reflection
from ds_serve.security.keys import entry, make

X = {"x": np.ones((1, 64), np.float32)}
BODY = {
    "inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [1.0] * 64}],
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Secrets by name; `file` is the file."""
    folder = tmp_path_factory.mktemp("keys")
    secrets, text = {}, ""
    for name, fields in {
        "admin": "admin = true\n",
        "user": 'models = ["mlp"]\n',
        "slow": "requests_per_second = 2\nburst = 4\n",
        "one": "concurrency = 1\n",
    }.items():
        secrets[name], digest = make()
        text += entry(name, digest) + fields
    (folder / "keys.toml").write_text(text)
    return secrets | {"file": folder / "keys.toml"}


CARRIERS = [
    "native",
    pytest.param("grpcio", marks=pytest.mark.slow),
    pytest.param("pyvoy", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=CARRIERS)
def server(request, keys, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    models = ["--model", mlp(folder / "mlp.onnx"), "--model", slow(folder / "slow.onnx")]
    carrier = ["--grpc-server", request.param, "--gateways", "2"]
    with Server(*models, "--api-keys", keys["file"], *carrier) as server:
        yield server


def bearer(secret):
    return {"authorization": f"Bearer {secret}"}


@pytest.mark.slow
def test_every_route_but_health_asks_for_a_key(server, keys):
    page = httpx2.get(f"{server.http}/openapi.json", headers=bearer(keys["user"])).json()
    calls = [(method, path) for path, each in page["paths"].items() for method in each]
    assert len(calls) > 40
    for method, path in calls:
        real = re.sub(r"{\w+(:path)?}", "mlp", path)
        wanted = 200 if path.startswith(("/health", "/v2/health")) else 401
        assert httpx2.request(method, server.http + real).status_code == wanted, path
    for path in ("/", "/docs", "/none", "/v2/models/mlp%2Finfer"):
        assert httpx2.get(server.http + path).status_code == 401
    with Client(server.grpc, retry=None) as client:
        for name, method in METHODS.items():
            if name == "ModelStreamInfer":
                continue
            if name in ("ServerLive", "ServerReady"):
                client._call(name, method.request())
                continue
            with pytest.raises(Unauthenticated):
                client._call(name, method.request())
        with pytest.raises(Unauthenticated, match="a key is needed"):
            list(client.stream("mlp", [X]))
    with grpc.insecure_channel(server.grpc) as channel:
        for service in (reflection.V1, reflection.ALPHA):
            call = channel.stream_stream(f"/{service}/{reflection.METHOD}", bytes, bytes)
            with pytest.raises(grpc.RpcError) as refused:
                list(call(iter([b"\x3a\x00"]), timeout=20))
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            metadata = tuple(bearer(keys["user"]).items())
            (listed,) = call(iter([b"\x3a\x00"]), timeout=20, metadata=metadata)
            assert b"inference.GRPCInferenceService" in listed


def health_of(server, model, *keys):
    """The status, or how the call is refused."""
    metadata = [("authorization", f"Bearer {key}") for key in keys]
    with grpc.insecure_channel(server.grpc) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=model)
        try:
            return stub.Check(request, metadata=metadata, timeout=20).status
        except grpc.RpcError as error:
            return error.code()


def test_the_health_of_one_model_is_told_to_those_who_may_use_it(server, keys):
    assert health_of(server, "") == health_pb2.HealthCheckResponse.SERVING
    for model in ("mlp", "none"):
        assert health_of(server, model) is grpc.StatusCode.UNAUTHENTICATED
    assert health_of(server, "mlp", keys["user"]) == health_pb2.HealthCheckResponse.SERVING
    assert health_of(server, "slow", keys["user"]) is grpc.StatusCode.PERMISSION_DENIED
    assert health_of(server, "none", keys["admin"]) is grpc.StatusCode.NOT_FOUND


@pytest.mark.slow
def test_what_is_not_ready_is_named_to_nobody(keys, tmp_path):
    (tmp_path / "broken.onnx").write_bytes(mlp(tmp_path / "mlp.onnx").read_bytes()[:-100])
    for name in ("a", "b"):
        (tmp_path / "models" / name / "1").mkdir(parents=True)
    mlp(tmp_path / "models/a/1/model.onnx")
    (tmp_path / "models/b/1/model.onnx").write_bytes((tmp_path / "broken.onnx").read_bytes())
    flags = ["--model-repository", tmp_path / "models"]
    for more, told in ([], ["b"]), (["--api-keys", keys["file"]], []):
        with Server(*flags, *more) as server:
            answer = httpx2.get(f"{server.http}/health/ready")
            assert (answer.status_code, list(answer.json()["models"])) == (503, told)


def test_a_key_is_good_for_its_models(server, keys):
    with Client(server.grpc, api_key=keys["user"], retry=None) as client:
        assert client.infer("mlp", X)["y"].shape == (1, 8)
        assert [entry.name for entry in client.index()] == ["mlp"]
        assert [each.name for each in client.statistics()] == ["mlp"]
        with pytest.raises(Forbidden, match="does not allow model 'slow'"):
            client.infer("slow", X)
        replies = {reply.index: reply for reply in client.stream("slow", [X])}
        assert isinstance(replies[0].error, Forbidden)
        with pytest.raises(Forbidden, match="no administrator's"):
            client.load("mlp")
        assert [*next(client.stream("mlp", [X])).outputs] == ["y"]
    post = f"{server.http}/v2/models/mlp/infer"
    assert httpx2.post(post, json=BODY, headers=bearer(keys["user"])).status_code == 200
    assert httpx2.post(post, json=BODY, headers=bearer("ds-wrong")).status_code == 401
    index = httpx2.post(f"{server.http}/v2/repository/index", headers=bearer(keys["user"])).json()
    stats = httpx2.get(f"{server.http}/v2/models/stats", headers=bearer(keys["user"])).json()
    assert [each["name"] for each in (*index, *stats["model_stats"])] == ["mlp", "mlp"]
    refused = httpx2.post(
        f"{server.http}/v2/models/slow/infer", json=BODY, headers=bearer(keys["user"])
    )
    assert refused.status_code == 403


def test_a_rate_holds_over_both_protocols_and_all_gateways(server, keys):
    taken, begun = 0, time.monotonic()
    with Client(server.grpc, api_key=keys["slow"], retry=None, connections=4) as client:
        for index in range(20):
            if index % 2:
                post = f"{server.http}/v2/models/mlp/infer"
                status = httpx2.post(post, json=BODY, headers=bearer(keys["slow"])).status_code
                assert status in (200, 429)
                taken += status == 200
                continue
            with suppress(RateLimited):
                client.infer("mlp", X)
                taken += 1
    assert 4 <= taken <= 4 + 2 * (time.monotonic() - begun) + 1


def test_one_request_at_a_time(server, keys):
    inputs = {"x": np.ones((1, 4), np.float32), "steps": np.array([SECOND])}
    with (
        Client(server.grpc, api_key=keys["one"], retry=None, connections=4) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        for _ in range(2):  # what was under way is over
            asked = [pool.submit(client.infer, "slow", inputs) for _ in range(4)]
            errors = [each.exception() for each in asked]
            assert [type(error) for error in errors if error] == [RateLimited] * 3
        with client.pipeline() as pipeline:
            asked = [pipeline.infer("slow", inputs) for _ in range(4)]
            assert sum(each.exception() is None for each in asked) == 1


def test_shared_memory_needs_permission(server, keys):
    with (
        Client(server.grpc, api_key=keys["user"], shared_memory=True) as client,
        pytest.raises(Forbidden, match="does not allow shared memory"),
    ):
        client.infer("mlp", {"x": np.ones((4096, 64), np.float32)})
    region = {"shared_memory_region": "r", "shared_memory_byte_size": 256}
    tensor = {"name": "x", "shape": [1, 64], "datatype": "FP32", "parameters": region}
    refused = httpx2.post(
        f"{server.http}/v2/models/mlp/infer",
        json={"inputs": [tensor]}, headers=bearer(keys["user"]),
    )  # fmt: skip
    assert refused.status_code == 400


@pytest.mark.slow
def test_a_key_that_is_withdrawn_is_no_key(tmp_path):
    secret, digest = make()
    other, other_digest = make()
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": {"a": {"sha256": digest}}}))
    with (
        Server("--model", mlp(tmp_path / "mlp.onnx"), "--api-keys", file) as server,
        Client(server.grpc, api_key=secret, retry=None) as client,
        client.pipeline() as pipeline,
    ):
        pipeline.infer("mlp", X).result(30)
        file.write_text(json.dumps({"keys": {"b": {"sha256": other_digest}}}))
        with Client(server.grpc, api_key=other, retry=None) as new:

            def known():
                try:
                    return bool(new.infer("mlp", X))
                except Unauthenticated:
                    return False

            until(known, "the new key is not known", 10)
        with pytest.raises(Unauthenticated):
            client.infer("mlp", X)
        with pytest.raises(Unauthenticated):
            pipeline.infer("mlp", X).result(30)


@pytest.mark.slow
def test_both_ports_speak_tls(tmp_path, keys):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name, identity in (("server", "localhost"), ("client", "me@ds-serve.test")):
        made = authority.issue_cert(identity)
        made.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        made.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
    flags = [
        "--tls-certificate", tmp_path / "server.pem", "--tls-key", tmp_path / "server.key",
        "--tls-client-ca", tmp_path / "ca.pem", "--api-keys", keys["file"],
    ]  # fmt: skip
    tls = TLS(tmp_path / "ca.pem", tmp_path / "client.pem", tmp_path / "client.key", "localhost")
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    context.load_cert_chain(tmp_path / "client.pem", tmp_path / "client.key")
    server = Server("--model", mlp(tmp_path / "mlp.onnx"), *flags)
    with server:
        with Client(server.grpc, tls=tls, api_key=keys["user"]) as client:
            assert client.infer("mlp", X)["y"].shape == (1, 8)
        port = server.http.rpartition(":")[2]
        post = f"https://localhost:{port}/v2/models/mlp/infer"
        answer = httpx2.post(post, json=BODY, headers=bearer(keys["user"]), verify=context)
        assert answer.status_code == 200
        with Client(server.grpc, retry=None, timeout=5) as plain, pytest.raises(Unavailable):
            plain.infer("mlp", X)
        assert server.http == f"https://localhost:{port}"
        for said in ("KEY", "CLIENT.pem", "CLIENT.key"):
            assert said in server.output()
        for command in printed(server.output()):
            filled = command.replace("CLIENT", str(tmp_path / "client"))
            assert '"mlp"' in run(filled.replace(" KEY", f" {keys['user']}")).replace("'", '"')


def printed(output):
    """The commands to paste that a server of tensors prints at its start."""
    lines = [line.strip() for line in output.partition("Try it")[2].splitlines()]
    commands = [line for line in lines if line.startswith(("curl ", "python "))]
    assert len(commands) == 2
    return [each for each in commands if shutil.which(each.split()[0])]


def run(command):
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_what_is_printed_works_without_flags_too(tmp_path):
    with Server("--model", mlp(tmp_path / "mlp.onnx")) as server:
        for command in printed(server.output()):
            assert '"mlp"' in run(command).replace("'", '"')


@pytest.mark.slow
def test_a_slow_client_is_turned_away(tmp_path):
    with Server("--model", mlp(tmp_path / "mlp.onnx")) as server:
        host, port = server.http_address.split(":")
        with socket.create_connection((host, int(port)), 40) as connection:
            connection.sendall(b"POST /v2/models/mlp/infer HTTP/1.1\r\nhost: a\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


@pytest.mark.slow
@pytest.mark.parametrize("secure", [False, True])
def test_no_more_connections_than_there_may_be(tmp_path, secure):
    flags, context = ["--grpc-server", "grpcio"], None
    if secure:
        authority = trustme.CA()
        made = authority.issue_cert("localhost", "127.0.0.1")
        made.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
        flags += ["--tls-certificate", tmp_path / "both.pem", "--tls-key", tmp_path / "both.pem"]
        context = ssl.create_default_context()
        authority.configure_trust(context)
    model = ["--model", mlp(tmp_path / "mlp.onnx")]
    with Server(*model, *flags, "--max-connections", "3") as server, ExitStack() as held:
        port = int(server.http.rpartition(":")[2])

        def connect():
            plain = held.enter_context(socket.create_connection(("127.0.0.1", port), 20))
            if context is None:
                return plain
            return held.enter_context(context.wrap_socket(plain, server_hostname="localhost"))

        def ask(connection):
            connection.sendall(b"GET /health/live HTTP/1.1\r\nhost: a\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += connection.recv(4000)
            return answer

        first = [connect() for _ in range(3)]
        assert all(ask(each).startswith(b"HTTP/1.1 200 ") for each in first)
        one_more = connect()
        refused = ask(one_more)
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in refused
        assert b"--max-connections" in refused
        assert one_more.recv(4000) == b""
        assert ask(first[0]).startswith(b"HTTP/1.1 200 ")
        first.pop().close()
        until(lambda: ask(connect()).startswith(b"HTTP/1.1 200 "), "there is no room", 10)


@pytest.mark.slow
def test_no_more_connections_than_there_may_be_over_grpc(tmp_path):
    flags = ["--grpc-server", "grpcio", "--max-connections", "2"]
    with Server("--model", mlp(tmp_path / "mlp.onnx"), *flags) as server, ExitStack() as held:

        def answered():
            options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
            channel = held.enter_context(grpc.insecure_channel(server.grpc, options))
            stub = health_pb2_grpc.HealthStub(channel)
            try:
                return bool(stub.Check(health_pb2.HealthCheckRequest(), timeout=20).status)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                return False

        assert [answered() for _ in range(4)] == [True, True, False, False]
        held.close()
        until(answered, "there is no room", 20)


def test_what_is_wrong_is_said_at_the_start(tmp_path):
    (tmp_path / "keys.toml").write_text("[keys.a]\nsha256 = 3\n")
    server = Server("--model", mlp(tmp_path / "mlp.onnx"), "--api-keys", tmp_path / "keys.toml")
    with pytest.raises(AssertionError, match=r"keys\.toml, line 2: key 'a': sha256 must be"):
        server.start().wait_ready()
    server.close()
