"""TLS, keys, compression, several connections, and the control of models."""

from __future__ import annotations

import json
import select
import socket
import threading

import grpc
import numpy as np
import pytest
import trustme

from ds_client import TLS, Cancelled, Client, InvalidRequest, ModelNotFound, Unavailable

X = np.zeros((1, 1000), np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An authority's certificate, and certificate and key of a server and of a client."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name in ("server", "client"):
        issued = authority.issue_cert("ds-serve.test" if name == "server" else "me@ds-serve.test")
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    return folder


@pytest.fixture(params=[False, True], ids=["tls", "mtls"])
def guarded(request, serve, echo, files):
    """Address of a server with TLS, and what its clients need."""
    pair = ((files / "server.key").read_bytes(), (files / "server.pem").read_bytes())
    roots = (files / "ca.pem").read_bytes()
    credentials = grpc.ssl_server_credentials(
        [pair], roots if request.param else None, require_client_auth=request.param
    )
    mine = {"certificate": files / "client.pem", "key": files / "client.key"}
    tls = TLS(files / "ca.pem", **(mine if request.param else {}), server_name="ds-serve.test")
    return f"127.0.0.1:{serve.start(echo, credentials=credentials)}", tls, request.param


def test_tls_with_and_without_a_client_certificate(guarded, connect_to, echo):
    address, tls, mutual = guarded
    client = connect_to(address, tls=tls, api_key="secret")
    assert client.infer("echo", {"x": X})["x"].shape == X.shape
    assert echo.headers["authorization"] == "Bearer secret"
    for wrong in (True, TLS(tls.roots)) + ((TLS(tls.roots, server_name="ds-serve.test"),) * mutual):
        with pytest.raises(Unavailable):
            connect_to(address, tls=wrong, retry=None).infer("echo", {"x": X}, timeout=5)


def test_tls_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(InvalidRequest, match=r"none\.pem cannot be read: No such file"):
        Client(tls=TLS(tmp_path / "none.pem"))
    with pytest.raises(InvalidRequest, match="certificate and key go together"):
        Client(tls=TLS(certificate=tmp_path / "none.pem"))


class Wire:
    """Passes one connection on to a server and counts the bytes that the client sends."""

    def __init__(self, server: str) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._server = server.rsplit(":")
        self.sent = 0
        self._thread = threading.Thread(target=self._pass_on)
        self._thread.start()

    def _pass_on(self) -> None:
        client, _ = self._listener.accept()
        with client, socket.create_connection((self._server[0], int(self._server[1]))) as server:
            while True:
                for end in select.select([client, server], [], [], 10)[0]:
                    data = end.recv(65536)
                    self.sent += len(data) * (end is client)
                    if not data:
                        return
                    (server if end is client else client).sendall(data)

    def close(self) -> None:
        self._thread.join()
        self._listener.close()


@pytest.mark.parametrize(("how", "small"), [("gzip", True), ("deflate", True), (None, False)])
def test_requests_may_be_compressed(connect_to, address, echo, how, small):
    wire = Wire(address)
    client = connect_to(wire.address, compression=how)
    client.infer("echo", {"x": X})
    client.close()
    wire.close()
    assert (wire.sent < X.nbytes) == small
    assert echo.requests[0].raw_input_contents[0] == X.tobytes()


def test_headers_are_sent_in_lower_case(connect, echo):
    connect(headers={"X-Team": "one"}).infer("echo", {"x": X})
    assert echo.headers["x-team"] == "one"


def test_connections_take_turns(connect, echo):
    client = connect(connections=3)
    for _ in range(6):
        client.infer("echo", {"x": X})
    assert len(echo.peers) == 3


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"compression": "zip"}, "compression is 'zip'; it must be gzip or deflate"),
        ({"connections": 0}, "connections is 0; there must be one at least"),
    ],
)
def test_what_makes_no_sense_is_refused(told, message):
    with pytest.raises(InvalidRequest, match=message):
        Client(**told)


def test_a_closed_client_says_so(connect):
    client = connect()
    client.infer("echo", {"x": X})
    client.close()
    with pytest.raises(Cancelled, match="the client is closed"):
        client.infer("echo", {"x": X})


def test_models_are_listed(client):
    assert [entry.name for entry in client.index(ready=True)] == ["echo"]
    sleeper = client.index()[1]
    assert (sleeper.state, sleeper.reason, sleeper.version) == ("UNAVAILABLE", "unloaded", "")


def test_models_are_loaded_and_unloaded(client, echo, tmp_path):
    (tmp_path / "b").write_bytes(b"bb")
    files = {"1/a": b"a", "1/b": tmp_path / "b"}
    client.load("echo", config={"max_batch_size": 4}, files=files)
    client.unload("echo", dependents=True)
    load, unload = echo.loaded
    assert json.loads(load.parameters["config"].string_param) == {"max_batch_size": 4}
    sent = {k: v.bytes_param for k, v in load.parameters.items() if k.startswith("file:")}
    assert sent == {"file:1/a": b"a", "file:1/b": b"bb"}
    assert unload.parameters["unload_dependents"].bool_param
    with pytest.raises(ModelNotFound):
        client.load("missing")


def test_a_model_file_that_is_not_there_is_named(client, tmp_path):
    with pytest.raises(InvalidRequest, match=r"file '1/a': .*none cannot be read"):
        client.load("echo", files={"1/a": tmp_path / "none"})
    with pytest.raises(InvalidRequest, match="cannot be sent as JSON"):
        client.load("echo", config={"a": {1}})
