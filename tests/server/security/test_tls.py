"""Certificates of both ports."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress

import grpc
import pytest
import trustme
import uvicorn

from ds_engines.errors import ConfigError
from ds_serve.security.tls import TLS, Certificates, grpc_credentials

NAME = "ds-serve.test"


class Files:
    """An authority, with certificates for a server and a client."""

    def __init__(self, folder):
        self.folder = folder
        self.authority = trustme.CA()
        self.authority.cert_pem.write_to_path(folder / "ca.pem")
        self.issue("server", NAME)
        self.issue("client", "me@ds-serve.test")

    def issue(self, file, name):
        made = self.authority.issue_cert(name)
        made.private_key_pem.write_to_path(self.folder / f"{file}.key")
        made.cert_chain_pems[0].write_to_path(self.folder / f"{file}.pem")

    def path(self, name):
        return str(self.folder / name)

    def tls(self, mutual=False):
        ca = self.path("ca.pem") if mutual else ""
        return TLS(self.path("server.pem"), self.path("server.key"), ca)

    def client(self, certificate=True):
        context = ssl.create_default_context(cafile=self.path("ca.pem"))
        if certificate:
            context.load_cert_chain(self.path("client.pem"), self.path("client.key"))
        return context


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


@contextmanager
def http_server(certificates):
    """uvicorn, as a gateway has it, in a thread; its port."""

    async def application(scope, receive, send):
        headers = [(b"content-length", b"5")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": scope["scheme"].encode()})

    config = uvicorn.Config(
        application, lifespan="off", ws="none", log_config=None,
        ssl_context_factory=lambda config, default: certificates.http,
    )  # fmt: skip
    server = uvicorn.Server(config)
    server.capture_signals = nullcontext
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)


def get(port, context):
    """The answer's body, and the serial number of the server's certificate."""
    with (
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        context.wrap_socket(plain, server_hostname=NAME) as connection,
    ):
        serial = connection.getpeercert()["serialNumber"]
        connection.sendall(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        answer = b""
        while data := connection.recv(1000):
            answer += data
        return answer.rpartition(b"\r\n\r\n")[2], serial


def test_http_over_tls_takes_a_new_certificate_without_a_restart(files):
    certificates = Certificates(files.tls())
    with http_server(certificates) as port:
        body, first = get(port, files.client(certificate=False))
        assert body == b"https"
        assert not certificates.refresh()
        files.issue("server", NAME)
        assert certificates.refresh()
        _, second = get(port, files.client(certificate=False))
        assert first != second
        (files.folder / "server.pem").write_text("no certificate")
        assert not certificates.refresh()
        assert get(port, files.client())[1] == second


def test_http_asks_for_a_client_certificate(files):
    with http_server(Certificates(files.tls(mutual=True))) as port:
        assert get(port, files.client())[0] == b"https"
        answer = b""
        with suppress(OSError):  # the connection may end by a reset, or an alert
            answer, _ = get(port, files.client(certificate=False))
        assert answer == b""


@contextmanager
def grpc_server(credentials):
    handler = grpc.unary_unary_rpc_method_handler(lambda request, _: request)
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", {"m": handler}),))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()


def call(port, files, certificate=True):
    read = [(files.folder / name).read_bytes() for name in ("ca.pem", "client.key", "client.pem")]
    credentials = grpc.ssl_channel_credentials(*(read if certificate else read[:1]))
    options = [("grpc.ssl_target_name_override", NAME), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        return channel.unary_unary("/s/m")(b"x", timeout=5)


@pytest.mark.parametrize("mutual", [False, True])
def test_grpc_over_tls(files, mutual):
    with grpc_server(grpc_credentials(files.tls(mutual))) as port:
        assert call(port, files) == b"x"
        if mutual:
            with pytest.raises(grpc.RpcError):
                call(port, files, certificate=False)


def test_grpc_takes_a_new_certificate_without_a_restart(files):
    with grpc_server(grpc_credentials(files.tls())) as port:
        assert call(port, files) == b"x"
        (files.folder / "server.pem").write_text("no certificate")
        assert call(port, files) == b"x"
        files.authority = trustme.CA()
        files.issue("server", NAME)
        with pytest.raises(grpc.RpcError):
            call(port, files)  # the client trusts the old authority alone
        files.authority.cert_pem.write_to_path(files.folder / "ca.pem")
        assert call(port, files) == b"x"


def test_what_is_wrong_is_named(files, tmp_path):
    TLS().check()
    files.tls(mutual=True).check()
    pem, key = files.path("server.pem"), files.path("server.key")
    (tmp_path / "empty.pem").touch()
    wrong = {
        TLS(pem): "needs a certificate and its key",
        TLS(client_ca=pem): "only where TLS is on",
        TLS(files.path("none.pem"), key): r"none\.pem cannot be used: .*No such file",
        TLS(pem, files.path("client.key")): r"server\.pem with key .*client\.key cannot be used",
        TLS(pem, key, files.path("empty.pem")): r"authorities .*empty\.pem cannot be used",
    }
    for tls, message in wrong.items():
        with pytest.raises(ConfigError, match=message):
            tls.check()
